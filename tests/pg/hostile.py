"""What must not crash the interpreter: each function is run in a process of its own.

    python hostile.py CASE DSN

Codecs, rows and callbacks that use what calls them; values that are not what their type says.
"""

import asyncio
import datetime
import gc
import os
import struct
import sys
import threading
import time
from decimal import Decimal

from greenletio import _pg, pg
from greenletio.pg import aio, errors

TEXT, JSONB, RECORD = 25, 3802, 2249


def fails(exceptions, function, *args):
    try:
        value = function(*args)
    except exceptions as exc:
        return exc
    raise AssertionError(f"{function} gave {value!r}")


def set_codec(raw, oid, **functions):
    plain = _pg.BUILTIN[oid]
    raw._codecs[oid] = _pg.Codec("wrapped", oid, plain.name, plain, **functions)
    raw._forget_codecs()


def copy_with_another_query_behind_it(dsn):
    """The COPY has its answer while it stands in the queue."""

    async def main():
        c = await aio.connect(dsn)
        for _ in range(50):
            copy = c._op("copy", "status", "COPY (SELECT generate_series(1, 10)) TO STDOUT")

            async def reads(copy=copy):
                await copy
                rows = []
                while block := await c._op("copy_read", "nothing", "", session=copy):
                    if not isinstance(block, bytes):
                        break
                    rows.append(block)
                return b"".join(rows)

            first, second, third = await asyncio.gather(
                reads(), c.fetchval("SELECT 2"), c.fetch("SELECT 3")
            )
            assert first.split() == [b"%d" % i for i in range(1, 11)]
            assert (second, third[0][0]) == (2, 3)
        await c.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def codecs_at_odds_with_what_is_on_its_way(dsn):
    """Shared, and in a pipeline: codecs that close, change codecs, give others up, or come back."""
    deeds = {
        "close": lambda c, ops: c.terminate(),
        "forget": lambda c, ops: c._forget_codecs() if not c._busy else gc.collect(),
        "give up": lambda c, ops: [op.close() for op in list(ops)],
        "query": lambda c, ops: c.fetchval("SELECT 5").start(),
        "clear": lambda c, ops: (c._cache.clear(), gc.collect()),
        "raise": lambda c, ops: 1 / 0,
        "share": lambda c, ops: setattr(c, "shared", not c.shared),
        "drop": lambda c, ops: (ops.clear(), gc.collect()),
    }

    async def round(deed, side, shared):
        c = await aio.connect(dsn, shared=shared)
        ops = []
        calls = 0

        def function(value):
            nonlocal calls
            calls += 1
            if calls == 3:
                deeds[deed](c, ops)
            return value

        set_codec(c, TEXT, **{side: function})
        try:
            if not shared:
                await c._op("pipeline", "nothing", "")
            ops += [c.fetchval("SELECT $1::text", "a").start() for _ in range(6)]
            ops += [c.fetch("SELECT 'a' FROM generate_series(1, 5)").start() for _ in range(3)]
            for op in list(ops):
                try:
                    await asyncio.wait_for(asyncio.ensure_future(_await(op)), 10)
                except (errors.Error, ZeroDivisionError, asyncio.CancelledError):
                    pass
            if not shared and not c.is_closed():
                await c._op("pipeline_end", "nothing", "")
            c._codecs.clear()
            c._codecs[TEXT] = _pg.BUILTIN[TEXT]
            c._forget_codecs()
            assert c.is_closed() or await c.fetchval("SELECT 'x'") == "x"
        except errors.Error:
            assert deed in ("close", "share")
        c.terminate()

    async def main():
        for deed in deeds:
            for side in ("encoder", "decoder"):
                for shared in (True, False):
                    await asyncio.wait_for(round(deed, side, shared), 20)

    asyncio.run(main())


async def _await(op):
    return await op


def encoder_that_closes(dsn):
    async def main():
        for _ in range(50):
            c = await aio.connect(dsn)

            def close(value, c=c):
                c.terminate()
                return value

            set_codec(c, TEXT, encoder=close)
            tasks = [asyncio.ensure_future(c.fetchval("SELECT $1::text", "a")) for _ in "abc"]
            for exc in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(exc, (errors.Error, ConnectionError)), exc
            del c, tasks
            gc.collect()

    asyncio.run(main())


def rows_that_close(dsn):
    """executemany()'s arguments come from an iterator that closes the connection."""

    async def main():
        for _ in range(20):
            c = await aio.connect(dsn)

            def rows(end, c=c):
                yield ("a",)
                c.terminate()
                if end:
                    return
                yield ("b",)

            for end in (False, True):
                try:
                    await c.executemany("SELECT $1::text", rows(end))
                except (errors.Error, ConnectionError):
                    pass
                else:
                    raise AssertionError
            gc.collect()

    asyncio.run(main())


def codecs_that_change_under_a_query(dsn):
    async def main():
        c = await aio.connect(dsn)
        sql = "SELECT pg_sleep($1), 1, 'a'::text"
        await c.fetch(sql, 0)
        for _ in range(5):
            query = asyncio.ensure_future(c.fetch(sql, 0.05))
            await asyncio.sleep(0.01)
            c._forget_codecs()
            set_codec(c, TEXT, decoder=str.upper)
            assert (await query)[0][1:] in [(1, "a"), (1, "A")]
            assert (await c.fetch(sql, 0))[0][1:] == (1, "A")
        c._codecs.clear()
        await c.execute("CREATE TEMPORARY TABLE t(a int, b text)")

        def rows():
            for i in range(100):
                if i % 10 == 0:
                    c._forget_codecs()
                yield (i, "b")

        await c.copy_records_to_table("t", records=rows())
        assert await c.fetchval("SELECT count(*) FROM t") == 100
        await c.close()

    asyncio.run(main())


def row_that_is_looked_at_before_it_is_whole(dsn):
    seen = []

    class Row(_pg.Record):
        def __del__(self):
            seen.append((self[1], self["b"], self[:], tuple(self.values()), repr(self), hash(self)))
            assert self == self and self.get("b") is None

    c = pg.connect(dsn)
    sql = "SELECT 1 AS a, '20000-01-01'::date AS b"
    exc = fails(errors.DataError, c.raw.fetchrow(sql, record_class=Row).run)
    del exc
    gc.collect()
    assert seen[0][:3] == (None, None, (1, None)), seen

    def look(value):
        for o in gc.get_objects():
            if type(o) in (list, tuple) or isinstance(o, _pg.Record):
                for i in range(min(len(o), 5)):
                    o[i]
        return [value]

    set_codec(c.raw, TEXT, decoder=look)
    sql = "SELECT 'a', 'b', ARRAY['c', 'd'] FROM generate_series(1, 3)"
    assert len(c.raw.fetch(sql).run()) == 3
    assert len(c.raw._op("query", "tuples", sql).run()[0]) == 3
    c.raw.terminate()


def value_that_is_deeper_than_the_stack(dsn):
    depth = 300_000
    parts = [struct.pack(">iIi", 1, RECORD, 12 * i + 4) for i in reversed(range(depth))]
    exc = fails(RecursionError, _pg.BUILTIN[RECORD].decode, b"".join(parts) + bytes(4))
    del exc
    codec = _pg.BUILTIN[TEXT]
    for _ in range(depth):
        codec = _pg.Codec("wrapped", 1, "deep", codec)
    fails(RecursionError, codec.decode, b"a")
    fails(RecursionError, codec.encode, "a")
    record = ()
    for _ in range(depth):
        record = _pg.make_record(_pg.Record, ("a",), (record,))
    del record, codec


def datetime_that_is_none_elsewhere(dsn):
    class Moment(datetime.datetime):
        def astimezone(self, tz=None):
            return 5

    class Offset(datetime.time):
        def utcoffset(self):
            return datetime.timedelta.max

    fails(TypeError, _pg.BUILTIN[1184].encode, Moment(2000, 1, 1))
    fails(ValueError, _pg.BUILTIN[1266].encode, Offset(1))


def decimal_of_another_spelling(dsn):
    class Money(Decimal):
        def __format__(self, spec):
            return "$1,000.00"

        def adjusted(self):
            return 10**100

    numeric = _pg.BUILTIN[1700]
    assert numeric.decode(numeric.encode(Money("1000.00"))) == Decimal("1000.00")


def codecs_of_what_cannot_be_sent(dsn):
    codec = _pg.Codec("wrapped", 1, "r", _pg.BUILTIN[RECORD])
    fails(errors.NotSupportedError, codec.encode, ("a",))
    fails(TypeError, _pg.make_record, _pg.Record, (1,), (2,))


def operations_that_miss_a_part(dsn):
    c = pg.connect(dsn)
    raw = c.raw
    fails(TypeError, lambda: raw._op("many", "nothing", "SELECT 1").run())
    copy = raw._op("copy", "status", "COPY (SELECT 1) TO STDOUT")
    fails(TypeError, lambda: raw._op("copy_write", "nothing", "", session=copy))
    fails(TypeError, lambda: raw._op("copy", "records", "SELECT 1").run())
    raw._cache["SELECT 5"] = 5
    fails(TypeError, lambda: raw.fetchval("SELECT 5").run())
    fails(TypeError, raw._forget_codecs)
    raw._cache.clear()

    class Sql(str):
        def __hash__(self):
            raw.terminate()
            return 1

    assert raw.fetchval(Sql("SELECT 5")).run() == 5
    c.close()


def loop_that_calls_back_without_an_event(dsn):
    async def main():
        loop = asyncio.get_running_loop()
        callbacks = []
        add_reader = loop.add_reader

        def spy(fd, callback, *args):
            if type(callback).__module__ == "greenletio._pg":
                callbacks.append(callback)
            return add_reader(fd, callback, *args)

        loop.add_reader = spy
        c = await aio.connect(dsn)
        for callback in callbacks:
            fails(TypeError, callback)
            fails(TypeError, callback, 1, 2)
            fails(TypeError, callback, "1")
        assert await c.fetchval("SELECT 1") == 1
        await c.close()
        for callback in callbacks:
            callback(1)
            callback(8)

    asyncio.run(main())


def closed_while_it_closes(dsn):
    """A loop's remove_reader() is Python: another thread, or the loop itself, may close, too."""

    async def main():
        loop = asyncio.get_running_loop()
        remove_reader = loop.remove_reader
        c = None

        def spy(fd):
            if c is not None:
                c.terminate()
            return remove_reader(fd)

        loop.remove_reader = spy
        for _ in range(20):
            c = None
            c = await aio.connect(dsn)
            query = asyncio.ensure_future(c.fetchval("SELECT pg_sleep(5)"))
            await asyncio.sleep(0.01)
            c.terminate()
            (exc,) = await asyncio.gather(query, return_exceptions=True)
            assert isinstance(exc, errors.Error), exc
            assert c.is_closed()

    asyncio.run(main())


def threads_that_close_one_connection(dsn):
    sys.setswitchinterval(1e-6)

    async def main():
        for _ in range(20):
            c = await aio.connect(dsn)
            threads = [threading.Thread(target=c.terminate) for _ in range(4)]
            query = asyncio.ensure_future(c.fetch("SELECT generate_series(1, 10000)"))
            await asyncio.sleep(0)
            for thread in threads:
                thread.start()
            await asyncio.wait([query], timeout=10)
            assert query.done() and (query.exception() is None or c.is_closed())
            for thread in threads:
                thread.join()

    asyncio.run(main())
    c = pg.connect(dsn)
    threading.Timer(0.1, c.raw.terminate).start()
    fails(errors.Error, c.raw.fetchval("SELECT pg_sleep(10)").run)


def loop_of_another_thread(dsn):
    """A thread whose query a loop moves on, and that gives it up, leaves the loop's fds alone."""

    async def main():
        loop = asyncio.get_running_loop()
        here, wrong = threading.get_ident(), []
        c = await aio.connect(dsn)

        def spy(name, real):
            def spied(*args):
                if threading.get_ident() != here:
                    wrong.append(name)
                return real(*args)

            setattr(loop, name, spied)

        for name in "add_reader", "add_writer", "remove_reader", "remove_writer", "call_later":
            spy(name, getattr(loop, name))
        for _ in range(5):
            first = asyncio.ensure_future(c.fetchval("SELECT pg_sleep(0.1)"))
            await asyncio.sleep(0.01)
            op = c._op("query", "value", "SELECT pg_sleep(10)", timeout=0.2)
            thread = threading.Thread(target=fails, args=(TimeoutError, op.run))
            thread.start()
            await first
            while thread.is_alive():
                await asyncio.sleep(0.01)
            assert await asyncio.wait_for(c.fetchval("SELECT 1"), 5) == 1
        assert not wrong, wrong
        await c.close()

    asyncio.run(main())


def class_whose_name_is_no_text(dsn):
    """What repr() shows of a record is its class's name."""

    class Meta(type):
        __name__ = property(lambda cls: 5)

    class Row(aio.Record, metaclass=Meta):
        pass

    c = pg.connect(dsn)
    row = c.raw.fetchrow("SELECT 1 AS a, ARRAY[2] AS b", record_class=Row).run()
    assert repr(row) == "<5 a=1 b=[2]>", repr(row)
    c.close()


def operation_that_two_await(dsn):
    async def main():
        c = await aio.connect(dsn)
        op = c.fetchval("SELECT 1 FROM pg_sleep(0.1)")
        done = await asyncio.wait_for(asyncio.gather(op, later(op), return_exceptions=True), 5)
        assert done[0] == 1 and isinstance(done[1], RuntimeError), done
        assert await op == 1
        await c.close()

    async def later(op):
        return await op

    asyncio.run(main())


class Finalized:
    """Garbage of the collector's, which calls a function."""

    def __init__(self, function):
        self.function = function
        self.cycle = self

    def __del__(self):
        self.function()


def collector_that_closes_while_notices_come(dsn):
    """libpq hands them over while it works on the connection."""
    c = pg.connect(dsn)
    raw = c.raw
    said = []

    def close():
        try:
            raw.fetchval("SELECT 1").start()
        except errors.Error as exc:
            said.append(exc)
        raw.terminate()

    sql = "DO $$BEGIN FOR i IN 1..500 LOOP RAISE NOTICE 'n'; END LOOP; PERFORM pg_sleep(1); END$$"
    op = raw.execute(sql)
    op.start()
    time.sleep(0.3)  # until they are there
    gc.collect()
    gc.disable()
    hold = [{} for _ in range(300)]  # what is kept of freed ones is used up
    Finalized(close)
    gc.enable()
    gc.set_threshold(10)
    try:
        op.run()
    except errors.Error:
        pass
    del hold
    gc.collect()
    assert not said, said
    assert raw.is_closed()


def collector_that_gives_up_what_is_read(dsn):
    c = pg.connect(dsn)
    raw = c.raw
    session = raw._op("stream", "records", "SELECT 1 FROM pg_sleep(0.2)", ())
    session.run()
    other = raw.fetchval("SELECT 2")
    other.start()
    gc.collect()
    gc.disable()
    read = raw._op("copy_read", "nothing", "", session=session)
    read.start()
    hold = [[] for _ in range(300)]
    Finalized(read.close)
    del read
    gc.set_threshold(1)
    gc.enable()
    assert other.run() == 2
    del hold
    c.close()


def loop_that_ends_what_is_to_begin(dsn):
    """Its remove_reader() gives up the operation that stands behind a cancelled one."""

    async def main():
        loop = asyncio.get_running_loop()
        remove_reader = loop.remove_reader
        held = []

        def spy(fd):
            while held:
                held.pop().close()
            return remove_reader(fd)

        loop.remove_reader = spy
        for _ in range(30):
            c = await aio.connect(dsn)
            slow = asyncio.ensure_future(c.fetchval("SELECT pg_sleep(10)"))
            await asyncio.sleep(0.02)
            op = c.fetchval("SELECT 1").start()
            slow.cancel()
            await asyncio.sleep(0)
            held.append(op)
            del op
            await asyncio.sleep(0.03)
            held.clear()
            assert await asyncio.wait_for(c.fetchval("SELECT 2"), 10) == 2
            await c.close()

    asyncio.run(main())


def timer_that_closes(dsn):
    """It is stopped when a stream, which must be prepared again and cannot be, tells its reader."""

    class Timer:
        def __init__(self, timer, c):
            self.timer = timer
            self.c = c

        def cancel(self):
            self.timer.cancel()
            self.c.terminate()

    async def main():
        loop = asyncio.get_running_loop()
        call_later = loop.call_later
        c = await aio.connect(dsn)
        await c.execute("CREATE TEMP TABLE gone (a int)")
        await c.fetch("SELECT * FROM gone")
        await c.execute("DO $$BEGIN EXECUTE 'DEALLOCATE ALL'; END$$")
        await c.execute("DROP TABLE gone")
        stream = c._op("stream", "records", "SELECT * FROM gone", ())
        await stream
        read = c._op("copy_read", "nothing", "", session=stream, timeout=20)
        loop.call_later = lambda *args, **options: Timer(call_later(*args, **options), c)
        try:
            await read
        except errors.UndefinedTable:
            pass
        else:
            raise AssertionError
        before = sys.getrefcount(stream)
        del read
        assert sys.getrefcount(stream) == before - 1 >= 2
        stream.close()
        assert c.is_closed()

    asyncio.run(main())


def forked(dsn):
    """A child that drops the connection it has inherited does not end the parent's session."""
    c = pg.connect(dsn)
    child = os.fork()
    if child == 0:
        del c
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    assert c.raw.fetchval("SELECT 1").run() == 1
    c.close()

    async def main():
        c = await aio.connect(dsn)
        child = os.fork()
        if child == 0:
            c.terminate()
            os._exit(0)
        os.waitpid(child, 0)
        assert await asyncio.wait_for(c.fetchval("SELECT 1"), 5) == 1
        await c.close()

    asyncio.run(main())


def forked_with_a_listener(dsn):
    """The child has the object, and nothing that looks after it: it is told, and does not wait."""
    with pg.Listener(dsn, channels=["x"]) as listener:
        child = os.fork()
        if child == 0:
            for use in listener.get, lambda: next(listener), lambda: listener.add("y"):
                fails(errors.InterfaceError, use)
            listener.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        listener.add("y")
        with listener.connection() as c:
            c.execute("NOTIFY y, 'parent'")
        assert listener.get(timeout=10).payload == "parent"


def left_open_at_exit(dsn):
    """What sys holds goes when the modules have gone."""
    sys.left_open = [pg.connect(dsn)]

    async def main():
        c = await aio.connect(dsn)
        sys.left_open += [c, asyncio.ensure_future(c.fetchval("SELECT pg_sleep(5)"))]
        await asyncio.sleep(0.05)

    loop = sys.left_open_loop = asyncio.new_event_loop()
    loop.run_until_complete(main())


def text_with_a_zero_byte(dsn):
    """libpq would end it there."""
    c = pg.connect(dsn)
    raw = c.raw
    fails((ValueError, errors.Error), lambda: raw.fetchval("SELECT 1\0; nonsense").run())
    fails((ValueError, errors.Error), lambda: raw.execute("SELECT 1\0; nonsense").run())
    oids = struct.pack("=I", 23)
    op = raw._op("query", "value", "SELECT $1", ("1\x002",), oids=oids)
    fails(errors.DataError, op.run)
    assert raw.fetchval("SELECT 1").run() == 1
    c.close()


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
