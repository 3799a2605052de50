"""Codecs of the whole process: what connections, of both faces, begin with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from greenletio._pg import BUILTIN, Codec
from greenletio.pg._types import Wish, check_custom, check_format, custom, own_name

__all__ = ("Process", "current", "reset_type_codec", "set_type_codec")

#: How many databases are remembered.
DATABASES = 100


@dataclass(frozen=True)
class Process:
    """What was set so far. It never changes: another one takes its place."""

    #: Of whatever type, by its schema and name.
    wishes: Mapping[tuple[str, str], Wish] = field(default_factory=dict)
    #: Of those that every server has, and their arrays, by oid.
    codecs: Mapping[int, Codec] = field(default_factory=dict)
    #: By database: the codecs of types that were looked up there. The one used last is the last.
    known: dict[tuple[Any, ...], dict[int, Codec]] = field(default_factory=dict)

    def known_in(self, database: tuple[Any, ...]) -> dict[int, Codec]:
        """The codecs of types that were looked up there, to which the caller adds.

        Addresses may be ever new ones, of tunnels and containers: the oldest leaves.
        """
        with _mutex:
            known = self.known[database] = self.known.pop(database, {})
            if len(self.known) > DATABASES:
                del self.known[next(iter(self.known))]
        return known


_current = Process()
_mutex = threading.Lock()


def current() -> Process:
    """What a new connection begins with."""
    return _current


def set_type_codec(
    typename: str,
    *,
    schema: str = "public",
    encoder: Callable[[Any], Any],
    decoder: Callable[[Any], Any],
    format: str = "text",
) -> None:
    """Have values of a type be read and written by functions of yours, on every connection of the
    process, of both faces, that is opened from now on.

    As ``Connection.set_type_codec()``, which comes before it; `format` is "text", "binary" or
    "tuple". Nothing is asked of a server: where a database has no such type it is of no
    consequence, and that a type can have no codec (a domain, an array, a range) is said by the
    query that meets it. Never waits.
    """
    check_format(format)
    if not callable(encoder) or not callable(decoder):
        raise TypeError("a codec's encoder and decoder are callables")
    _set(own_name(schema, typename), Wish(encoder, decoder, format))


def reset_type_codec(typename: str, *, schema: str = "public") -> None:
    """Undo set_type_codec(), for connections that are opened from now on."""
    _set(own_name(schema, typename), None)


def _set(name: tuple[str, str], wish: Wish | None) -> None:
    global _current
    with _mutex:
        wishes = {**_current.wishes, name: wish}
        given = {name: wish for name, wish in wishes.items() if wish is not None}
        _current = Process(given, _builtin(given))


def _builtin(wishes: Mapping[tuple[str, str], Wish]) -> dict[int, Codec]:
    """The codecs of those types that need not be looked up."""
    codecs: dict[int, Codec] = {}
    for oid, plain in BUILTIN.items():
        wish = wishes.get(("pg_catalog", plain.name))
        if wish is not None:
            check_custom("b", plain.name.endswith("[]"), "pg_catalog", plain.name, wish.format)
            codecs[oid] = custom(oid, "pg_catalog", plain.name, None, wish)
    for oid, plain in BUILTIN.items():
        element = plain.element
        if plain.name.endswith("[]") and element is not None and element.oid in codecs:
            codecs[oid] = Codec("array", oid, plain.name, codecs[element.oid])
    return codecs
