"""greenletio.green.os, .signal, .fcntl and .subprocess: what suspends, and what is left behind."""

from __future__ import annotations

import errno
import os as std
import signal as std_signal
import subprocess as std_subprocess
import sys
import threading as std_threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenletio import spawn, timeout
from greenletio.green import fcntl, os, signal, subprocess, threading, time


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = std.pipe()
    yield ends
    for fd in ends:
        try:
            std.close(fd)
        except OSError:
            pass


def others_run(green: Any, call: Callable[[], Any], release: Callable[[], Any]) -> Any:
    """call() must wait while others run, and end when release() was called."""

    def main() -> Any:
        waiting = spawn(call)
        before = green.ticker.steps
        while green.ticker.steps < before + 20:
            time.sleep(0)
        assert not waiting.ready
        release()
        return waiting.get(30)

    return green(main)


@pytest.mark.parametrize("name", ["read", "readv"])
def test_reading_a_pipe(green: Any, pipe: tuple[int, int], name: str) -> None:
    r, w = pipe
    buffer = bytearray(5)
    call = (lambda: os.read(r, 5)) if name == "read" else (lambda: os.readv(r, [buffer]))
    got = others_run(green, call, lambda: std.write(w, b"hello"))
    assert got == b"hello" or (got == 5 and buffer == b"hello")
    assert std.get_blocking(r)


def test_writing_more_than_a_pipe_holds(green: Any, pipe: tuple[int, int]) -> None:
    r, w = pipe
    data = bytes(range(256)) * 2000

    def main() -> None:
        writing = spawn(os.write, w, data)
        got = b""
        while len(got) < len(data):
            got += os.read(r, 100_000)
        assert got == data and writing.get() == len(data)

    green(main)
    assert std.get_blocking(w)


def test_files_on_pipes(green: Any, pipe: tuple[int, int]) -> None:
    r, w = pipe
    with os.fdopen(r) as reading, os.fdopen(w, "w", 1) as writing:
        assert others_run(green, reading.readline, lambda: writing.write("line\n")) == "line\n"
        assert reading.mode == "r" and not reading.closed
        with pytest.raises(OSError):
            reading.write("x")

        def main() -> None:
            copying = spawn(reading.read)
            writing.write("x" * 200_000)
            writing.close()
            assert copying.get() == "x" * 200_000

        green(main)


def test_a_nonblocking_pipe_blocks_nobody(green: Any, pipe: tuple[int, int]) -> None:
    r, w = pipe
    std.set_blocking(r, False)
    std.set_blocking(w, False)

    def main() -> None:
        with pytest.raises(BlockingIOError):
            os.read(r, 1)
        assert os.write(w, b"x" * 1_000_000) < 1_000_000

    green(main)


def test_the_end_of_a_pipe_files_and_errors(green: Any, tmp_path: Path) -> None:
    def main() -> None:
        r, w = std.pipe()
        std.close(w)
        assert os.read(r, 1) == b""
        std.close(r)
        with pytest.raises(OSError) as info:
            os.read(r, 1)
        assert info.value.errno == errno.EBADF
        fd = std.open(tmp_path / "file", std.O_RDWR | std.O_CREAT)
        assert os.write(fd, b"text") == 4
        os.fsync(fd)
        os.lseek(fd, 0, std.SEEK_SET)
        assert os.read(fd, 10) == b"text"
        std.close(fd)
        with pytest.raises(TypeError):
            os.read("no", 1)

    green(main)


def test_a_read_is_cancelled_and_loses_nothing(green: Any, pipe: tuple[int, int]) -> None:
    r, w = pipe

    def main() -> None:
        with pytest.raises(TimeoutError), timeout(0.01):
            os.read(r, 1)
        std.write(w, b"x")
        assert os.read(r, 1) == b"x"

    green(main)


def child(green_child: str = "import sys; sys.stdin.read()") -> std_subprocess.Popen[bytes]:
    return std_subprocess.Popen([sys.executable, "-c", green_child], stdin=std_subprocess.PIPE)


@pytest.mark.parametrize("way", ["waitpid", "wait4", "waitid", "any", "group"])
def test_waiting_for_a_process(green: Any, way: str) -> None:
    process = child("import sys; sys.exit(len(sys.stdin.read()))")
    pid = process.pid
    calls: dict[str, Callable[[], Any]] = {
        "waitpid": lambda: os.waitpid(pid, 0),
        "wait4": lambda: os.wait4(pid, 0)[:2],
        "waitid": lambda: (lambda r: (r.si_pid, r.si_status << 8))(
            os.waitid(os.P_PID, pid, os.WEXITED)
        ),
        "any": lambda: os.waitpid(pid, 0) if _others() else os.wait(),
        "group": lambda: os.waitpid(pid, os.WUNTRACED),
    }
    assert process.stdin is not None
    process.stdin.write(b"xyz")
    assert others_run(green, calls[way], process.stdin.close) == (pid, 3 << 8)
    process.returncode = 3


def _others() -> bool:
    """Whether this process has children beside the one of the test (a database, say)."""
    children = Path(f"/proc/self/task/{std.getpid()}/children")
    return not children.exists() or len(children.read_text().split()) != 1


def test_no_such_process(green: Any) -> None:
    def main() -> None:
        with pytest.raises(ChildProcessError):
            os.waitpid(std.getpid(), 0)

    green(main)


def test_a_cancelled_wait_leaves_the_process_to_be_waited_for(green: Any) -> None:
    process = child()

    def main() -> None:
        with pytest.raises(TimeoutError), timeout(0.01):
            os.waitpid(process.pid, 0)
        assert process.stdin is not None
        process.stdin.close()
        assert os.waitpid(process.pid, 0) == (process.pid, 0)

    green(main)
    process.returncode = 0


def test_system_and_popen(green: Any) -> None:
    def main() -> None:
        before = green.ticker.steps
        assert os.waitstatus_to_exitcode(os.system("exit 3")) == 3
        assert os.waitstatus_to_exitcode(os.system("kill -9 $$")) == -9
        with os.popen("echo hello; exit 2") as file:
            assert file.read() == "hello\n"
        assert os.spawnlp(os.P_WAIT, "true", "true") == 0
        assert green.ticker.steps > before

    green(main)


# subprocess


def test_a_process_is_talked_to(green: Any) -> None:
    def main() -> None:
        with subprocess.Popen(
            ["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as process:
            for n in range(3):
                reading = spawn(process.stdout.readline)
                before = green.ticker.steps
                while green.ticker.steps < before + 5:
                    time.sleep(0)
                assert not reading.ready
                process.stdin.write(f"line {n}\n")
                assert reading.get() == f"line {n}\n"
            process.stdin.close()
            assert process.stdout.read() == "" and process.wait() == 0
        assert isinstance(process, std_subprocess.Popen)

    green(main)


def test_run_and_its_errors_are_the_standard_ones(green: Any) -> None:
    def main() -> None:
        data = b"x" * 300_000
        done = subprocess.run(["cat"], input=data, stdout=subprocess.PIPE, check=True)
        assert type(done) is std_subprocess.CompletedProcess and done.stdout == data
        with pytest.raises(std_subprocess.CalledProcessError):
            subprocess.check_call(["false"])
        with pytest.raises(std_subprocess.TimeoutExpired):
            subprocess.run(["sleep", "60"], timeout=0.05)
        with pytest.raises(FileNotFoundError):
            subprocess.Popen(["/no/such/program"])

    green(main)


def test_many_processes_at_once(green: Any) -> None:
    def main() -> None:
        running = [spawn(subprocess.check_output, ["sh", "-c", f"echo {n}"]) for n in range(10)]
        assert [int(one.get(30)) for one in running] == list(range(10))

    green(main)


def test_no_descriptor_is_left(green: Any) -> None:
    def main() -> None:
        subprocess.run(["true"], stdout=subprocess.PIPE)
        before = std.listdir("/proc/self/fd")
        for _ in range(5):
            subprocess.run(["cat"], input=b"x", stdout=subprocess.PIPE)
        assert len(std.listdir("/proc/self/fd")) <= len(before)

    green(main)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("where", ["call", "thread"])
def test_of_all_threads_only_the_one_that_forks_goes_on_in_the_child(
    green: Any, pipe: tuple[int, int], where: str
) -> None:
    r, w = pipe

    def other() -> None:
        while not done.is_set():
            time.sleep(0.0005)
            if std.getpid() != parent:
                std.write(w, b"other greenlet!")

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            try:
                time.sleep(0.01)
                assert threading.active_count() == 1
                assert threading.current_thread() is threading.main_thread()
                seen: list[bool] = []
                thread = threading.Thread(target=lambda: seen.append(True))
                thread.start()
                thread.join()
                assert seen == [True] and not thread.is_alive()
                assert subprocess.run(["echo", "x"], stdout=subprocess.PIPE).stdout == b"x\n"
                std.write(w, b"child")
            finally:
                std._exit(0)
        assert os.read(r, 50) == b"child"
        assert os.waitpid(pid, 0) == (pid, 0)

    def main() -> None:
        others = [threading.Thread(target=other) for _ in range(3)]
        for thread in others:
            thread.start()
        time.sleep(0.002)
        if where == "call":
            fork()
        else:
            forking = spawn(fork)
            forking.get()
        done.set()
        for thread in others:
            thread.join()

    parent, done = std.getpid(), threading.Event()
    green(main)


# fcntl


@pytest.mark.parametrize("lock", [fcntl.flock, fcntl.lockf])
def test_file_locks(green: Any, tmp_path: Path, lock: Any) -> None:
    path = tmp_path / "lock"
    script = f"""
import fcntl, sys
file = open({str(path)!r}, "w")
fcntl.{lock.__name__}(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""
    with std_subprocess.Popen(
        [sys.executable, "-c", script], stdin=std_subprocess.PIPE, stdout=std_subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == b"locked\n"
        with open(path, "w") as file:
            with pytest.raises(BlockingIOError):
                green(lock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            others_run(green, lambda: lock(file, fcntl.LOCK_EX), holder.stdin.close)
            lock(file, fcntl.LOCK_UN)


# signal


def test_sigwait_and_its_kin(green: Any) -> None:
    me = std_threading.get_ident()
    std_signal.pthread_sigmask(std_signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        hit = lambda: std_signal.pthread_kill(me, signal.SIGUSR2)  # noqa: E731
        assert others_run(green, lambda: signal.sigwait([signal.SIGUSR2]), hit) is signal.SIGUSR2
        info = others_run(green, lambda: signal.sigwaitinfo([signal.SIGUSR2]), hit)
        assert info.si_signo == signal.SIGUSR2
        assert green(signal.sigtimedwait, [signal.SIGUSR2], 0.01) is None
    finally:
        std_signal.pthread_sigmask(std_signal.SIG_UNBLOCK, [signal.SIGUSR2])


def test_pause(green: Any) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        others_run(green, signal.pause, lambda: std.kill(std.getpid(), signal.SIGUSR2))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == [signal.SIGUSR2]


def test_after_a_pause_a_loop_may_be_held_while_many_signals_come(python: Any) -> None:
    out = python(
        """
        import asyncio, os, signal, sys
        from greenletio import async_, run
        from greenletio.green import signal as green

        def main():
            come, said = [], []
            signal.signal(signal.SIGUSR2, lambda *_: come.append(1))
            signal.signal(signal.SIGALRM, lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            green.pause()
            sys.unraisablehook = said.append
            for _ in range(5000):  # more than the loop's descriptor takes
                os.kill(os.getpid(), signal.SIGUSR2)
            print(len(come), said)

        run(async_(main)())
        """
    )
    assert out == "5000 []\n"


def test_a_handler_is_given_back_as_it_was_set() -> None:
    def handler(number: int, frame: Any) -> None:
        pass

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        assert signal.getsignal(signal.SIGUSR2) is handler
    finally:
        assert signal.signal(signal.SIGUSR2, before) is handler


# the pool of threads


def test_the_pool_is_bounded_and_its_size_can_be_set(green: Any) -> None:
    from greenletio import _threads

    lock, most, running = threading._allocate_lock(), 0, 0

    def work() -> None:
        nonlocal most, running
        import time as std_time

        with lock:
            running += 1
            most = max(most, running)
        std_time.sleep(0.02)
        with lock:
            running -= 1

    def main(size: int) -> int:
        nonlocal most
        most = 0
        _threads.set_size(size)
        jobs = [spawn(_threads.run_in_thread, work) for _ in range(12)]
        for job in jobs:
            job.get()
        return most

    before = _threads.size()
    try:
        assert green(main, 3) == 3
        assert green(main, 1) == 1
        assert 1 < green(main, 5) <= 5
        with pytest.raises(ValueError):
            _threads.set_size(0)
    finally:
        _threads.set_size(before)


def test_a_job_that_is_cancelled_before_its_turn_does_not_run(green: Any) -> None:
    from greenletio import _threads

    ran: list[int] = []
    go = threading.Event()

    def main() -> None:
        first = spawn(_threads.run_in_thread, go.wait)
        second = spawn(_threads.run_in_thread, ran.append, 1)
        time.sleep(0.001)
        second.kill()
        go.set()
        first.get()
        _threads.run_in_thread(int)

    before = _threads.size()
    _threads.set_size(1)
    try:
        green(main)
    finally:
        _threads.set_size(before)
    assert ran == []


@pytest.mark.parametrize("command", ["F_SETLKW", "F_OFD_SETLKW"])
def test_fcntl_waits_for_a_lock_of_another(green: Any, tmp_path: Path, command: str) -> None:
    # The lock of an open file is held by this process, that of a process by another.
    import struct

    path = tmp_path / "file"
    path.touch()
    held = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
    free = struct.pack("hhqqi4x", fcntl.F_UNLCK, 0, 0, 0, 0)
    if not hasattr(fcntl, command):
        pytest.skip(f"no fcntl.{command} here")
    with path.open("r+") as ours, path.open("r+") as other:
        if command == "F_OFD_SETLKW":
            fcntl.fcntl(other, fcntl.F_OFD_SETLK, held)

            def release() -> None:
                fcntl.fcntl(other, fcntl.F_OFD_SETLK, free)
        else:
            hold = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX)"
            holder = std_subprocess.Popen(
                [sys.executable, "-c", f"{hold}; print(flush=True); input()", str(path)],
                stdin=std_subprocess.PIPE,
                stdout=std_subprocess.PIPE,
            )
            assert holder.stdout is not None
            holder.stdout.readline()

            def release() -> None:
                holder.communicate(b"\n")

        others_run(green, lambda: fcntl.fcntl(ours, getattr(fcntl, command), held), release)

        def refused() -> None:
            with pytest.raises(OSError):
                fcntl.fcntl(ours, getattr(fcntl, command), b"short")

        green(refused)


@pytest.mark.skipif(sys.platform != "linux", reason="system calls of Linux")
def test_system_calls_between_descriptors(green: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1_000_000))

    def drain(fd: int, size: int) -> None:
        while size:
            size -= len(os.read(fd, 65536))

    r, w = std.pipe()
    try:
        with path.open("rb") as file:

            def send() -> int:
                sent = 0
                while sent < 1_000_000:
                    sent += os.sendfile(w, file.fileno(), sent, 1_000_000 - sent)
                return sent

            assert others_run(green, send, lambda: spawn(drain, r, 1_000_000)) == 1_000_000
            std.set_blocking(w, False)
            std.write(w, bytes(65536))
            with pytest.raises(BlockingIOError):
                green(os.sendfile, w, file.fileno(), 0, 10)
        if hasattr(os, "splice"):
            std.set_blocking(w, True)
            std.read(r, 65536)
            r2, w2 = std.pipe()
            moved = others_run(green, lambda: os.splice(r, w2, 5), lambda: std.write(w, b"hello"))
            assert moved == 5 and std.read(r2, 9) == b"hello"
            std.close(r2)
            std.close(w2)
        if hasattr(os, "eventfd"):
            counter = std.eventfd(0)
            count = others_run(
                green, lambda: os.eventfd_read(counter), lambda: std.eventfd_write(counter, 3)
            )
            assert count == 3
            std.close(counter)
    finally:
        std.close(r)
        std.close(w)
