"""Making connections, for both faces."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from typing import Any

from greenletio import _core, _pg
from greenletio._hosts import Host, addresses_of
from greenletio._threads import run_in_thread
from greenletio.pg import _process, _types
from greenletio.pg._conninfo import Options, attempts, connect_timeout
from greenletio.pg.errors import (
    CannotConnect,
    DatabaseError,
    InvalidAuthorizationSpecification,
)

__all__ = (
    "check_command_timeout",
    "connect_async",
    "connect_sync",
    "connected",
    "dress",
    "forget_types",
)

_ATTEMPT_FAILED = (DatabaseError, TimeoutError, asyncio.TimeoutError)


class _Attempts:
    """The attempts of one connect(): what each may take, and what went wrong in those before."""

    def __init__(self, options: Options, timeout: float | None) -> None:
        self._each = connect_timeout(options)
        self._end = None if timeout is None else time.monotonic() + timeout
        self.errors: list[BaseException] = []
        self._steps = attempts(options)

    def next(self, answer: list[str] | OSError | None) -> Host | str | None:
        try:
            return self._steps.send(answer)
        except StopIteration:
            return None
        except CannotConnect as exc:
            self.errors.append(exc)
            return None

    def left(self) -> float | None:
        """Seconds for all that is to come."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def budget(self) -> float | None:
        return min((t for t in (self.left(), self._each) if t is not None), default=None)

    def failed(self, exc: BaseException) -> None:
        self.errors.append(exc)
        # Who was refused by one server does not show the password to the next, as in libpq.
        refused = isinstance(exc, InvalidAuthorizationSpecification)
        if refused or (self._end is not None and time.monotonic() >= self._end):
            raise exc

    def give_up(self) -> BaseException:
        if len(self.errors) == 1:
            return self.errors[0]
        text = "\n".join(str(error) or "timeout expired" for error in self.errors)
        error = CannotConnect(text)
        error.__cause__ = self.errors[-1] if self.errors else None
        return error


async def connect_async(c: _pg.Connection, options: Options, timeout: float | None) -> None:
    run = _Attempts(options, timeout)
    step = run.next(None)
    while step is not None:
        if isinstance(step, Host):
            step = run.next(await asyncio.wait_for(_resolve(step), run.left()))
            continue
        try:
            await c._op("connect", "nothing", step, timeout=run.budget())
        except _ATTEMPT_FAILED as exc:
            run.failed(exc)
            step = run.next(None)
        else:
            return connected(c)
    raise run.give_up()


def connect_sync(c: _pg.Connection, options: Options, timeout: float | None) -> None:
    run = _Attempts(options, timeout)
    step = run.next(None)
    while step is not None:
        if isinstance(step, Host):
            with _core.timeout(run.left()):
                answer = _resolve_here(step)
            step = run.next(answer)
            continue
        try:
            c._op("connect", "nothing", step, timeout=run.budget()).run()
        except _ATTEMPT_FAILED as exc:
            run.failed(exc)
            step = run.next(None)
        else:
            return connected(c)
    raise run.give_up()


def _question(host: Host) -> tuple[str, None, int, int]:
    return host.host, None, socket.AF_UNSPEC, socket.SOCK_STREAM


def _resolve_here(host: Host) -> list[str] | OSError:
    try:
        return list(addresses_of(run_in_thread(socket.getaddrinfo, *_question(host))))
    except OSError as exc:
        return exc


async def _resolve(host: Host) -> list[str] | OSError:
    name, service, family, kind = _question(host)
    try:
        loop = asyncio.get_running_loop()
        return list(addresses_of(await loop.getaddrinfo(name, service, family=family, type=kind)))
    except OSError as exc:
        return exc


def connected(c: _pg.Connection, own: dict[int, _pg.Codec] | None = None) -> None:
    """Types that were looked up before, in the same database, need not be again.

    `own` are codecs of the connection's user, before those of the process. Of them others may be
    made: then it looks up by itself.
    """
    process = _process.current()
    known = {} if own else process.known_in(_database(c))
    set_ones = {**process.codecs, **(own or {})}
    c._codecs.clear()
    c._codecs.update({**known, **set_ones})
    c._introspect = _types.builder(known, set_ones, c._codecs, wishes=process.wishes)


def dress(c: _pg.Connection, codecs: Mapping[int, _pg.Codec]) -> list[int]:
    """Have a face's codecs, but for those that the user has set; gives the types' oids."""
    missing = [oid for oid in codecs if oid not in c._codecs]
    c._codecs.update({oid: codecs[oid] for oid in missing})
    return missing


def forget_types(c: _pg.Connection, own: dict[int, _pg.Codec] | None = None) -> None:
    """Have them looked up again, by new connections to this database, too."""
    _process.current().known.pop(_database(c), None)
    connected(c, own)


def _database(c: _pg.Connection) -> tuple[Any, ...]:
    options = c._options()
    return tuple(options.get(key) for key in ("hostaddr", "host", "port", "dbname"))


def check_command_timeout(value: Any) -> float | None:
    """connect()'s option, which both faces have; ValueError."""
    if value is None:
        return None
    try:
        seconds = 0.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if seconds <= 0:
        raise ValueError(
            f"invalid command_timeout value: expected greater than 0 float (got {value!r})"
        )
    return seconds
