"""Roles: a pool that writes on the primary, and reads on standbys.

Such a pool has two hearts, each with a Role that says to which of the servers it connects, in what
order, and when a connection is to the right one no more. The server itself tells what it is: libpq
looks for that when it connects, and PostgreSQL from 14 on reports it when it changes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from greenletio import _pg
from greenletio._hosts import Host, hosts_of
from greenletio.pg._conninfo import conninfo, options_of
from greenletio.pg._pool_parts import Ask, Limits, Steps
from greenletio.pg.errors import CannotConnect

if TYPE_CHECKING:
    from greenletio.pg._pool import Core
    from greenletio.pg._pool_slot import Slot

__all__ = ("Readers", "Role", "Writers", "set_roles")

#: Seconds for which a host is tried after the others when it failed, or had the other role; twice
#: as many each time, up to the second number.
AVOID, AVOID_MOST = 0.5, 30.0
#: Seconds after which a connection that reads on the primary, since there was no standby, is made
#: anew; and one of which nothing tells what role its server has (before 14, or behind a pooler).
LOOK_AGAIN, LOOK_AGAIN_UNTOLD = 5.0, 60.0
#: Seconds for one host, where nothing else is said: one that is frozen must not stop a fail-over.
CONNECT_TIMEOUT = "5"
#: Seconds for which a standby that lags is not asked.
LAGS = 5.0
#: Seconds that the question for the lag may take.
LAG_TIMEOUT = 5.0
#: Seconds to wait, one after the other, until a standby has replayed what it has just been sent.
SOON = 0.01, 0.04, 0.2

# A standby that has replayed all that it was sent does not lag, however long nobody has written.
LAG = """
SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN 0
            WHEN received = pg_catalog.pg_last_wal_replay_lsn() THEN 0
            ELSE coalesce(extract(epoch FROM pg_catalog.clock_timestamp()
                                  - pg_catalog.pg_last_xact_replay_timestamp()), 'Infinity')
       END::float8,
       received::text
FROM (SELECT CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_stat_get_wal_receiver() WHERE pid > 0)
                  THEN pg_catalog.pg_last_wal_receive_lsn() END AS received) AS receiver
"""
REPLAYED = """
SELECT pg_catalog.pg_last_wal_replay_lsn() >= $1::text::pg_catalog.pg_lsn
FROM pg_catalog.pg_sleep($2)
"""


def _dsn(given: Mapping[str, Any]) -> str | None:
    """The connection string, without a URL's parameters that are the server's settings."""
    from greenletio.pg.aio import _connect

    return _connect.settings_of(given.get("dsn"))[0]


class Role:
    """Which servers a heart of a pool connects to."""

    attributes = ""  # libpq's target_session_attrs

    def __init__(self) -> None:
        self._avoided: dict[Host, tuple[float, float]] = {}  # until when, for how long
        self._last: Host | None = None
        self.evicted = 0

    # ---- connecting

    def options(self, given: Mapping[str, Any], slot: Slot) -> dict[str, Any]:
        """What connect() is given for a new connection."""
        names = ("host", "hostaddr", "port", "connect_timeout", "service")
        named = {name: given[name] for name in names if given.get(name) is not None}
        options = options_of(_dsn(given), named)
        probe = {**options, "sslmode": "only-read-the-options"}
        found = _pg.complete_conninfo(conninfo(probe))
        hosts = hosts_of(found)
        made = {**given, "target_session_attrs": self.attributes}
        if not found.get("connect_timeout"):
            made["connect_timeout"] = CONNECT_TIMEOUT
        slot.tried = []
        if hosts is not None:  # else libpq says what is wrong
            slot.tried = self._order(list(dict.fromkeys(hosts)))
            made["host"] = [host.host for host in slot.tried]
            made["port"] = [host.port for host in slot.tried]
            if any(host.hostaddr for host in slot.tried):
                made["hostaddr"] = [host.hostaddr for host in slot.tried]
        return made

    def _order(self, hosts: list[Host]) -> list[Host]:
        now = monotonic()
        until = {host: self._avoided.get(host, (0.0, 0.0))[0] for host in hosts}
        good = self._prefer([host for host in hosts if until[host] <= now])
        return good + sorted((h for h in hosts if until[h] > now), key=until.__getitem__)

    def _prefer(self, hosts: list[Host]) -> list[Host]:
        raise NotImplementedError

    def connected(self, slot: Slot) -> None:
        """It is connected: what that says of the hosts that were tried."""
        options = slot.con._options()
        place = (options.get("host", ""), options.get("port", ""))
        slot.standby = slot.con._parameter("in_hot_standby")
        slot.looked = 0.0
        slot.host = next((h for h in slot.tried if (h.host, h.port or place[1]) == place), None)
        if slot.host is not None:
            self._avoided.pop(slot.host, None)
            self._last = slot.host
            if self._is_wanted(slot):
                for host in slot.tried[: slot.tried.index(slot.host)]:
                    self.avoid(host)

    def _is_wanted(self, slot: Slot) -> bool:
        """Whether it has the role that is looked for first."""
        return True

    def avoid(self, host: Host | None) -> None:
        """Others are tried before it, for a while."""
        if host is not None:
            seconds = min(2 * self._avoided.get(host, (0.0, 0.0))[1] or AVOID, AVOID_MOST)
            self._avoided[host] = monotonic() + seconds, seconds

    # ---- connections that there are

    def is_over(self, slot: Slot) -> bool:
        """Whether its server has another role by now."""
        raise NotImplementedError

    def wants_look(self, slot: Slot) -> bool:
        """Whether look() is to be asked before it is used."""
        return False

    def look(self, slot: Slot, end: float) -> Steps:
        """The steps to whether it may be used, which whoever asks waits for up to `end`
        (monotonic)."""
        raise NotImplementedError

    def refuses(self, slot: Slot) -> bool:
        """Whether its server takes no writes, so that the others are of no use either."""
        return False


class Writers(Role):
    """The one that can write."""

    attributes = "read-write"

    def _prefer(self, hosts: list[Host]) -> list[Host]:
        return sorted(hosts, key=lambda host: host != self._last)

    def is_over(self, slot: Slot) -> bool:
        con = slot.con
        standby = con._parameter("in_hot_standby")
        if standby == "on":
            return True
        # A transaction that the program has made read-only is the program's own affair. What a
        # pooler has told when one connected may be of another server.
        untold = standby is None or con._pooler
        return con._refused_write and (untold or self.refuses(slot))

    def refuses(self, slot: Slot) -> bool:
        con = slot.con
        told = con._parameter("in_hot_standby"), con._parameter("default_transaction_read_only")
        return con._refused_write and "on" in told


class Readers(Role):
    """Standbys; or if there is none, and that is wanted, the primary."""

    def __init__(self, fallback: bool, max_lag: float | None) -> None:
        super().__init__()
        self.attributes = "prefer-standby" if fallback else "standby"
        self._max_lag = max_lag
        self._lagging: dict[Host, float] = {}  # until when

    def options(self, given: Mapping[str, Any], slot: Slot) -> dict[str, Any]:
        made = super().options(given, slot)
        if not given.get("pooler"):  # it stays so when the server is promoted
            settings = given.get("server_settings") or {}
            made["server_settings"] = {**settings, "default_transaction_read_only": "on"}
        return made

    def _order(self, hosts: list[Host]) -> list[Host]:
        now = monotonic()
        current = [host for host in hosts if self._lagging.get(host, 0.0) <= now]
        if not current:
            raise CannotConnect(f"every standby lags by more than {self._max_lag} s")
        return super()._order(current)

    def _prefer(self, hosts: list[Host]) -> list[Host]:
        return random.sample(hosts, len(hosts))

    def _is_wanted(self, slot: Slot) -> bool:
        return slot.standby == "on"

    def connected(self, slot: Slot) -> None:
        super().connected(slot)
        untold = slot.standby is None or slot.con._pooler
        if slot.standby != "on" or untold:
            seconds = LOOK_AGAIN_UNTOLD if untold else LOOK_AGAIN
            slot.expires = min(slot.expires, monotonic() + seconds)

    def is_over(self, slot: Slot) -> bool:
        return slot.con._parameter("in_hot_standby") != slot.standby

    def wants_look(self, slot: Slot) -> bool:
        limit = self._max_lag
        return limit is not None and monotonic() >= slot.looked + min(limit / 2, LAGS)

    def _ask(self, slot: Slot, end: float, want: str, query: str, *args: Any) -> Ask:
        left = min(LAG_TIMEOUT, max(0.0, end - monotonic()))
        return Ask(slot.con._op("query", want, query, args, timeout=left, plain=True))

    def look(self, slot: Slot, end: float) -> Steps:
        limit = float("inf") if self._max_lag is None else self._max_lag
        lag, received = yield self._ask(slot, end, "record", LAG)
        if lag > limit and received is not None:
            # What it was sent just now, after a time without writes, it does not lag by.
            lag = 0.0
            for seconds in SOON:
                lag += seconds
                if (yield self._ask(slot, end, "value", REPLAYED, received, seconds)):
                    break
            else:
                lag = float("inf")
        slot.looked = monotonic()
        if lag <= limit:
            return True
        if slot.host is not None:
            self._lagging[slot.host] = monotonic() + LAGS
        return False


def set_roles(
    core: Core, size: int, options: Mapping[str, Any], fallback: bool, max_lag: float | None
) -> None:
    """Give a pool a second heart, for reading, if `size` is more than 0. ValueError."""
    from greenletio.pg._pool import Core

    if size < 0:
        raise ValueError("readonly is expected to be a number of connections")
    if max_lag is not None and not max_lag > 0:
        raise ValueError("max_lag is expected to be a number of seconds greater than zero")
    if not size:
        if max_lag is not None or not fallback:
            raise ValueError("readonly_fallback and max_lag are for pools with readonly=…")
        return
    named = options_of(_dsn(options), {})
    if options.get("target_session_attrs") or named.get("target_session_attrs"):
        raise ValueError("a pool with readonly=… looks for the roles: without target_session_attrs")
    limits = core.limits
    core.role = Writers()
    core.readers = Core(
        core.face,
        Limits(
            0,
            int(size),
            max_waiting=limits.max_waiting,
            max_lifetime=limits.max_lifetime,
            max_idle=limits.max_idle,
            max_uses=limits.max_uses,
        ),
        f"{core.name} (readonly)",
    )
    core.readers.role = Readers(fallback, max_lag)
