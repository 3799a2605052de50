"""JSON values for the DB-API face."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from greenletio._pg import BUILTIN, Codec

__all__ = ("Json", "Jsonb", "codecs", "dumps")


class Json:
    """A value to be sent as json: any that ``json.dumps`` takes."""

    def __init__(self, obj: Any, dumps: Callable[[Any], str] | None = None) -> None:
        self.obj = obj
        self.dumps = dumps

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.obj!r})"


class Jsonb(Json):
    """The same as jsonb."""


def dumps(value: Json) -> str:
    return (value.dumps or json.dumps)(value.obj)


def codecs(loads: Callable[[str], Any] = json.loads) -> dict[int, Codec]:
    """json and jsonb as Python's values, and arrays of them."""
    made = {}
    for oid, array in ((114, 199), (3802, 3807)):
        plain = BUILTIN[oid]
        codec = Codec("wrapped", oid, plain.name, plain, decoder=loads, encoder=_encode)
        made[oid] = codec
        made[array] = Codec("array", array, f"{plain.name}[]", codec)
    return made


def _encode(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
