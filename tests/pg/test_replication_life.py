"""Logical replication: a stream that waits, whose consumer is slow, whose connection is lost."""

import asyncio
import gc
import socket
import struct
import threading
import time
import weakref

import pytest
from fix_replication import AT_ONCE, make, numbers_of

from greenletio import async_, pg, sleep
from greenletio.pg import aio, errors
from greenletio.pg._steps import Connecting, Pause

LIMIT_S = 30  # against a hang, not a measure


def test_waiting_in_vain_loses_nothing(run, replicated_here):
    replicated_here.sql("CREATE TABLE numbers (n int)")
    slot = replicated_here.slot()
    many = 60

    def write():
        for n in range(many):
            replicated_here.sql(f"INSERT INTO numbers VALUES ({n}), ({n})")

    async def main():
        found = []
        timeouts = 0
        async with await aio.connect_replication(replicated_here.url) as replication:
            async with replication.stream(slot, "everything") as stream:
                with pytest.raises((TimeoutError, asyncio.TimeoutError)):
                    await stream.get(0.5)  # it is connected now
                writer = asyncio.get_running_loop().run_in_executor(None, write)
                transaction = None
                while len(found) < 2 * many:
                    try:
                        if timeouts % 2:
                            async with asyncio.timeout(0.0005 * (timeouts % 7)):
                                transaction = await stream.get()
                        else:
                            transaction = await stream.get(0.0005 * (timeouts % 7))
                        timeouts += 1
                    except (TimeoutError, asyncio.TimeoutError):
                        timeouts += 1
                        continue
                    found += [change.new["n"] async for change in transaction]
                await writer
        return found, timeouts

    if not hasattr(asyncio, "timeout"):
        pytest.skip("asyncio.timeout() is of Python 3.11")
    found, timeouts = run(main())
    assert found == [n for n in range(many) for _ in range(2)]
    assert timeouts > many


def begun(replication, stream):
    """The steps to its first item, and the one of them that asks the server to stream."""
    steps = stream._core.next_item()
    step = next(steps)
    while replication._session.stream is None:
        step = steps.send(step.run())
    return steps, step


@pytest.mark.parametrize("when", ["before it is sent", "when it is sent", "when it is answered"])
def test_a_start_that_nobody_waits_for_any_more(replicated_here, when):
    """The session hung: its next command waited behind a stream that nobody read."""
    replicated_here.sql("CREATE TABLE numbers (n int)")
    slot = replicated_here.slot()
    replicated_here.sql("INSERT INTO numbers VALUES (1)")
    with pg.connect_replication(replicated_here.url) as replication:
        with replication.stream(slot, "everything") as stream:
            steps, step = begun(replication, stream)
            if when != "before it is sent":
                step.start()
            if when == "when it is answered":
                step.run()
            with pytest.raises(KeyboardInterrupt):
                steps.throw(KeyboardInterrupt())
            assert numbers_of(stream.get(LIMIT_S)) == [1]


def test_a_session_that_begins_to_stream_takes_no_commands(replicated_here):
    slot = replicated_here.slot()
    with pg.connect_replication(replicated_here.url) as replication:
        with replication.stream(slot, "everything") as stream:
            steps, _ = begun(replication, stream)
            with pytest.raises(errors.InterfaceError, match="is streaming"):
                replication.identify_system()
            steps.close()


@pytest.mark.parametrize("face", ["aio", "green", "plain"])
def test_a_slow_consumer_keeps_its_connection(replicated_here, face):
    replicated_here.sql("CREATE TABLE numbers (n int, t text)")
    slot = replicated_here.slot()
    # More than the sockets hold: the server waits for us, and still has to hear from us.
    replicated_here.sql(
        "INSERT INTO numbers SELECT i, repeat('x', 10000) FROM generate_series(1, 3000) i",
        "INSERT INTO numbers VALUES (0)",
    )
    options = {"options": "-c wal_sender_timeout=800"}

    async def by_task():
        async with await aio.connect_replication(replicated_here.url, **options) as replication:
            async with replication.stream(slot, "everything") as stream:
                transaction = await stream.get(LIMIT_S)
                pid = (await async_(replicated_here.status)(slot)).active_pid
                await asyncio.sleep(1)
                numbers = [change.new["n"] async for change in transaction]
                await asyncio.sleep(1)
                numbers += [change.new["n"] async for change in await stream.get(LIMIT_S)]
                assert (await async_(replicated_here.status)(slot)).active_pid == pid
                return numbers

    def by_sync(sleep):
        with pg.connect_replication(replicated_here.url, **options) as replication:
            with replication.stream(slot, "everything") as stream:
                transaction = stream.get(LIMIT_S)
                pid = replicated_here.status(slot).active_pid
                sleep(1)
                numbers = numbers_of(transaction)
                sleep(1)
                numbers += numbers_of(stream.get(LIMIT_S))
                assert replicated_here.status(slot).active_pid == pid
                return numbers

    if face == "plain":
        found = by_sync(time.sleep)
    else:
        found = asyncio.run(by_task() if face == "aio" else async_(by_sync)(sleep))
    assert found == [*range(1, 3001), 0]


def test_a_server_that_is_frozen_is_left_and_found_again(own_server):
    made = make(own_server.url)
    replicated = next(made)
    replicated.sql("CREATE TABLE numbers (n int)")
    slot = replicated.slot()
    replicated.sql("INSERT INTO numbers VALUES (1)")
    with pg.connect_replication(replicated.url) as replication:
        limits = {"receive_timeout": LIMIT_S, "status_interval": 0.05}
        with replication.stream(slot, "everything", **limits) as stream:
            assert numbers_of(stream.get(LIMIT_S)) == [1]
            stream._core._receive_timeout = 0.3
            stream._core._resume = 0.5
            own_server.freeze()
            try:
                with pytest.raises(errors.OperationalError):
                    stream.get(LIMIT_S)
            finally:
                own_server.thaw()
            replicated.sql("INSERT INTO numbers VALUES (2)")
            stream._core._receive_timeout = stream._core._resume = LIMIT_S
            assert numbers_of(stream.get(LIMIT_S)) == [2]
    next(made, None)


def test_one_reads_at_a_time_and_closing_ends_the_wait(run, replicated_here):
    replicated_here.sql("CREATE TABLE numbers (n int)")
    slot = replicated_here.slot()

    async def main():
        async with await aio.connect_replication(replicated_here.url) as replication:
            stream = replication.stream(slot, "everything")
            waiting = asyncio.create_task(stream.get())
            while stream._core._heartbeat is None:  # it streams
                await asyncio.sleep(0.001)
            with pytest.raises(errors.InterfaceError, match="another task"):
                await stream.get()
            await stream.close()
            with pytest.raises(errors.InterfaceError, match="this stream is closed"):
                await waiting
            assert (await replication.slot(slot)).active_pid is None

    run(main())


def test_a_stream_that_nobody_has_ends(replicated_here):
    replicated_here.sql("CREATE TABLE numbers (n int)")
    slot = replicated_here.slot()
    replicated_here.sql("INSERT INTO numbers VALUES (1)")
    replication = pg.connect_replication(replicated_here.url)
    stream = replication.stream(slot, "everything", status_interval=0.01)
    assert numbers_of(stream.get(LIMIT_S)) == [1]
    core = weakref.ref(stream._core)
    raw = replication._session.raw
    del stream
    gc.collect()
    assert raw.is_closed()
    replication.close()
    del replication
    gc.collect()
    assert core() is None


# ---- lost connections ---------------------------------------------------------------------------

KILLS = 50


class Consumer(threading.Thread):
    """Takes what a stream tells, as (writer, number), until it has so many."""

    def __init__(self, face, url, slot):
        super().__init__(daemon=True)
        self.face, self.url, self.slot = face, url, slot
        self.rows = []
        self.wanted = None
        self.failure = None
        self.start()

    @property
    def is_done(self):
        return self.wanted is not None and len(self.rows) >= self.wanted

    def run(self):
        try:
            if self.face == "plain":
                self.consume()
            else:
                asyncio.run(self.main() if self.face == "aio" else async_(self.consume)())
        except BaseException as exc:
            self.failure = exc

    async def main(self):
        async with await aio.connect_replication(self.url) as replication:
            async with replication.stream(self.slot, "everything") as stream:
                while not self.is_done:
                    try:
                        transaction = await stream.get(0.2)
                    except (TimeoutError, asyncio.TimeoutError):
                        continue
                    async for change in transaction:
                        self.rows.append((change.new["writer"], change.new["n"]))

    def consume(self):
        with pg.connect_replication(self.url) as replication:
            with replication.stream(self.slot, "everything") as stream:
                while not self.is_done:
                    try:
                        transaction = stream.get(0.2)
                    except TimeoutError:
                        continue
                    for change in transaction:
                        self.rows.append((change.new["writer"], change.new["n"]))


class Writer(threading.Thread):
    """Commits numbers in their order, one to four at a time and now and then 3000."""

    def __init__(self, number, url):
        super().__init__(daemon=True)
        self.number, self.url = number, url
        self.acknowledged = 0
        self.stopped = False
        self.start()

    def run(self):
        insert = "INSERT INTO written SELECT %s, i, repeat('x', 200) FROM generate_series(%s, %s) i"
        with pg.connect(self.url, autocommit=True, options=AT_ONCE) as connection:
            turn = 0
            while not self.stopped:
                turn += 1
                size = 3000 if turn % 40 == 0 else 1 + turn % 4
                end = self.acknowledged + size
                connection.execute(insert, [self.number, self.acknowledged + 1, end])
                self.acknowledged = end
                time.sleep(0.002)


@pytest.mark.parametrize("face", ["aio", "green", pytest.param("plain", marks=pytest.mark.slow)])
def test_fifty_lost_connections_lose_and_repeat_nothing(replicated_here, face):
    replicated_here.sql("CREATE TABLE written (writer int, n int, t text)")
    slot = replicated_here.slot()
    consumer = Consumer(face, replicated_here.url, slot)
    writers = [Writer(number, replicated_here.url) for number in range(2)]
    killed = set()
    end = time.monotonic() + 4 * LIMIT_S
    kill = (
        "SELECT active_pid, pg_terminate_backend(active_pid) FROM pg_replication_slots "
        f"WHERE slot_name = '{slot}' AND active_pid IS NOT NULL"
    )
    while len(killed) < KILLS and time.monotonic() < end and consumer.failure is None:
        before = len(consumer.rows)
        for pid, done in replicated_here.sql(kill):
            if done:
                killed.add(pid)
        while len(consumer.rows) == before and consumer.is_alive() and time.monotonic() < end:
            time.sleep(0.002)
    for writer in writers:
        writer.stopped = True
        writer.join(LIMIT_S)
    consumer.wanted = sum(writer.acknowledged for writer in writers)
    consumer.join(LIMIT_S)
    assert consumer.failure is None
    assert len(killed) >= KILLS
    for writer in writers:
        numbers = [n for number, n in consumer.rows if number == writer.number]
        assert numbers == list(range(1, writer.acknowledged + 1))


MOODS = ("CREATE TYPE mood AS ENUM ('sad', 'ok')", "CREATE TABLE moods (m mood)")


def moods_of(transaction):
    return [change.new["m"] for change in transaction]


def test_types_are_looked_up_though_the_server_ends_meanwhile(own_server):
    made = make(own_server.url)
    replicated = next(made)
    replicated.sql(*MOODS)
    slot = replicated.slot()
    replicated.sql("INSERT INTO moods VALUES ('ok')")
    with pg.connect_replication(replicated.url) as replication:
        with replication.stream(slot, "everything") as stream:
            steps = stream._core.next_item()
            step = next(steps)
            while not isinstance(step, Connecting):  # for the types: the session has a connection
                step = steps.send(step.run())
            own_server.kill()
            with pytest.raises(errors.OperationalError) as lost:
                step.run()
            step = steps.throw(lost.value)
            assert isinstance(step, Pause)
            own_server.start()
            with pytest.raises(StopIteration) as end:
                while True:
                    step = steps.send(step.run())
            assert moods_of(end.value.value) == ["ok"]
    next(made, None)


def test_types_are_looked_up_though_the_given_connection_is_lost(replicated_here):
    replicated_here.sql(*MOODS)
    slot = replicated_here.slot()
    replicated_here.sql("INSERT INTO moods VALUES ('sad')")
    catalog = pg.connect(replicated_here.url, autocommit=True)
    with pg.connect_replication(replicated_here.url) as replication:
        with replication.stream(slot, "everything", connection=catalog) as stream:
            pid = catalog.raw._pid
            replicated_here.sql(f"SELECT pg_terminate_backend({pid}, 10000)")
            assert moods_of(stream.get(LIMIT_S)) == ["sad"]
    catalog.close()


@pytest.mark.parametrize("plugin", ["pgoutput", "test_decoding"])
def test_a_connection_lost_in_the_middle_of_a_transaction(replicated, plugin):
    replicated.sql("CREATE TABLE numbers (n int, t text)")
    slot = replicated.slot(plugin)
    replicated.sql(
        "INSERT INTO numbers SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) i",
        "INSERT INTO numbers VALUES (0)",
    )
    publications = ("everything",) if plugin == "pgoutput" else ()
    with pg.connect_replication(replicated.url) as replication:
        with replication.stream(slot, *publications) as stream:
            large = stream.get(LIMIT_S)
            numbers, ended = [], set()
            for change in large:
                numbers.append(change.new["n"])
                # One that was ended is the slot's until we have taken what it had sent, and there
                # is none until we need the next.
                if len(ended) < 3 and len(numbers) % 1000 == 10:
                    ended |= {
                        pid
                        for pid, _ in replicated.sql(
                            "SELECT active_pid, pg_terminate_backend(active_pid) "
                            "FROM pg_replication_slots "
                            f"WHERE slot_name = '{slot}' AND active_pid IS NOT NULL"
                        )
                    }
            assert len(ended) > 1
            assert numbers == list(range(1, 20001))
            assert numbers_of(stream.get(LIMIT_S)) == [0]


def test_a_slot_that_another_has_moved_on_is_told_of(replicated_here):
    replicated_here.sql("CREATE TABLE numbers (n int)")
    slot = replicated_here.slot()
    replicated_here.sql("INSERT INTO numbers VALUES (1)")
    with pg.connect_replication(replicated_here.url) as replication:
        with replication.stream(slot, "everything") as stream:
            assert numbers_of(stream.get(LIMIT_S)) == [1]
            replicated_here.sql(
                "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots "
                f"WHERE slot_name = '{slot}'",
                "INSERT INTO numbers VALUES (2)",
                f"SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())",
            )
            with pytest.raises(errors.InternalError, match="somebody else has moved"):
                stream.get(LIMIT_S)


def test_without_resume_the_loss_is_told(replicated_here):
    replicated_here.sql("CREATE TABLE numbers (n int)")
    slot = replicated_here.slot()
    replicated_here.sql("INSERT INTO numbers VALUES (1)")
    with pg.connect_replication(replicated_here.url) as replication:
        with replication.stream(slot, "everything", resume=0) as stream:
            assert numbers_of(stream.get(LIMIT_S)) == [1]
            replicated_here.sql(
                "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots "
                f"WHERE slot_name = '{slot}'",
                "INSERT INTO numbers VALUES (2)",
            )
            with pytest.raises(errors.OperationalError):
                stream.get(LIMIT_S)
            assert numbers_of(stream.get(LIMIT_S)) == [2]  # asked again it goes on


def message(kind, data=b""):
    return kind + struct.pack("!i", 4 + len(data)) + data


@pytest.fixture
def odd_server():
    """The port of one that answers a query by a result, and by the beginning of a stream."""
    ready, result = message(b"Z", b"I"), message(b"C", b"SELECT 1\0")
    answers = {
        b"Q": result + message(b"W", bytes(3)),
        b"c": message(b"c") + result + ready,  # the end of the stream
    }

    def serve():
        peer, _ = listener.accept()
        with peer, peer.makefile("rb") as file:
            file.read(int.from_bytes(file.read(4), "big") - 4)
            peer.sendall(message(b"R", bytes(4)) + ready)
            while kind := file.read(1):
                file.read(int.from_bytes(file.read(4), "big") - 4)
                peer.sendall(answers.get(kind, b""))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(LIMIT_S)


def test_what_comes_before_a_stream_is_let_go(odd_server, flat):
    options = {"sslmode": "disable", "gssencmode": "disable", "user": "anybody"}
    with pg.connect(host="127.0.0.1", port=odd_server, **options) as c:

        def stream():
            session = c.raw._op("replication", "status", "START_REPLICATION")
            assert session.run() is None
            c.raw._op("copy_end", "nothing", "", session=session).run()

        flat(stream)
