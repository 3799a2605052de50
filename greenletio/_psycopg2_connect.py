"""``psycopg2.connect`` that never holds the loop: one attempt per address, names in a thread.

libpq resolves names while it starts to connect, blocking, and leaves ``connect_timeout`` to its
blocking calls. So the hosts are split here, and each address becomes an attempt of its own, whose
time the wait callback limits.
"""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

import psycopg2
import psycopg2.extensions as ext

from . import _pq
from ._threads import run_in_thread

__all__ = ("connector",)


class _Host(NamedTuple):
    """One entry of a connection string's list of hosts; "" stands for libpq's default."""

    host: str
    hostaddr: str
    port: str


def connector(original: Callable[..., Any]) -> Callable[..., Any]:
    """What takes the place of ``psycopg2._connect``; the attempts are made by ``original``."""

    def connect(
        dsn: str, connection_factory: Callable[..., Any] | None = None, **kwargs: Any
    ) -> Any:
        if kwargs.pop("async", 0) or kwargs.pop("async_", 0):
            return original(dsn, connection_factory, async_=1)
        _pq.check_place("psycopg2.connect()")
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
    hosts = _hosts(options)
    if hosts is None or (len(hosts) == 1 and not _needs_resolving(hosts[0])):
        yield dsn
        return
    if options.get("load_balance_hosts") == "random":
        random.shuffle(hosts)
    passes: list[dict[str, str]] = [{}]
    if options.get("target_session_attrs") == "prefer-standby":
        # Of one host alone libpq takes what it finds: look for a standby on all of them first.
        passes = [{"target_session_attrs": "standby"}, {"target_session_attrs": "any"}]
    for overrides in passes:
        for host in hosts:
            try:
                addresses = _resolve(host) if _needs_resolving(host) else [host.hostaddr]
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


def _hosts(options: dict[str, str]) -> list[_Host] | None:
    """The hosts in order; None when the lists do not match, which libpq can tell best itself."""
    lists = [value.split(",") if (value := options.get(key)) else [] for key in _Host._fields]
    host, hostaddr, port = lists
    count = len(hostaddr) or len(host) or 1
    if len(port) == 1:
        port *= count
    if any(len(values) not in (0, count) for values in lists):
        return None
    return [_Host(*fields) for fields in zip_longest(*lists, fillvalue="")]


def _needs_resolving(host: _Host) -> bool:
    if host.hostaddr or not host.host or host.host[0] in "/@":
        return False
    try:
        ipaddress.ip_address(host.host.partition("%")[0])
    except ValueError:
        return True
    return False


def _resolve(host: _Host) -> list[str]:
    """A name's addresses, as libpq would try them. Waits as the caller's place says."""
    found = run_in_thread(socket.getaddrinfo, host.host, None, socket.AF_UNSPEC, socket.SOCK_STREAM)
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    return list(dict.fromkeys(socket.getnameinfo(entry[4], numeric)[0] for entry in found))
