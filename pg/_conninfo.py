"""Connection strings: what the caller gave, completed by libpq, as the attempts to make in turn."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from greenletio import _pg
from greenletio._hosts import Host, hosts_of, needs_resolving, passes_of
from greenletio.pg.errors import CannotConnect, ProgrammingError

__all__ = ("attempts", "conninfo", "options_of")

Options = dict[str, str]


def conninfo(options: Mapping[str, str]) -> str:
    """The options as libpq's connection string."""
    parts = []
    for key, value in options.items():
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        parts.append(f"{key}='{quoted}'")
    return " ".join(parts)


def options_of(dsn: str | None, given: Mapping[str, Any]) -> Options:
    """The options of a connection string or URL, and of keywords, which go before it."""
    if dsn and "\0" in dsn:
        raise ProgrammingError("the connection string has a NUL character in it")
    options = _pg.parse_conninfo(dsn) if dsn else {}
    for key, value in given.items():
        if value is None:
            continue
        if isinstance(value, bool):
            value = int(value)
        elif isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        options["dbname" if key == "database" else key] = str(value)
    for key, value in options.items():
        if "\0" in value:
            raise ProgrammingError(f"the connection option {key} has a NUL character in it")
    options.setdefault("fallback_application_name", "greenletio")
    options["client_encoding"] = "UTF8"  # whatever the environment says: text is decoded here
    _pg.parse_conninfo(conninfo(options))  # says what is wrong with them
    return options


def attempts(options: Options) -> Generator[Host | str, list[str] | OSError | None, None]:
    """What to try in turn: a connection string each.

    A Host is to be resolved: the addresses are to be sent in, or what went wrong.
    """
    # The impossible sslmode makes libpq stop after it has read the options, before any address.
    probe = _pg.complete_conninfo(conninfo({**options, "sslmode": "only-read-the-options"}))
    hosts = hosts_of(probe)
    if hosts is None or (len(hosts) == 1 and not needs_resolving(hosts[0])):
        yield conninfo(options)
        return
    failed: dict[Host, OSError] = {}
    resolved: dict[Host, list[str]] = {}
    for overrides in passes_of(probe):
        for host in hosts:
            if needs_resolving(host) and host not in resolved and host not in failed:
                answer = yield host
                if isinstance(answer, OSError):
                    failed[host] = answer
                else:
                    resolved[host] = answer or []
            for address in resolved.get(host, [] if host in failed else [host.hostaddr]):
                target = {"host": host.host, "hostaddr": address, "port": host.port}
                yield conninfo({**options, **target, **overrides})
    if failed:
        raise CannotConnect(
            "\n".join(
                f'could not translate host name "{host.host}" to address: {exc.strerror}'
                for host, exc in failed.items()
            )
        )


def connect_timeout(options: Options) -> float | None:
    """Seconds that one attempt may take; None: no limit."""
    probe = _pg.complete_conninfo(conninfo({**options, "sslmode": "only-read-the-options"}))
    try:
        seconds = float(probe.get("connect_timeout") or 0)
    except ValueError:
        seconds = 0.0  # libpq says what is wrong with it
    return seconds if seconds > 0 else None
