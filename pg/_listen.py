"""The heart of a Listener: a connection that listens, and another one in its place when it is lost.

What looks after it is one task, in the loop of whoever opened it, or where there is none in a loop
of its own in a thread. What waits is written once, as the pool's steps, for both faces.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import random
import signal
import threading
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from greenletio import _core
from greenletio.pg._errors import DatabaseError, InterfaceError, OperationalError
from greenletio.pg._pool_connect import Run
from greenletio.pg._pool_parts import Ask, PoolClosed, Steps, Wait, reason, wait
from greenletio.pg._quote import quoted
from greenletio.pg.errors import ConnectionClosed

if TYPE_CHECKING:
    from greenletio.pg.aio._connection import Connection

__all__ = ("Core", "Gap", "Notification")

logger = logging.getLogger("greenletio.pg")

INF = float("inf")
#: Seconds before a connection is made again that was lost again within STEADY seconds, or that
#: could not be made; it doubles up to the second number.
AGAIN, AGAIN_MOST, STEADY = 0.1, 30.0, 5.0
#: Seconds that a clean end may take.
END_TIMEOUT = 5.0

LOST = (OperationalError, ConnectionClosed, OSError, asyncio.TimeoutError)


@dataclass(frozen=True)
class Notification:
    """What somebody has sent by NOTIFY."""

    channel: str
    payload: str
    #: The process of the server that serves whoever has sent it.
    pid: int


@dataclass(frozen=True)
class Gap:
    """Notifications may be missing here: read again whatever they would have told of.

    It comes when the channels are listened to again: what changed before it is to be read, what
    changes from now on is notified.
    """

    #: Why the connection was lost; None: it was not, there was no room.
    error: BaseException | None = None
    #: How many had no room, since nobody has taken those before them.
    dropped: int = 0


Event = Notification | Gap


class Inbox:
    """Events in their order, up to `size`; what does not fit is dropped, and a Gap tells of it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._events: deque[Event] = deque()
        self._waiting: list[_core.Waiter[None]] = []
        self._mutex = threading.Lock()  # held for a few instructions
        self._ended = False

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> None:
        """From any thread; never waits."""
        with self._mutex:
            events = self._events
            last = events[-1] if events else None
            if isinstance(event, Gap):
                if isinstance(last, Gap):
                    events[-1] = replace(last, error=event.error)
                else:
                    events.append(event)
            elif len(events) < self._size:
                events.append(event)
            elif isinstance(last, Gap):
                events[-1] = replace(last, dropped=last.dropped + 1)
            else:
                events.append(Gap(dropped=1))
            waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.set(None)

    def end(self) -> None:
        """Nothing more comes; what is there may be taken."""
        with self._mutex:
            self._ended = True
            waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.set(None)

    def get(self, timeout: float) -> Steps:
        """The steps to the next one; None when it has ended; TimeoutError after so many seconds."""
        end = monotonic() + timeout
        while True:
            with self._mutex:
                if self._events:
                    return self._events.popleft()
                if self._ended:
                    return None
                waiter: _core.Waiter[None] = _core.Waiter()
                self._waiting.append(waiter)
            in_time = False
            try:
                in_time = yield Wait(waiter, max(0.0, end - monotonic()))
            finally:
                if not in_time:
                    with self._mutex:
                        if waiter in self._waiting:
                            self._waiting.remove(waiter)
            if not in_time:
                raise asyncio.TimeoutError("nothing was notified in time")


class Turn:
    """Who may use the connection: one after the other, from any loop or thread."""

    def __init__(self) -> None:
        self._waiting: deque[_core.Waiter[None]] = deque()
        self._mutex = threading.Lock()  # held for a few instructions
        self._taken = False

    def take_now(self) -> bool:
        """Whether nobody had it."""
        with self._mutex:
            was_taken, self._taken = self._taken, True
        return not was_taken

    def take(self, timeout: float) -> Steps:
        with self._mutex:
            if not self._taken:
                self._taken = True
                return
            waiter: _core.Waiter[None] = _core.Waiter()
            self._waiting.append(waiter)
        in_time = False
        try:
            in_time = yield Wait(waiter, timeout)
        finally:
            if not in_time:
                with self._mutex:
                    # give() passes over one that was cancelled, or that the timer was first to set.
                    given = waiter.done() and not waiter.cancelled() and waiter.result() is None
                    if waiter in self._waiting:
                        self._waiting.remove(waiter)
                if given:
                    self.give()
        if not in_time:
            raise asyncio.TimeoutError("the listener's connection was in use all the time")

    def give(self) -> None:
        """To the one who has waited longest."""
        with self._mutex:
            while self._waiting:
                if self._waiting.popleft().set(None):
                    return
            self._taken = False


class Source(Protocol):
    """Where the connections come from."""

    async def take(self, timeout: float) -> Connection: ...
    async def leave(self, con: Connection) -> None: ...


class Core:
    """The channels, who is told of what comes on them, and the task that keeps a connection."""

    def __init__(
        self,
        source: Source,
        channels: Iterable[str],
        *,
        buffer: int,
        heartbeat: float | None,
        answer_within: float,
        connect_within: float,
        give_up_after: float | None,
    ) -> None:
        if buffer <= 0:
            raise ValueError("buffer is expected to be a number of events greater than zero")
        for name, seconds in (
            ("heartbeat", heartbeat),
            ("answer_within", answer_within),
            ("connect_within", connect_within),
            ("give_up_after", give_up_after),
        ):
            if seconds is not None and not seconds > 0:
                raise ValueError(f"{name} is expected to be a number of seconds greater than zero")
        if isinstance(channels, str):
            raise TypeError("channels is expected to be a list of names, not one str")
        self._source = source
        self.channels: dict[str, list[Callable[[Any], Any]]] = {}
        for channel in channels:
            self.channels[_checked(channel)] = []
        self._heartbeat = INF if heartbeat is None else heartbeat
        self._answer_within = answer_within
        self._connect_within = connect_within
        self._give_up_after = INF if give_up_after is None else give_up_after
        self.inbox = Inbox(buffer)
        self._calls = Inbox(buffer)  # for those who are called
        self.turn = Turn()
        self.con: Connection | None = None
        self._listening: set[str] = set()  # what the server knows of them
        self._listens = False  # it has been told of them
        self._changed: list[_core.Waiter[None]] = []  # of those who wait for a connection
        self._mutex = threading.Lock()  # held for a few instructions
        self._task: asyncio.Task[None] | None = None
        self._pid = 0
        self._over = False  # nothing of it is left
        self._news: _core.Waiter[None] = _core.Waiter()
        self.error: BaseException | None = None  # what ended it
        self.closed = False  # or not opened
        self.connects = 0

    # ---- its life

    def open(self) -> Steps:
        """The steps to the first connection; what that fails with is raised."""
        if self._pid:
            raise InterfaceError("a listener is opened once: make another one")
        self._pid = os.getpid()
        started: _core.Waiter[None] = _core.Waiter()
        loop = _get_running_loop()
        if loop is not None:
            self._task = loop.create_task(self._main(started))
            # Cancelled before its first step it would end without a word.
            self._task.add_done_callback(lambda _: self._ended(started))
        else:
            _thread.start_new_thread(self._in_thread, (started,))
        try:
            yield Wait(started, INF)
        except BaseException:
            self.stop()
            raise
        started.result()

    def _in_thread(self, started: _core.Waiter[None]) -> None:
        # Signals are for the threads of the program.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})

        async def main() -> None:
            self._task = asyncio.current_task()
            if not self.closed:  # stop() has not come before
                await self._main(started)

        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            pass
        except BaseException as exc:
            started.set_exception(exc)
        finally:
            self._ended(started)

    def stop(self) -> None:
        """Nothing more is heard; from any thread, and never waits."""
        self.closed = True
        task = self._task
        if task is None or task.done() or self._pid != os.getpid():
            return
        loop = task.get_loop()
        if loop is _get_running_loop():
            task.cancel()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(task.cancel)

    def close(self) -> Steps:
        """The steps to its end, which can be cancelled: it ends then by itself."""
        self.stop()
        if self._pid == os.getpid():
            end = monotonic() + 2 * END_TIMEOUT
            yield from self._until(lambda: self._over, end, "the listener did not end in time")

    async def _main(self, started: _core.Waiter[None]) -> None:
        caller = asyncio.get_running_loop().create_task(self._call())
        try:
            await self._attend(started)
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            if started.done():
                self.error = exc
                logger.warning("a listener gives up: %s", exc)
            else:
                started.set_exception(exc)
        finally:
            self.closed = True
            caller.cancel()
            try:
                await self._leave()
            finally:
                self._ended(started)

    def _ended(self, started: _core.Waiter[None]) -> None:
        """Nothing of it is left: whoever waits is told. Again: nothing."""
        self.closed = self._over = True
        self.inbox.end()
        self._tell_changed()
        if not started.done():
            started.set_exception(ConnectionClosed("the listener was closed"))

    async def _attend(self, started: _core.Waiter[None]) -> None:
        """Connect, again and again."""
        delay, since, lost = 0.0, monotonic(), None
        while True:
            if delay:
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            try:
                con = await self._open()
            except PoolClosed:
                raise
            except (DatabaseError, *LOST) as exc:
                if not started.done() or monotonic() - since >= self._give_up_after:
                    raise
                logger.warning("a listener cannot connect, it tries again: %s", reason(exc))
                await self._leave()
                delay = min(2 * delay or AGAIN, AGAIN_MOST)
                continue
            began = monotonic()
            if lost is not None:
                self._tell(Gap(lost))
            started.set(None)
            lost = await self._watch(con)
            logger.warning("a listener has lost its connection: %s", reason(lost))
            since = monotonic()
            delay = 0.0 if since - began >= STEADY else min(2 * delay or AGAIN, AGAIN_MOST)
            await self._leave()

    async def _open(self) -> Connection:
        con = await self._source.take(self._connect_within)
        self.con = con
        if con._pooler:
            raise InterfaceError(
                "LISTEN needs a session of one's own: this connection is to a transaction pooler"
            )
        con.cancel_timeout = min(con.cancel_timeout, self._answer_within)
        con.add_termination_listener(self._terminated)
        channels = list(self.channels)
        for channel in channels:
            con._listeners[channel] = [self._heard]
        script = "; ".join(f"LISTEN {quoted(channel)}" for channel in channels)
        await con._op("script", "status", script, timeout=self._answer_within)
        with self._mutex:
            self._listening = set(channels)
            self._listens = True
            self.connects += 1
        self._tell_changed()
        return con

    async def _watch(self, con: Connection) -> BaseException:
        """Until it is lost: why."""
        while True:
            waiter: _core.Waiter[None] = _core.Waiter()
            self._news = waiter
            if con.is_closed():
                return ConnectionClosed("the server, or the network, has closed the connection")
            await Wait(waiter, self._heartbeat).wait()
            if con.is_closed() or not self.turn.take_now():
                continue  # who uses it finds out
            try:
                await con._op("script", "status", "", timeout=self._answer_within)
            except LOST as exc:
                con.terminate()
                if isinstance(exc, asyncio.TimeoutError | TimeoutError):
                    return OperationalError(
                        f"the server did not answer within {self._answer_within} s"
                    )
                return exc
            finally:
                self.turn.give()

    async def _leave(self) -> None:
        """Give the connection back, or close it."""
        con, self.con = self.con, None
        self._listens = False
        if con is None:
            return
        con._listeners.clear()
        con.remove_termination_listener(self._terminated)
        try:
            await asyncio.wait_for(self._source.leave(con), END_TIMEOUT)
        except LOST:
            con.terminate()
        except asyncio.CancelledError:
            con.terminate()
            raise

    def _terminated(self, con: Connection) -> None:
        self._news.set(None)

    # ---- what comes

    def _heard(self, con: Connection, pid: int, channel: str, payload: str) -> None:
        self._tell(Notification(channel, payload, pid))

    def _tell(self, event: Event) -> None:
        with self._mutex:
            called = any(self.channels.values())
            if isinstance(event, Notification):
                functions = self.channels.get(event.channel)
                if functions is None:
                    return  # it was on its way when the channel was removed
                called = bool(functions)
        if called:
            self._calls.put(event)
        if isinstance(event, Gap) or not called:
            self.inbox.put(event)

    async def _call(self) -> None:
        """Call whoever wants to be called, one after the other."""
        while True:
            event = await wait(self._calls.get(INF))
            with self._mutex:
                lists = list(self.channels.values())
                if isinstance(event, Notification):
                    lists = [self.channels.get(event.channel, [])]
                functions = list(dict.fromkeys(one for each in lists for one in each))
            for function in functions:
                try:
                    await Run(function, event).wait()
                except asyncio.CancelledError:
                    if self.closed:
                        raise
                    logger.exception("%r, called for %r, was cancelled", function, event)
                except Exception:
                    logger.exception("%r, called for %r, failed", function, event)

    # ---- what is asked of it

    @property
    def running(self) -> bool:
        """Whether it was opened here, and has not ended."""
        return self._pid == os.getpid() and not self.closed

    def check(self) -> None:
        if self._pid != os.getpid():
            raise InterfaceError(
                "the listener is its parent process's: make another one"
                if self._pid
                else "the listener is not open: use it as `with Listener(…)`, or call open()"
            )
        if self.closed:
            raise self._end()

    def _end(self) -> BaseException:
        error = ConnectionClosed("the listener is closed")
        error.__cause__ = self.error
        return error

    def next(self, timeout: float) -> Steps:
        """The steps to the next event; None if there will be no more, for it was closed."""
        if self._pid != os.getpid():
            self.check()
        event = yield from self.inbox.get(timeout)
        if event is None and self.error is not None:
            raise self._end() from self.error
        return event

    def _connected(self, end: float) -> Steps:
        """The steps to a connection that listens."""

        def ready() -> Connection | None:
            self.check()
            con = self.con
            return con if con is not None and self._listens and not con.is_closed() else None

        return self._until(ready, end, "the listener had no connection in time")

    def _until(self, ready: Callable[[], Any], end: float, otherwise: str) -> Steps:
        while True:
            waiter: _core.Waiter[None] = _core.Waiter()
            with self._mutex:
                self._changed.append(waiter)
            try:
                found = ready()
                if found:
                    return found
                if not (yield Wait(waiter, max(0.0, end - monotonic()))):
                    raise asyncio.TimeoutError(otherwise)
            finally:
                with self._mutex:
                    if waiter in self._changed:
                        self._changed.remove(waiter)

    def _tell_changed(self) -> None:
        with self._mutex:
            waiting, self._changed = self._changed, []
        for waiter in waiting:
            waiter.set(None)

    def use(self, timeout: float) -> Steps:
        """The steps to the connection, for oneself until ``turn.give()``."""
        self.check()
        end = monotonic() + timeout
        yield from self.turn.take(timeout)
        try:
            return (yield from self._connected(end))
        except BaseException:
            self.turn.give()
            raise

    def used(self, con: Connection) -> Steps:
        """The steps to the end of use(): a transaction that was left open is undone."""
        try:
            if not con.is_closed() and con._transaction_status != 0:
                yield Ask(con._op("script", "status", "ROLLBACK", timeout=self._answer_within))
        except LOST:
            con.terminate()
        except BaseException:  # with a transaction open, nothing would be heard
            con.terminate()
            raise
        finally:
            self._give_turn()

    def _give_turn(self) -> None:
        self.turn.give()
        task = self._task
        if task is not None and task.get_loop() is not _get_running_loop():
            self._news.set(
                None
            )  # the task's loop has lost the connection to ours, and takes it back

    def add(self, channel: str, function: Callable[[Any], Any] | None, timeout: float) -> Steps:
        """The steps to a channel that is listened to."""
        self.check()
        end = monotonic() + timeout
        yield from self._in_turn(self._add(_checked(channel), function, end), end)

    def _add(self, channel: str, function: Callable[[Any], Any] | None, end: float) -> Steps:
        """In turn: of two that add the same, the second one finds what has come of the first."""
        with self._mutex:
            is_new = channel not in self.channels
            functions = self.channels.setdefault(channel, [])
            known = function is None or function in functions
            if not known:
                functions.append(function)  # type: ignore[arg-type]
        try:
            yield from self._bring(channel, "LISTEN", end)
        except BaseException:
            with self._mutex:
                if not known and function in functions:
                    functions.remove(function)
                if is_new and not functions and self.channels.get(channel) is functions:
                    del self.channels[channel]  # unless somebody else wants it by now
            raise

    def remove(self, channel: str, function: Callable[[Any], Any] | None, timeout: float) -> Steps:
        """The steps to a channel that is not listened to any more, or not by that function."""
        self.check()
        with self._mutex:
            functions = self.channels.get(channel)
            if functions is None or (function is not None and function not in functions):
                return
            if function is not None:
                functions.remove(function)
                if functions:
                    return
            del self.channels[channel]
        end = monotonic() + timeout
        yield from self._in_turn(self._bring(channel, "UNLISTEN", end), end)

    def _in_turn(self, steps: Steps, end: float) -> Steps:
        yield from self.turn.take(max(0.0, end - monotonic()))
        try:
            yield from steps
        finally:
            self._give_turn()

    def _bring(self, channel: str, verb: str, end: float) -> Steps:
        """Have the server know of it; the next connection knows by itself."""
        while True:
            con: Connection = yield from self._connected(end)
            wanted = verb == "LISTEN"
            if (channel in self._listening) is wanted:
                return
            if wanted:
                con._listeners[channel] = [self._heard]
            sql = f"{verb} {quoted(channel)}"
            left = min(max(0.0, end - monotonic()), self._answer_within)
            try:
                yield Ask(con._op("script", "status", sql, timeout=left))
            except LOST as exc:
                con.terminate()
                if monotonic() >= end:
                    raise asyncio.TimeoutError(f"{sql} was not answered in time") from exc
                continue
            except BaseException:
                con.terminate()  # nobody knows whether it was done
                raise
            if self.con is con:
                with self._mutex:
                    (self._listening.add if wanted else self._listening.discard)(channel)
                if not wanted:
                    con._listeners.pop(channel, None)


def _checked(channel: Any) -> str:
    """A channel's name, as the server can have it."""
    if not isinstance(channel, str):
        raise TypeError(f"a channel's name is a str, not {type(channel).__name__}")
    if not channel or "\0" in channel or len(channel.encode()) > 63:
        raise ValueError(f"a channel's name has 1 to 63 bytes and no NUL, not {channel!r}")
    return channel
