"""The hosts of a libpq connection string: one attempt per address, so that each has its own time.

libpq would resolve names while it starts to connect, blocking, and leaves ``connect_timeout``
to its blocking calls.
"""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

__all__ = ("Host", "addresses_of", "hosts_of", "needs_resolving", "passes_of")


class Host(NamedTuple):
    """One entry of a connection string's list of hosts; "" stands for libpq's default."""

    host: str
    hostaddr: str
    port: str


def hosts_of(options: Mapping[str, str]) -> list[Host] | None:
    """The hosts in the order to try; None when the lists do not match: libpq says that best."""
    lists = [value.split(",") if (value := options.get(key)) else [] for key in Host._fields]
    host, hostaddr, port = lists
    count = len(hostaddr) or len(host) or 1
    if len(port) == 1:
        port *= count
    if any(len(values) not in (0, count) for values in lists):
        return None
    hosts = [Host(*fields) for fields in zip_longest(*lists, fillvalue="")]
    if options.get("load_balance_hosts") == "random":
        random.shuffle(hosts)
    return hosts


def passes_of(options: Mapping[str, str]) -> list[dict[str, str]]:
    """What to change of the options in each pass over the hosts."""
    if options.get("target_session_attrs") == "prefer-standby":
        # Of one host alone libpq takes what it finds: look for a standby on all of them first.
        return [{"target_session_attrs": "standby"}, {"target_session_attrs": "any"}]
    return [{}]


def needs_resolving(host: Host) -> bool:
    if host.hostaddr or not host.host or host.host[0] in "/@":
        return False
    try:
        ipaddress.ip_address(host.host.partition("%")[0])
    except ValueError:
        return True
    return False


def addresses_of(found: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """The addresses in what getaddrinfo gave, as libpq would try them."""
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    yield from dict.fromkeys(socket.getnameinfo(entry[4], numeric)[0] for entry in found)
