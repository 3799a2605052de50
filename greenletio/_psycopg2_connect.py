"""``psycopg2.connect`` that never holds the loop: one attempt per address, names in a thread.

libpq resolves names while it starts to connect, blocking, and leaves ``connect_timeout`` to its
blocking calls. So the hosts are split here, and each address becomes an attempt of its own, whose
time the wait callback limits.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import psycopg2.extensions as ext

from . import _pq
from ._hosts import Host, addresses_of, hosts_of, needs_resolving, passes_of
from ._orms import check_caller
from ._threads import run_in_thread

__all__ = ("connector",)


def connector(original: Callable[..., Any]) -> Callable[..., Any]:
    """What takes the place of ``psycopg2._connect``; the attempts are made by ``original``."""

    def connect(
        dsn: str, connection_factory: Callable[..., Any] | None = None, **kwargs: Any
    ) -> Any:
        if kwargs.pop("async", 0) or kwargs.pop("async_", 0):
            return original(dsn, connection_factory, async_=1)
        _pq.check_place("psycopg2.connect()")
        check_caller()
        errors: list[psycopg2.OperationalError] = []
        for attempt in _attempts(dsn):
            if isinstance(attempt, psycopg2.OperationalError):
                errors.append(attempt)
                continue
            try:
                return original(attempt, connection_factory)
            except psycopg2.OperationalError as exc:
                errors.append(exc)
        if len(errors) == 1:
            raise errors[0]
        raise psycopg2.OperationalError(
            "\n".join(str(error).rstrip("\n") for error in errors) + "\n"
        ) from errors[-1]

    return connect


def _attempts(dsn: str) -> Iterator[str | psycopg2.OperationalError]:
    """The connection strings to try in turn, or in their place why one cannot be tried."""
    options = _options(dsn)
    hosts = hosts_of(options)
    if hosts is None or (len(hosts) == 1 and not needs_resolving(hosts[0])):
        yield dsn
        return
    for overrides in passes_of(options):
        for host in hosts:
            try:
                addresses = _resolve(host) if needs_resolving(host) else [host.hostaddr]
            except OSError as exc:
                yield psycopg2.OperationalError(
                    f'could not translate host name "{host.host}" to address: {exc.strerror}'
                )
                continue
            for address in addresses:
                target = {"host": host.host, "hostaddr": address, "port": host.port}
                yield ext.make_dsn(dsn, **target, **overrides)


def _options(dsn: str) -> dict[str, str]:
    """What libpq makes of a connection string with its environment and its service files."""
    # The impossible sslmode makes libpq stop after it has read the options, before any address.
    return _pq.conninfo(ext.make_dsn(dsn, sslmode="only-read-the-options"))


def _resolve(host: Host) -> list[str]:
    """A name's addresses, as libpq would try them. Waits as the caller's place says."""
    found = run_in_thread(socket.getaddrinfo, host.host, None, socket.AF_UNSPEC, socket.SOCK_STREAM)
    return list(addresses_of(found))
