"""``os`` whose calls on pipes and sockets, and whose waits for processes, suspend the greenlet.

``read``, ``write`` and their kin wait until the descriptor is ready, unless it is nonblocking;
regular files are read and written at once, for no descriptor tells when they are ready.
``waitpid`` and its kin wait for the process by its pidfd, or in a thread. ``fsync`` and
``fdatasync`` run in a thread, ``sendfile`` and ``splice`` do where they may block, ``lockf`` tries
again and again. All of them can be cancelled.
``open`` blocks where the system's does: at a FIFO whose other end is not open.
"""

from __future__ import annotations

import errno
import io
import os as _std
import select as _select
import stat as _stat
import sys
from collections.abc import Callable, Sequence
from typing import Any

from greenletio import _core
from greenletio._patch import green_builtins
from greenletio._threads import run_in_thread
from greenletio.green._std import adopt, public, until_unlocked

__all__ = public(_std)

_PLAIN = 0  # _core.place(): no loop runs in this thread
_PIPE_BUF = getattr(_select, "PIPE_BUF", 512)


def _ready(fd: int, events: int) -> bool:
    """Wait until ``fd`` is ready. Whether it waits for anything: not if it is nonblocking."""
    if _core.place() == _PLAIN or type(fd) is not int:
        return False
    poll = _select.poll()
    try:
        poll.register(fd, _select.POLLIN if events == _core.READ else _select.POLLOUT)
        if poll.poll(0):
            return True
        if not _std.get_blocking(fd):
            return False
        _core.wait_fd(fd, events)
    except (OSError, OverflowError, ValueError) as error:
        if getattr(error, "errno", None) == errno.EINTR:
            raise
        return False  # not a descriptor, or one that is always ready: the call itself will tell
    return True


def read(fd: int, length: int, /) -> bytes:
    """Read up to ``length`` bytes, waiting for the first; b'' at the end."""
    _ready(fd, _core.READ)
    return _std.read(fd, length)


def write(fd: int, data: Any, /) -> int:
    """Write ``data``, waiting as often as it takes, if ``fd`` is blocking."""
    if type(fd) is not int or _core.place() == _PLAIN or not _is_pipe(fd):
        return _std.write(fd, data)
    # A blocking write of more than a pipe takes at once would block: it goes in parts.
    view = memoryview(data).cast("B")
    sent = 0
    while _ready(fd, _core.WRITE) and _std.get_blocking(fd) and len(view) - sent > _PIPE_BUF:
        sent += _std.write(fd, view[sent : sent + _PIPE_BUF])
    return sent + _std.write(fd, view[sent:])


def _is_pipe(fd: int) -> bool:
    try:
        mode = _std.fstat(fd).st_mode
    except OSError:
        return False
    return _stat.S_ISFIFO(mode) or _stat.S_ISSOCK(mode) or _stat.S_ISCHR(mode)


def readv(fd: int, buffers: Any, /) -> int:
    """``os.readv``, waiting for the first bytes."""
    _ready(fd, _core.READ)
    return _std.readv(fd, buffers)


def writev(fd: int, buffers: Any, /) -> int:
    """``os.writev``, waiting until some bytes fit."""
    _ready(fd, _core.WRITE)
    return _std.writev(fd, buffers)


if hasattr(_std, "eventfd_read"):

    def eventfd_read(fd: int) -> int:
        """``os.eventfd_read``, waiting until the counter is not 0."""
        _ready(fd, _core.READ)
        return _std.eventfd_read(fd)


if sys.platform == "linux":

    def sendfile(out_fd: int, in_fd: int, offset: int | None, count: int) -> int:
        """``os.sendfile``; to a blocking descriptor in a thread, which goes on if cancelled."""
        if _std.get_blocking(out_fd):
            return run_in_thread(_std.sendfile, out_fd, in_fd, offset, count)
        return _std.sendfile(out_fd, in_fd, offset, count)


if hasattr(_std, "splice"):

    def splice(
        src: int,
        dst: int,
        count: int,
        offset_src: int | None = None,
        offset_dst: int | None = None,
        flags: int = 0,
    ) -> int:
        """``os.splice``, in a thread, which goes on if cancelled."""
        return run_in_thread(_std.splice, src, dst, count, offset_src, offset_dst, flags)


def fsync(fd: Any) -> None:
    """``os.fsync``, in a thread."""
    run_in_thread(_std.fsync, fd)


def fdatasync(fd: Any) -> None:
    """``os.fdatasync``, in a thread."""
    run_in_thread(_std.fdatasync, fd)


def lockf(fd: int, command: int, length: int, /) -> None:
    """``os.lockf``; where it has to wait it tries again, so that a cancelled wait holds no lock."""
    if command != _std.F_LOCK or _core.place() == _PLAIN:
        _std.lockf(fd, command, length)
    else:
        until_unlocked(lambda: _std.lockf(fd, _std.F_TLOCK, length))


# Processes.


def _await_child(pid: int, options: int) -> None:
    """Wait until ``waitpid(pid, options)`` has something to tell."""
    if pid > 0 and options & ~_std.WNOHANG == 0 and hasattr(_std, "pidfd_open"):
        try:
            fd = _std.pidfd_open(pid)
        except OSError:
            pass  # there is none, and the call itself will tell; or the system has no pidfds
        else:
            try:
                _core.wait_fd(fd, _core.READ)
            finally:
                _core.fd_closing(fd)
                _std.close(fd)
            return
    kind, number = (
        (_std.P_PID, pid)
        if pid > 0
        else (_std.P_ALL, 0)
        if pid == -1
        else (_std.P_PGID, -pid or _std.getpgrp())
    )
    events = _std.WEXITED | _std.WNOWAIT
    if options & _std.WUNTRACED:
        events |= _std.WSTOPPED
    if options & _std.WCONTINUED:
        events |= _std.WCONTINUED
    run_in_thread(_std.waitid, kind, number, events)  # abandoned, it takes nothing away


def _may_wait(options: int) -> bool:
    return not options & _std.WNOHANG and _core.place() != _PLAIN


def _wait_for(pid: int, options: int, call: Callable[[int], Any]) -> Any:
    if not _may_wait(options):
        return call(options)
    while True:
        result = call(options | _std.WNOHANG)
        if result[0]:
            return result
        _await_child(pid, options)


def waitpid(pid: int, options: int, /) -> tuple[int, int]:
    """``os.waitpid``."""
    result: tuple[int, int] = _wait_for(pid, options, lambda o: _std.waitpid(pid, o))
    return result


def wait() -> tuple[int, int]:
    """``os.wait``."""
    return waitpid(-1, 0)


def wait3(options: int) -> Any:
    """``os.wait3``."""
    return _wait_for(-1, options, _std.wait3)


def wait4(pid: int, options: int) -> Any:
    """``os.wait4``."""
    return _wait_for(pid, options, lambda o: _std.wait4(pid, o))


def waitid(idtype: int, id: int, options: int, /) -> Any:
    """``os.waitid``."""
    if _may_wait(options):
        events = options | _std.WNOWAIT
        while (found := _std.waitid(idtype, id, options | _std.WNOHANG)) is None:
            run_in_thread(_std.waitid, idtype, id, events)
        return found
    return _std.waitid(idtype, id, options)


def system(command: Any) -> int:
    """``os.system``: runs the shell and waits for its end."""
    if _core.place() == _PLAIN:
        return _std.system(command)
    from greenletio.green import subprocess

    arguments: Sequence[Any] = ["/bin/sh", "-c", _std.fsencode(command)]
    call: Any = subprocess.call
    status: int = call(arguments, close_fds=False)
    return status << 8 if status >= 0 else -status


def fdopen(
    fd: int,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``os.fdopen``: reads and writes of a pipe, socket or terminal suspend the greenlet."""
    from greenletio.green import _files

    if not isinstance(fd, int):
        raise TypeError(f"invalid fd type ({type(fd)}, expected integer)")
    if "b" not in mode:
        encoding = io.text_encoding(encoding)
    return _files.open(fd, mode, buffering, encoding, *args, **kwargs)


globals()["__builtins__"] = green_builtins()  # for what is rebound: popen() imports subprocess
adopt(
    globals(),
    _std,
    rebound=(
        "_spawnvef",
        "popen",
        "spawnl",
        "spawnle",
        "spawnlp",
        "spawnlpe",
        "spawnv",
        "spawnve",
        "spawnvp",
        "spawnvpe",
    ),
)


def __getattr__(name: str) -> Any:
    return getattr(_std, name)
