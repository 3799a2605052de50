"""greenletio.green.select and .selectors."""

from __future__ import annotations

import errno
import os
import select as std
import socket as std_socket
from typing import Any

import pytest

from greenletio import spawn
from greenletio.green import select, selectors, socket, time

pytestmark = pytest.mark.leaks

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


def by_select(a: Any, timeout: float | None) -> bool:
    return bool(select.select([a], [], [], timeout)[0])


def by_poll(a: Any, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(a, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def by_epoll(a: Any, timeout: float | None) -> bool:
    with select.epoll() as epoll:
        epoll.register(a, select.EPOLLIN)
        return bool(epoll.poll(timeout))


WAYS: list[Any] = [by_select, by_poll]
if hasattr(std, "epoll"):
    WAYS.append(by_epoll)


def by_selector(kind: str) -> Any:
    def wait(a: Any, timeout: float | None) -> bool:
        with getattr(selectors, kind)() as selector:
            selector.register(a, READ)
            return bool(selector.select(timeout))

    wait.__name__ = kind
    return wait


for _kind in ("SelectSelector", "PollSelector", "EpollSelector", "DefaultSelector"):
    if hasattr(selectors, _kind):
        WAYS.append(by_selector(_kind))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["green", "plain"])
def test_waiting(green: Any, way: Any, place: str) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            assert not way(a, 0)
            before = green.ticker.steps
            assert not way(a, 0.01)
            if place == "green":
                assert green.ticker.steps > before
                waiting = spawn(way, a, None)
                time.sleep(0)
                b.send(b"x")
                assert waiting.get()
            else:
                b.send(b"x")
            assert way(a, None) and way(a, 0) and way(a, 10)

    green(main) if place == "green" else main()


def test_select_tells_which(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        c, d = socket.socketpair()
        with a, b, c, d:
            b.send(b"x")
            assert select.select([a, c], [d], []) == ([a], [d], [])
            assert select.select([a, c.fileno()], [], [], 0) == ([a], [], [])
            waiting = spawn(select.select, [c], [], [c], None)
            time.sleep(0)
            d.send(b"x")
            assert waiting.get() == ([c], [], [])
            assert select.select([], [], [], 0.001) == ([], [], [])

    green(main)


def test_urgent_data(green: Any) -> None:
    def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            a = socket.create_connection(server.getsockname())
            b, _ = server.accept()
            with a, b:
                by_selecting = spawn(select.select, [], [], [a])
                poll = select.poll()
                poll.register(a, select.POLLPRI)
                by_polling = spawn(poll.poll)
                time.sleep(0)
                b.send(b"!", socket.MSG_OOB)
                assert by_selecting.get() == ([], [], [a])
                assert by_polling.get() == [(a.fileno(), select.POLLPRI)]

    green(main)


def test_poll_objects(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with b:
            poll = select.poll()
            poll.register(a)
            assert poll.poll() == [(a.fileno(), select.POLLOUT)]
            poll.modify(a, select.POLLIN)
            assert poll.poll(1) == []
            b.close()
            assert poll.poll()[0][1] & select.POLLHUP
            poll.modify(a, 0)
            assert poll.poll() == [(a.fileno(), select.POLLHUP)]  # even if it asks for nothing
            poll.unregister(a)
            assert poll.poll(1) == []
            with pytest.raises(KeyError):
                poll.unregister(a)
            a.close()

    green(main)


def test_a_hangup_wakes_a_poll_that_asks_for_nothing(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a:
            poll = select.poll()
            poll.register(a, 0)
            waiting = spawn(poll.poll)
            time.sleep(0)
            b.close()
            assert waiting.get() == [(a.fileno(), select.POLLHUP)]

    green(main)


@pytest.mark.skipif(not hasattr(std, "epoll"), reason="this system has no epoll")
def test_epoll_objects(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            epoll = select.epoll()
            epoll.register(a, select.EPOLLIN | select.EPOLLET)
            b.send(b"x")
            with select.epoll.fromfd(os.dup(epoll.fileno())) as twin:
                assert twin.poll() == [(a.fileno(), select.EPOLLIN)]
            assert epoll.poll(0.001) == []
            epoll.modify(a, select.EPOLLOUT)
            assert epoll.poll(maxevents=1) == [(a.fileno(), select.EPOLLOUT)]
            epoll.unregister(a)
            waiting = spawn(epoll.poll)
            time.sleep(0)
            epoll.close()
            assert epoll.closed
            with pytest.raises((OSError, ValueError)):
                waiting.get()
            with pytest.raises(ValueError):
                epoll.poll()

    green(main)


def test_bad_descriptors(green: Any) -> None:
    def main() -> None:
        with pytest.raises(ValueError):
            select.select([-1], [], [], 0)
        with pytest.raises(TypeError):
            select.select([object()], [], [], 0)
        with pytest.raises(ValueError):
            select.select([], [], [], -1)
        with pytest.raises(TypeError):
            select.select([], [], [], "1")  # type: ignore[arg-type]
        closed = std_socket.socket()
        fd = closed.fileno()
        closed.close()
        with pytest.raises(OSError) as raised:
            select.select([fd], [], [], 1)
        assert raised.value.errno == errno.EBADF
        poll = select.poll()
        poll.register(fd)
        assert poll.poll() == [(fd, select.POLLNVAL)]

    green(main)


def test_a_selector_tells_both_events(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b, selectors.DefaultSelector() as selector:
            selector.register(a, READ | WRITE, data="a")
            b.send(b"x")
            ((key, events),) = selector.select()
            assert key.data == "a" and events == READ | WRITE

    green(main)


@pytest.mark.parametrize("way", ["select", "poll", "epoll"])
def test_others_run_beside_one_that_is_ready_always(green: Any, way: str) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            if way == "select":
                look = lambda: select.select([], [a], [])  # noqa: E731
            else:
                poll = getattr(select, way)()
                poll.register(a, select.POLLOUT)
                look = poll.poll
            before = green.ticker.steps
            while green.ticker.steps < before + 3:
                look()

    green(main)
