"""Pipe transports, and what subprocesses make of them."""

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import sys
import threading
import warnings

import pytest
from fix_loops import LIKE_ASYNCIO, OURS
from fix_transports import Recorder, until

MUCH = b"abcdefgh" * 100_000


@pytest.fixture
def ends():
    """The reading and the writing end of a pipe, as files."""
    r, w = os.pipe()
    with open(r, "rb", 0) as reading, open(w, "wb", 0) as writing:
        yield reading, writing


@LIKE_ASYNCIO
def test_a_pipe_is_read_to_its_end(run, ends):
    async def main():
        loop = asyncio.get_running_loop()
        reading, writing = ends
        transport, protocol = await loop.connect_read_pipe(Recorder, reading)
        assert isinstance(transport, asyncio.ReadTransport)
        assert transport.get_extra_info("pipe") is reading
        writing.write(b"one")
        await until(lambda: protocol.data == b"one")
        transport.pause_reading()
        assert not transport.is_reading()
        writing.write(b"two")
        for _ in range(20):
            await asyncio.sleep(0)
        assert protocol.data == b"one"
        transport.resume_reading()
        await until(lambda: protocol.data == b"onetwo")
        writing.close()
        assert await protocol.lost is None
        assert protocol.told == ["made", "data", "eof", "lost"]
        await asyncio.sleep(0)
        assert reading.closed

    run(main())


@LIKE_ASYNCIO
def test_an_exception_of_the_protocol_is_reported_and_the_pipe_read_on(run, ends):
    class Failing(Recorder):
        def data_received(self, data):
            super().data_received(data)
            raise ZeroDivisionError

    async def main():
        reading, writing = ends
        _, protocol = await asyncio.get_running_loop().connect_read_pipe(Failing, reading)
        for n in (1, 2):
            writing.write(b"x")
            await until(lambda n=n: len(protocol.data) == n)
        writing.close()
        assert await protocol.lost is None
        assert len(run.reported) == 2
        assert all(isinstance(r["exception"], ZeroDivisionError) for r in run.reported)
        run.reported.clear()

    run(main())


@LIKE_ASYNCIO
@pytest.mark.parametrize("end", ["close", "write_eof"])
def test_what_a_pipe_does_not_take_is_queued(run, ends, end):
    async def main():
        loop = asyncio.get_running_loop()
        reading, writing = ends
        transport, protocol = await loop.connect_write_pipe(Recorder, writing)
        assert transport.can_write_eof()
        transport.write(MUCH)
        transport.writelines([b"and ", b"more"])
        assert transport.get_write_buffer_size() > 0
        assert protocol.told == ["made", "pause"]
        getattr(transport, end)()
        got = await loop.run_in_executor(None, reading.readall)
        assert got == MUCH + b"and more"
        assert await protocol.lost is None
        assert protocol.told == ["made", "pause", "resume", "lost"]

    run(main())


@LIKE_ASYNCIO
@pytest.mark.parametrize("queued", [True, False])
def test_a_writing_end_learns_that_its_reader_has_gone(run, ends, queued):
    async def main():
        reading, writing = ends
        transport, protocol = await asyncio.get_running_loop().connect_write_pipe(Recorder, writing)
        if queued:
            transport.write(MUCH)
        reading.close()
        exc = await protocol.lost
        assert isinstance(exc, BrokenPipeError) if queued else exc is None
        assert transport.is_closing()
        transport.write(b"nowhere")

    run(main())


@LIKE_ASYNCIO
def test_abort_drops_what_is_queued(run, ends):
    async def main():
        _, writing = ends
        transport, protocol = await asyncio.get_running_loop().connect_write_pipe(Recorder, writing)
        transport.write(MUCH)
        transport.close()
        transport.write(b"too late")
        transport.abort()
        assert await protocol.lost is None
        assert protocol.told.count("lost") == 1

    run(main())


def test_a_socket_serves_as_a_pipe(run):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = socket.socketpair()
        with contextlib.closing(a), contextlib.closing(b):
            writing, w = await loop.connect_write_pipe(Recorder, a)
            reading, r = await loop.connect_read_pipe(Recorder, b)
            writing.write(b"x")
            await until(lambda: r.data == b"x")
            writing.close()
            await asyncio.gather(r.lost, w.lost)
            reading.close()

    run(main())


@LIKE_ASYNCIO
def test_a_regular_file_is_refused(run, tmp_path):
    async def main():
        loop = asyncio.get_running_loop()
        for connect in (loop.connect_read_pipe, loop.connect_write_pipe):
            with open(tmp_path / "file", "w+b") as file:
                with pytest.raises(ValueError, match="Pipe transport"):
                    await connect(Recorder, file)

    run(main())


@LIKE_ASYNCIO
def test_a_dropped_one_says_so_and_closes_its_pipe(run, ends):
    async def main():
        reading, _ = ends
        transport, protocol = await asyncio.get_running_loop().connect_read_pipe(Recorder, reading)
        transport.pause_reading()
        protocol.transport = None
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            del transport
        assert reading.closed

    run(main())


def test_a_subprocess_answers(run):
    code = "import sys; d = sys.stdin.buffer.read(); sys.stdout.buffer.write(d[::-1]); exit(3)"

    async def main():
        proc = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await proc.communicate(MUCH)
        assert out == MUCH[::-1]
        assert proc.returncode == 3

    run(main())


@OURS
@pytest.mark.parametrize("missing", ["in Python", "in the kernel"])
def test_a_subprocess_without_pidfds(run, monkeypatch, missing):
    def refuse(pid, flags=0):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if missing == "in Python":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    else:
        monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)

    async def main():
        proc = await asyncio.create_subprocess_exec(sys.executable, "-c", "exit(3)")
        assert await proc.wait() == 3

    run(main())


@OURS
@pytest.mark.parametrize("pidfds", [True, False])
def test_a_loop_that_closes_before_its_subprocess_ends(make_loop, monkeypatch, caplog, pidfds):
    if not pidfds:
        monkeypatch.delattr(os, "pidfd_open", raising=False)

    async def main():
        code = "import time; time.sleep(60)"
        return await asyncio.create_subprocess_exec(sys.executable, "-c", code)

    def closed_early():
        loop = make_loop()
        proc = loop.run_until_complete(main())
        pid = proc.pid
        loop.close()
        os.kill(pid, signal.SIGKILL)
        if pidfds:
            os.waitpid(pid, 0)
        for thread in threading.enumerate():
            if thread.name == f"greenletio-waitpid-{pid}":
                thread.join()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del proc
            gc.collect()

    closed_early()
    before = len(os.listdir("/proc/self/fd"))
    closed_early()
    assert len(os.listdir("/proc/self/fd")) <= before
    messages = [record.message for record in caplog.records]
    assert len([text for text in messages if "loop was closed" in text]) == (0 if pidfds else 2)


def test_pipes_leave_nothing_behind_no_leak(run, aflat):
    async def main():
        loop = asyncio.get_running_loop()

        async def once():
            r, w = os.pipe()
            reading, protocol = await loop.connect_read_pipe(Recorder, open(r, "rb", 0))
            writing, other = await loop.connect_write_pipe(Recorder, open(w, "wb", 0))
            writing.write(MUCH)
            writing.close()
            await protocol.lost
            assert len(protocol.data) == len(MUCH)
            await other.lost

        await aflat(once, repeat=50)

    run(main())
