"""loop.sock_recv() and its kin: cancelled, several on a socket, closed, fd numbers used again."""

import asyncio
import contextlib
import errno
import gc
import os
import socket
import subprocess
import sys
import threading
import weakref

import pytest
from fix_garbage import collecting
from fix_sockets import (
    LARGE,
    bound,
    epolls,
    kernel_watches,
    receive_exactly,
    settle,
    stream_pair,
)

import greenletio

# --- in the middle of an attempt ------------------------------------------------------------------

HOSTILE = """
import asyncio, socket, sys
import greenletio

def end(op):
    for attempt in (op.close, lambda: op.send(None), lambda: op.throw(ValueError)):
        try:
            attempt()
        except ValueError as exc:
            print(exc)
        else:
            print("was not refused")

ops = []

def hook(event, args):
    if event in ("socket.sendto", "socket.connect") and ops:
        end(ops.pop())

sys.addaudithook(hook)

async def main():
    loop = asyncio.get_running_loop()
    with socket.socket(type=socket.SOCK_DGRAM) as sock, socket.socket() as listener:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        ops.append(loop.sock_sendto(sock, bytearray(b"x" * 1000), sock.getsockname()))
        print(await ops[0])
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.socket() as client:
            client.setblocking(False)
            ops.append(loop.sock_connect(client, ("127.0.0.1", listener.getsockname()[1])))
            print(await ops[0])

greenletio.run(main())
"""


def test_what_an_attempt_runs_can_neither_end_nor_step_it():
    """It is to a running coroutine as such: what it works on would be freed under its hands."""
    said = subprocess.run(
        [sys.executable, "-c", HOSTILE], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.splitlines() == [
        *["sock_sendto is already executing"] * 3,
        "1000",
        *["sock_connect is already executing"] * 3,
        "None",
    ]


def test_another_thread_closes_the_socket_or_the_operation_while_it_sends(run_ours):
    """A large send lets other threads run."""

    async def main():
        loop = asyncio.get_running_loop()
        for round in range(300):
            a, b = stream_pair()
            with a, b:
                op = loop.sock_sendall(a, bytearray(1 << 20))
                go = threading.Event()

                def interfere(round=round, op=op, a=a, go=go):
                    go.wait()
                    if round % 2:
                        a.close()
                    else:
                        with contextlib.suppress(ValueError):
                            op.close()

                thread = threading.Thread(target=interfere)
                thread.start()
                go.set()
                with contextlib.suppress(OSError, RuntimeError):
                    op.send(None)
                thread.join()
                op.close()

    run_ours(main())


# --- cancelled, or too late -----------------------------------------------------------------------


@pytest.mark.parametrize("allocations", range(6))
def test_a_collection_begins_an_operation_while_another_begins(run_ours, allocations):
    """Each made what it waits in, and the first one's was never freed."""

    def kept():
        gc.collect()
        return sum(type(each).__name__ == "_Sock" for each in gc.get_objects())

    async def main():
        loop = asyncio.get_running_loop()
        here, there = stream_pair()
        with here, there:
            ended = []
            first, second = loop.sock_recv(here, 1), loop.sock_recv(here, 1)
            with collecting(allocations, lambda: second.send(None)):
                first.send(None)
            for op in (first, second):
                op.add_done_callback(ended.append)
            there.send(b"xy")
            await asyncio.sleep(0.01)
            assert set(ended) == {first, second}
            for op in ended:
                with pytest.raises(StopIteration):
                    op.send(None)

    before = kept()
    run_ours(main())
    assert kept() == before


def test_a_receive_that_is_cancelled_takes_nothing(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with a, b:
            received = b""
            for i in range(200):
                task = asyncio.create_task(loop.sock_recv(a, 100))
                await settle()
                if i % 2:
                    b.send(b"x")  # the loop has not seen it when the task is cancelled
                    task.cancel()
                else:
                    loop.call_soon(task.cancel)
                    b.send(b"x")
                try:
                    received += await task
                except asyncio.CancelledError:
                    received += await loop.sock_recv(a, 100)
            assert received == b"x" * 200

    run_ours(main())


def test_a_timeout_leaves_the_socket_usable(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with a, b:
            for _ in range(3):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(loop.sock_recv(a, 10), 0.001)
                await loop.sock_sendall(b, b"data")
                assert await asyncio.wait_for(loop.sock_recv(a, 10), 30) == b"data"

    run_ours(main())


def test_what_a_task_looks_up_by_any_name(run_ours):
    """A task's own strings are found directly, equal ones along the type: both mean the same."""

    async def main():
        loop = asyncio.get_running_loop()
        here, there = stream_pair()
        with here, there:
            op = loop.sock_recv(here, 1)
            assert op._asyncio_future_blocking is None, "no future before it waits"
            assert op.send(None) is op
            for name in ("_asyncio_future_blocking", "add_done_callback", "get_loop"):
                assert getattr(op, "".join(list(name))) == getattr(op, name)
            assert op._asyncio_future_blocking is True
            setattr(op, "".join("_asyncio_future_blocking"), False)
            assert op._asyncio_future_blocking is False
            assert op.get_loop() is loop
            ended = loop.create_future()
            op.add_done_callback(ended.set_result)
            with pytest.raises(TypeError, match="one argument, msg"):
                op.cancel(message="no such keyword")
            there.send(b"x")
            assert await ended is op, "who is no task gets the operation itself"
            op.close()

    run_ours(main())


def test_the_message_of_a_cancellation_arrives(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with a, b:

            async def wait():
                try:
                    await loop.sock_recv(a, 10)
                except asyncio.CancelledError as exc:
                    return exc.args

            task = asyncio.create_task(wait())
            await settle()
            task.cancel("why")
            assert await task == ("why",)

    run_ours(main())


def test_a_send_that_is_cancelled_lets_go_of_its_buffer(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with a, b:
            data = bytearray(LARGE)
            task = asyncio.create_task(loop.sock_sendall(a, data))
            await settle()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            data.clear()

    run_ours(main())


def test_accept_that_is_cancelled_accepts_nothing(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        with bound() as listener, socket.socket() as client:
            task = asyncio.create_task(loop.sock_accept(listener))
            await settle()
            task.cancel()
            await settle()
            client.setblocking(False)
            await loop.sock_connect(client, listener.getsockname())
            conn, peer = await loop.sock_accept(listener)
            conn.close()
            assert peer == client.getsockname()

    run_ours(main())


# --- more than one on a socket --------------------------------------------------------------------


def test_first_come_first_served(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with a, b:
            tasks = [asyncio.create_task(loop.sock_recv(a, 1)) for _ in range(5)]
            await settle()
            tasks[1].cancel()
            await settle()
            b.send(b"abcd")
            late = asyncio.create_task(loop.sock_recv(a, 1))
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results[:1] + results[2:] == [b"a", b"b", b"c", b"d"]
            b.close()
            assert await late == b""

    run_ours(main())


def test_who_receives_without_end_does_not_starve_the_one_behind(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with a, b:
            counts = [0, 0]

            async def receive(i):
                while await loop.sock_recv(a, 1):
                    counts[i] += 1

            tasks = [asyncio.create_task(receive(i)) for i in range(2)]
            await settle()
            await loop.sock_sendall(b, b"x" * 1000)
            b.close()
            await asyncio.gather(*tasks)
            assert sum(counts) == 1000
            assert min(counts) > 0

    run_ours(main())


def test_receiving_and_sending_at_once(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with a, b:
            there = asyncio.create_task(loop.sock_sendall(a, LARGE))
            back = asyncio.create_task(loop.sock_sendall(b, LARGE))
            results = await asyncio.gather(
                receive_exactly(loop, a, len(LARGE)), receive_exactly(loop, b, len(LARGE))
            )
            assert results == [LARGE, LARGE]
            await asyncio.gather(there, back)

    run_ours(main())


def test_add_reader_and_add_writer_beside_a_wait(run_ours):
    """libevent cannot mix triggers on one fd: a level-triggered watcher must stay one."""

    async def main():
        loop = asyncio.get_running_loop()
        for first in ("wait", "watch"):
            a, b = stream_pair()
            with a, b:
                seen = {"readable": 0, "writable": 0}

                def count(what, seen=seen):
                    seen[what] += 1

                def watch(a=a, count=count):
                    loop.add_writer(a, count, "writable")
                    loop.add_reader(a, count, "readable")

                if first == "watch":
                    watch()
                waiting = asyncio.create_task(loop.sock_recv(a, 1))
                await settle()
                if first == "wait":
                    watch()
                while seen["writable"] < 10:  # once more in every turn
                    await asyncio.sleep(0)
                assert not waiting.done()
                b.send(b"xy")
                assert await waiting == b"x"
                while seen["readable"] < 10:
                    await asyncio.sleep(0)
                loop.remove_writer(a)
                loop.remove_reader(a)
                assert await loop.sock_recv(a, 1) == b"y"
                waiting = asyncio.create_task(loop.sock_recv(a, 1))
                await settle()
                b.send(b"z")
                assert await waiting == b"z"

    run_ours(main())


# --- closed, and its number used again ------------------------------------------------------------


@pytest.mark.parametrize("operation", ["recv", "accept", "sendall"])
def test_closing_the_socket_ends_the_wait(run_ours, operation):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        listener = bound()
        with a, b, listener:
            if operation == "recv":
                sock, awaitable = a, loop.sock_recv(a, 10)
            elif operation == "sendall":
                sock, awaitable = a, loop.sock_sendall(a, LARGE)
            else:
                sock, awaitable = listener, loop.sock_accept(listener)
            task = asyncio.create_task(awaitable)
            await settle()
            assert not task.done()
            sock.close()
            with pytest.raises(OSError) as info:
                await task
            assert info.value.errno == errno.EBADF

    run_ours(main())


@pytest.mark.parametrize("when", ["after a receive", "while waited for"])
def test_the_number_of_a_closed_socket_is_used_again_in_the_same_turn(run_ours, when):
    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(20):
            a, b = stream_pair()
            with b:
                task = asyncio.create_task(loop.sock_recv(a, 10))
                await settle()
                if when == "after a receive":
                    b.send(b"x")
                    await task
                number = a.fileno()
                a.close()
                c, d = stream_pair()
                with c, d:
                    assert number in (c.fileno(), d.fileno())
                    if c.fileno() != number:
                        c, d = d, c
                    again = asyncio.create_task(loop.sock_recv(c, 10))
                    await settle()
                    d.send(b"new")
                    assert await again == b"new"
                if when == "while waited for":
                    with pytest.raises(OSError, match="Bad file descriptor"):
                        await task

    run_ours(main())


def test_add_reader_on_the_number_of_a_socket_that_was_just_closed(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with b:
            task = asyncio.create_task(loop.sock_recv(a, 10))
            await settle()
            b.send(b"x")
            await task
            number = a.fileno()
            a.close()
            c, d = stream_pair()
            with c, d:
                if c.fileno() != number:
                    c, d = d, c
                readable = loop.create_future()
                loop.add_reader(c, readable.set_result, None)
                await settle()
                d.send(b"x")
                await readable
                loop.remove_reader(c)

    run_ours(main())


def test_a_duplicate_that_outlives_the_socket_does_not_make_the_loop_spin():
    """The kernel goes on watching what was closed while a duplicate is open: once per edge, or the
    loop would never sleep again."""
    before = epolls()

    async def main():
        loop = asyncio.get_running_loop()
        ours = epolls() - before
        a, b = stream_pair()
        with b:
            fd = a.fileno()
            duplicate = os.dup(fd)
            waiting = asyncio.create_task(loop.sock_recv(a, 10))
            await settle()
            assert kernel_watches(ours, fd)
            b.send(b"x")
            assert await waiting == b"x"
            a.close()
            b.send(b"nobody reads this")
            await settle()
            assert all(mask & (1 << 31) for mask in kernel_watches(ours, fd))  # EPOLLET
            os.close(duplicate)
            assert not kernel_watches(ours, fd)

    greenletio.run(main())


def test_what_nobody_uses_is_not_watched():
    before = epolls()

    async def main():
        loop = asyncio.get_running_loop()
        ours = epolls() - before
        a, b = stream_pair()
        with a, b:
            references = sys.getrefcount(a)
            waiting = asyncio.create_task(loop.sock_recv(a, 10))
            sending = asyncio.create_task(loop.sock_sendall(a, LARGE))
            await settle()
            assert kernel_watches(ours, a.fileno())
            b.send(b"x")
            assert await waiting == b"x"
            sending.cancel()
            await settle()
            assert not kernel_watches(ours, a.fileno())
            del waiting, sending
            assert sys.getrefcount(a) == references

    greenletio.run(main())


# --- nothing stays --------------------------------------------------------------------------------


def test_closing_the_loop_forgets_who_waits():
    loop = greenletio.new_event_loop()
    a, b = stream_pair()
    op = loop.sock_recv(a, 1)
    with a, b:
        assert op.send(None) is op
        loop.close()
        with pytest.raises(RuntimeError, match="already awaited"):
            op.send(None)
        late = loop.sock_recv(a, 1)
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            late.send(None)


def test_a_loop_that_is_dropped_with_waiters_is_collected():
    a, b = stream_pair()
    with a, b:
        loop = greenletio.new_event_loop()

        async def wait():
            await asyncio.get_running_loop().sock_recv(a, 1)

        task = loop.create_task(wait())
        loop.call_soon(loop.stop)
        loop.run_forever()
        task._log_destroy_pending = False
        ref = weakref.ref(task)
        loop.close()
        del loop, task, wait
        gc.collect()
        assert ref() is None


def test_operations_that_were_never_awaited_do_not_keep_the_loop():
    a, b = stream_pair()
    with a, b:
        loop = greenletio.new_event_loop()
        loop.never = [
            loop.sock_recv(a, 1),
            loop.sock_sendall(b, memoryview(b"x")),
            loop.sock_connect(a, ("127.0.0.1", 1)),
        ]
        ref = weakref.ref(loop)
        loop.close()
        del loop
        gc.collect()
        assert ref() is None


@pytest.fixture
def loop():
    """One for all rounds of the leak check."""
    loop = greenletio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.leaks
def test_operations_leave_nothing_behind(loop):
    async def main():
        for _ in range(20):
            with bound() as listener, socket.socket() as client:
                client.setblocking(False)
                accepting = asyncio.create_task(loop.sock_accept(listener))
                await settle()
                await loop.sock_connect(client, listener.getsockname())
                conn, _ = await accepting
                with conn:
                    for size in (10, 100_000):
                        sending = asyncio.create_task(loop.sock_sendall(client, bytes(size)))
                        await receive_exactly(loop, conn, size)
                        await sending
                    with pytest.raises(asyncio.TimeoutError):
                        await asyncio.wait_for(loop.sock_recv(conn, 1), 0)
                    task = asyncio.create_task(loop.sock_recv(conn, 1))
                    await settle()
                    task.cancel()
                    await settle()
                    buf = bytearray(10)
                    task = asyncio.create_task(loop.sock_recv_into(conn, buf))
                    await settle()
                    client.close()
                    assert await task == 0
                    with pytest.raises(OSError, match="Bad file descriptor"):
                        await loop.sock_sendall(client, b"x")
            with bound(kind=socket.SOCK_DGRAM) as udp:
                await loop.sock_sendto(udp, b"x", udp.getsockname())
                await loop.sock_recvfrom(udp, 10)
                task = asyncio.create_task(loop.sock_recvfrom(udp, 10))
                await settle()
                udp.close()
                with pytest.raises(OSError, match="Bad file descriptor"):
                    await task

    loop.run_until_complete(main())
    if sys.version_info < (3, 12):
        # Before, a task asks a future for "result" by a new str each time, which the cache keeps.
        sys._clear_type_cache()
