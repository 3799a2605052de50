"""psycopg 3's sync connections made cooperative: ``patch_psycopg`` and ``unpatch_psycopg``.

psycopg writes its protocol as generators that say what they wait for. Here is the other half: who
waits, decided at each call. In a greenlet it is ``_core.wait_fd``; in plain code psycopg's own
function; directly in a running loop it is refused before anything has been sent.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import inspect
import logging
import socket
import sys
import threading
from collections.abc import Callable, Generator
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, cast

from greenletio import _core, _loops
from greenletio._lock import FairLockFor
from greenletio._orms import check_caller
from greenletio._threads import run_in_thread

if TYPE_CHECKING:
    import psycopg

__all__ = ("is_patched", "patch_psycopg", "unpatch_psycopg")

_T = TypeVar("_T")
_Gen = Generator[Any, Any, _T]

_logger = logging.getLogger("greenletio")

_MISSING: Any = object()
_RESEND_S = 0.25
"""A cancel request that reaches the server before its query does nothing: it is sent again."""


class _Patch:
    """The attributes that were replaced, and what stood there before."""

    def __init__(self, cancel_timeout: float) -> None:
        self.cancel_timeout = cancel_timeout
        self._replaced: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        self._replaced.append((owner, name, vars(owner).get(name, _MISSING)))
        setattr(owner, name, value)

    def restore(self) -> None:
        while self._replaced:
            owner, name, value = self._replaced.pop()
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


_patch: _Patch | None = None


def is_patched() -> bool:
    """Whether psycopg's sync connections are cooperative now."""
    return _patch is not None


def patch_psycopg(*, cancel_timeout: float = 5.0) -> None:
    """Make psycopg 3's sync connections cooperative, those that exist already included.

    Call it once, from any thread, before connections are in use. Needs psycopg 3.2 or newer, in
    Python or in C. Afterwards every operation of a ``psycopg.Connection`` (connect, queries,
    server-side cursors, ``copy``, ``pipeline``, ``notifies``, transactions) decides by where it
    is called from:

    - in a greenlet (``async_``, ``spawn``) it suspends the greenlet, and the loop goes on;
    - in plain code, with no loop running in the thread, it blocks as psycopg always did (and
      ``greenletio.timeout`` does not end it); greenlets that were spawned there go on;
    - directly in a running loop it raises ``WouldBlockError`` before anything is sent, and the
      connection stays as it was.

    Cancellation and ``greenletio.timeout`` are raised at the wait, after the query has been
    cancelled on the server and its results have been drained: the connection remains usable (a
    transaction in progress is left failed, as after any error). If the server does not answer
    within ``cancel_timeout`` seconds the connection is closed, and the cancellation delivered all
    the same. Greenlets that share a connection take turns, first come, first served. Host names
    are resolved in a thread.

    psycopg_pool's sync ``ConnectionPool``, if installed, hands out connections cooperatively too;
    its own workers remain threads.

    Calling it again only changes ``cancel_timeout``. ``unpatch_psycopg`` restores everything.
    """
    global _patch
    if _patch is not None:
        _patch.cancel_timeout = cancel_timeout
        return
    import psycopg
    from psycopg import _conninfo_attempts, waiting

    if not hasattr(psycopg.Connection, "cancel_safe"):
        raise RuntimeError(
            f"patch_psycopg needs psycopg 3.2 or newer, this is {psycopg.__version__}: "
            "pip install -U psycopg"
        )
    patch = _Patch(cancel_timeout)
    cls = psycopg.Connection
    try:
        # Before its wait functions had `timeout`, psycopg looked at its deadlines whenever
        # `interval` had passed; since then those wake-ups only serve Ctrl-C, which a loop has.
        ticks = "timeout" not in inspect.signature(waiting.wait_conn).parameters
        patch.replace(waiting, "wait", _wait(waiting.wait, ticks))
        patch.replace(waiting, "wait_conn", _wait_conn(waiting.wait_conn, ticks))
        patch.replace(cls, "wait", _connection_wait(cls.wait, ticks))
        patch.replace(cls, "cancel", _connection_cancel(cls.cancel))
        patch.replace(cls, "close", _connection_close(cls.close))
        patch.replace(cls, "lock", FairLockFor("lock"))
        patch.replace(_conninfo_attempts, "socket", _ResolvingSocket())
        _patch_pool(patch)
    except BaseException:
        patch.restore()
        raise
    _patch = patch


def unpatch_psycopg() -> None:
    """Restore psycopg to what it was before ``patch_psycopg``; without that, do nothing.

    Connections stay open and usable. Call it when no greenlet is inside an operation.
    """
    global _patch
    if _patch is not None:
        _patch.restore()
        _patch = None


# ---- waiting for psycopg's generators ------------------------------------------------------------


def _green(what: str) -> bool:
    """Whether somebody goes on during a wait here: the loop, or what plain code has spawned.

    WouldBlockError where a running loop would be held.
    """
    place = _core.place()
    if place < 0:
        raise _loops.would_block(what)
    if place > 0:
        return True
    own = _loops._own.loop
    return own is not None and _loops.busy(own)


class _Expired(Exception):
    """The time given to `_drive` is over; its generator is where it was."""


def _drive(
    gen: _Gen[_T],
    fileno: int | None,
    interval: float | None,
    timeout: float | None,
    interrupted: Callable[[_Gen[Any], BaseException], None],
) -> _T:
    """Run `gen`, from its start or from where it was suspended, to its end; return its value.

    It yields events, or pairs (fd, events) where `fileno` is None. After `interval` seconds
    without an event it is resumed all the same. A wait that ends with an exception leaves it
    where it is, and calls `interrupted` before the exception goes on.
    """
    deadline = None if timeout is None else monotonic() + timeout
    try:
        wanted = next(gen)
        while True:
            fd, events = wanted if fileno is None else (fileno, wanted)
            left = interval
            if deadline is not None:
                left = max(0.0, deadline - monotonic())
                if interval is not None:
                    left = min(left, interval)
            try:
                ready = _core.wait_fd(fd, events, left)
            except BaseException as ex:
                interrupted(gen, ex)
                raise
            wanted = gen.send(ready)
            # After the generator has seen what arrived: a timeout of 0 polls once.
            if deadline is not None and monotonic() >= deadline:
                raise _Expired
    except StopIteration as ex:
        value: _T = ex.value
        return value


def _run(
    gen: _Gen[_T],
    fileno: int | None,
    interval: float | None,
    timeout: float | None,
    interrupted: Callable[[_Gen[Any], BaseException], None],
) -> _T:
    """`_drive`, with the exceptions that psycopg expects of its own wait functions."""
    try:
        return _drive(gen, fileno, interval, timeout, interrupted)
    except _Expired:
        from psycopg import errors

        raise errors._WaitTimeout("wait timeout expired") from None
    except OSError as ex:
        if ex.errno != errno.EBADF:
            raise
        from psycopg import errors

        raise errors.OperationalError("the connection was closed while it was in use") from ex


def _close_generator(gen: _Gen[Any], _reason: BaseException) -> None:
    # It owns the half-made connection: dropping it here closes the socket now, not when the
    # exception's traceback goes away.
    gen.close()


def _wait(original: Callable[..., Any], ticks: bool) -> Callable[..., Any]:
    def wait(gen: _Gen[_T], fileno: int, interval: float = 0.0, timeout: float | None = None) -> _T:
        if not _green("a psycopg operation"):
            return cast(_T, original(gen, fileno, interval, **_limit(timeout)))
        return _run(gen, fileno, interval if ticks else None, timeout, _close_generator)

    return wait


def _wait_conn(original: Callable[..., Any], ticks: bool) -> Callable[..., Any]:
    def wait_conn(gen: _Gen[_T], interval: float = 0.0, timeout: float | None = None) -> _T:
        if not _green("psycopg.connect"):
            return cast(_T, original(gen, interval, **_limit(timeout)))
        check_caller()
        return _run(gen, None, interval if ticks else None, timeout, _close_generator)

    return wait_conn


def _limit(timeout: float | None) -> dict[str, float]:
    # The versions that don't have the parameter never give it.
    return {} if timeout is None else {"timeout": timeout}


# ---- the connection's methods --------------------------------------------------------------------


def _connection_wait(original: Callable[..., Any], ticks: bool) -> Callable[..., Any]:
    def wait(
        self: psycopg.Connection[Any],
        gen: _Gen[_T],
        interval: float = 0.1,
        timeout: float | None = None,
    ) -> _T:
        """Run a generator on the connection; cooperative in a greenlet (see patch_psycopg)."""
        if not _needs_no_wait(self, gen) and not _green("a psycopg operation"):
            return cast(_T, original(self, gen, interval, **_limit(timeout)))
        return _run(
            gen, self.pgconn.socket, interval if ticks else None, timeout, partial(_settle, self)
        )

    return wait


def _needs_no_wait(conn: psycopg.Connection[Any], gen: _Gen[Any]) -> bool:
    """Whether `gen` sends nothing, as some do when the server is idle: allowed in a loop too."""
    return (
        getattr(gen, "__name__", None) in _LOCAL_WHEN_IDLE
        and conn._pipeline is None
        and conn.pgconn.transaction_status == _IDLE
    )


_IDLE, _ACTIVE = 0, 1  # of libpq's PGTransactionStatusType
_LOCAL_WHEN_IDLE = frozenset(
    f"_{name}_gen"
    for name in (
        "commit",
        "rollback",
        "set_autocommit",
        "set_isolation_level",
        "set_read_only",
        "set_deferrable",
    )
)


def _connection_cancel(original: Callable[..., Any]) -> Callable[..., Any]:
    def cancel(self: psycopg.Connection[Any]) -> None:
        """Ask the server to cancel the current operation; cooperative in a greenlet."""
        if not _green("psycopg.Connection.cancel"):
            original(self)
        elif self._should_cancel():
            _send_cancel(self, None)

    return cancel


def _connection_close(original: Callable[..., Any]) -> Callable[..., Any]:
    def close(self: psycopg.Connection[Any]) -> None:
        """Close the connection; a greenlet that waits on it gets OperationalError."""
        if not self.closed and not getattr(getattr(self, "_pool", None), "close_returns", False):
            _core.fd_closing(self.pgconn.socket)
        original(self)

    return close


class _ResolvingSocket:
    """The socket module as psycopg's connect sees it: names are resolved off the loop."""

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)

    @staticmethod
    def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        _green("resolving a host name")
        return run_in_thread(partial(socket.getaddrinfo, *args, **kwargs))


# ---- cancelling ----------------------------------------------------------------------------------


class _Unanswered(Exception):
    """The server did not react to a cancel request in time."""


def _settle(conn: psycopg.Connection[Any], gen: _Gen[Any], reason: BaseException) -> None:
    """After an interrupted wait: bring the connection back to a known state, or close it.

    Waits for the server, `cancel_timeout` seconds at most, and is not cancellable itself.
    """
    from psycopg import errors

    closed = isinstance(reason, OSError) and reason.errno == errno.EBADF  # by someone else
    if closed or conn.pgconn.transaction_status != _ACTIVE:
        gen.close()
        return
    _core.shield(True)  # further cancellations are one with the first, which goes on after this
    try:
        _cancel_and_drain(conn, gen)
    except _Unanswered as ex:
        _drop(conn, gen)
        _logger.warning("psycopg: %s", ex)
        reason.__context__ = errors.OperationalError(str(ex))
    except errors.Error:
        pass  # QueryCanceled, as asked for; or the connection is lost, and says so itself
    except BaseException as ex:
        # The greenlet is being ended, and no wait is possible any more.
        _drop(conn, gen)
        _logger.debug("psycopg: connection closed after an interrupted clean-up", exc_info=ex)
    finally:
        _core.shield(False)


def _drop(conn: psycopg.Connection[Any], gen: _Gen[Any]) -> None:
    gen.close()
    _core.fd_closing(conn.pgconn.socket)
    conn.pgconn.finish()


def _cancel_and_drain(conn: psycopg.Connection[Any], gen: _Gen[Any]) -> None:
    """Cancel what the server runs and let `gen` come to its end, which may be an exception."""
    from psycopg import errors

    limit = _patch.cancel_timeout if _patch is not None else 5.0
    deadline = monotonic() + limit
    while True:
        try:
            try:
                if not (conn._tpc and conn._tpc[1]):  # a prepared transaction can't be cancelled
                    _send_cancel(conn, deadline - monotonic())
            except errors.Error as ex:
                _logger.debug("psycopg: a cancel request failed: %s", ex)
            rest = min(_RESEND_S, deadline - monotonic())
            _drive(gen, conn.pgconn.socket, None, rest, _leave_generator)
            return
        except _Expired:
            if monotonic() >= deadline:
                raise _Unanswered(
                    f"the server did not answer a cancel request within {limit:g} s: "
                    "the connection has been closed"
                ) from None


def _leave_generator(_gen: _Gen[Any], _reason: BaseException) -> None:
    pass


def _send_cancel(conn: psycopg.Connection[Any], timeout: float | None) -> None:
    """Have the server cancel what it runs; `_Expired` if it has not heard within `timeout`."""
    from psycopg import generators
    from psycopg._capabilities import capabilities

    if capabilities.has_cancel_safe():
        request = conn.pgconn.cancel_conn()
        request.start()
        _drive(generators.cancel(request), None, None, timeout, _close_generator)
        return
    # Before version 17 libpq only has a call that blocks, for ever if the server is frozen:
    # hence a thread of its own and not one of a pool that others need.
    send = _blocking_cancel(conn)
    done: _core.Waiter[None] = _core.Waiter()

    def run() -> None:
        try:
            send()
        except Exception as ex:
            done.set_exception(ex)
        else:
            done.set(None)

    threading.Thread(target=run, name="greenletio-cancel", daemon=True).start()
    if not done.wait(timeout):
        raise _Expired
    done.result()


def _blocking_cancel(conn: psycopg.Connection[Any]) -> Callable[[], None]:
    """A function that sends the cancel request without holding the GIL."""
    from psycopg import errors, pq

    if pq.__impl__ == "python":
        return conn.pgconn.get_cancel().cancel
    # psycopg's C build calls PQcancel with the GIL held; this is the libpq that it has loaded.
    pgconn = cast(Any, conn.pgconn)
    libpq = ctypes.CDLL(sys.modules[type(pgconn).__module__].__file__)
    libpq.PQgetCancel.restype = ctypes.c_void_p
    request = ctypes.c_void_p(libpq.PQgetCancel(ctypes.c_void_p(pgconn.pgconn_ptr)))

    def cancel() -> None:
        message = ctypes.create_string_buffer(256)
        sent = libpq.PQcancel(request, message, len(message))
        libpq.PQfreeCancel(request)
        if not sent:
            raise errors.OperationalError(message.value.decode(errors="replace"))

    return cancel


# ---- psycopg_pool --------------------------------------------------------------------------------


def _patch_pool(patch: _Patch) -> None:
    """Let clients of psycopg_pool's sync pools wait cooperatively; its workers stay threads."""
    try:
        from psycopg_pool import null_pool, pool
    except ImportError:
        return
    patch.replace(pool, "Condition", _Condition)
    patch.replace(pool, "sleep", _core.sleep)
    # A cancelled client must give back the connection it was just handed.
    patch.replace(pool, "CLIENT_EXCEPTIONS", (Exception, asyncio.CancelledError))
    for module in (pool, null_pool):
        patch.replace(module, "Event", _core.Waiter)


class _Condition:
    """A condition for one waiter and one notification: what a waiting client of the pool is."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiter: _core.Waiter[None] = _core.Waiter()

    def __enter__(self) -> bool:
        return self._mutex.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self._mutex.__exit__(*exc)

    def wait(self, timeout: float | None = None) -> bool:
        self._mutex.release()
        try:
            return self._waiter.wait(timeout)
        finally:
            self._mutex.acquire()

    def notify_all(self) -> None:
        self._waiter.set(None)
