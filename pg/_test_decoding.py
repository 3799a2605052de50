"""test_decoding: the text of the plugin that comes with the server for tests, as events."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Any

from greenletio._pg import Codec
from greenletio.pg import _text
from greenletio.pg._changes import (
    LSN,
    UNCHANGED,
    ColumnOf,
    Delete,
    Insert,
    Message,
    Relation,
    Truncate,
    Update,
)
from greenletio.pg._errors import InternalError
from greenletio.pg._pgoutput import Sink, UnknownTypes

__all__ = ("TestDecoding",)

# There is one way to read each: what fits none must not be tried in every way that there is.
_QUOTED = r'"[^"]*(?:""[^"]*)*"(?!")'
_NAME = rf'(?:{_QUOTED}|[^\s".,:\[]+)'
_TABLE = re.compile(rf"({_NAME})\.({_NAME})")
_TABLES = rf"{_NAME}\.{_NAME}(?:, {_NAME}\.{_NAME})*"
_CHANGE = re.compile(rf"table ({_TABLES}): (INSERT|UPDATE|DELETE|TRUNCATE):")
_FIELD = re.compile(
    rf" ({_NAME})\[((?:[^\]\"]|{_QUOTED}|\[\])*)\]:"
    r"(null|unchanged-toast-datum|B?'[^']*(?:''[^']*)*'(?!')|[^\s']+)"
)
_MESSAGE = re.compile(rb"message: transactional: ([01]) prefix: (.*?), sz: (\d+) content:", re.S)
_BEGIN = re.compile(r"BEGIN (\d+)")
_COMMIT = re.compile(r"COMMIT (\d+)(?: \(at (.*)\))?")


class TestDecoding:
    """Makes calls to a Sink of the plugin's text, with its options include-xids and
    include-timestamp. `find(name)` gives the codec of a type, or None."""

    __test__ = False  # for pytest

    def __init__(self, sink: Sink, find: Callable[[Any], Codec | None]) -> None:
        self._sink = sink
        self._find = find
        self._relations: dict[Any, Relation] = {}

    def restart(self, binary: bool) -> None:
        """The connection is another one."""
        self._relations.clear()

    def feed_kept(self) -> bool:
        return False

    def feed(self, data: bytes, lsn: int) -> None:
        """Take a message. UnknownTypes: it was not taken."""
        try:
            if data.startswith(b"message: "):
                self._message(data, lsn)
            else:
                self._take(data.decode(), lsn)
        except ValueError as exc:  # of its bytes, a time, a value
            raise _malformed(data.decode(errors="replace")) from exc

    def _take(self, text: str, lsn: int) -> None:
        if (begin := _BEGIN.fullmatch(text)) is not None:
            self._sink.begin(int(begin[1]), None, None)
        elif (commit := _COMMIT.fullmatch(text)) is not None:
            time = commit[2] and datetime.datetime.fromisoformat(_zone(commit[2]))
            self._sink.commit(LSN(lsn), time or None)
        elif (change := _CHANGE.match(text)) is not None:
            self._change(text, change)
        else:
            raise _malformed(text)

    def _message(self, data: bytes, lsn: int) -> None:
        head = _MESSAGE.match(data)
        if head is None:
            raise _malformed(data.decode(errors="replace"))
        content = data[head.end() : head.end() + int(head[3])]
        message = Message(head[1] == b"1", head[2].decode(), content, LSN(lsn))
        if message.transactional:
            self._sink.change(message)
        else:
            self._sink.single(message)

    def _change(self, text: str, change: re.Match[str]) -> None:
        kind, rest = change[2], text[change.end() :]
        tables = [(_plain(a), _plain(b)) for a, b in _TABLE.findall(change[1])]
        if kind == "TRUNCATE":
            relations = tuple(self._relation(table, ()) for table in tables)
            self._sink.change(Truncate(relations, " cascade" in rest, " restart_seqs" in rest))
            return
        old_part, new_part = "", rest
        if rest.startswith(" old-key:"):
            end = 0
            old_part = rest[len(" old-key:") :]
            while (found := _FIELD.match(old_part, end)) is not None:
                end = found.end()
            old_part, new_part = old_part[:end], old_part[end:]
            if not new_part.startswith(" new-tuple:"):
                raise _malformed(text)
            new_part = new_part[len(" new-tuple:") :]
        old = self._row(tables[0], old_part, text)
        new = self._row(tables[0], new_part, text)
        if new is None and kind != "DELETE":
            relation = self._relation(tables[0], ())
            new = relation, relation._row([])
        if kind == "INSERT" and new is not None:
            self._sink.change(Insert(*new))
        elif kind == "UPDATE" and new is not None:
            self._sink.change(Update(new[0], None if old is None else old[1], new[1]))
        else:
            relation = self._relation(tables[0], ()) if new is None else new[0]
            self._sink.change(Delete(relation, None if new is None else new[1]))

    def _row(self, table: tuple[str, str], part: str, text: str) -> tuple[Relation, Any] | None:
        if part in ("", " (no-tuple-data)"):
            return None
        fields = []
        end = 0
        while (found := _FIELD.match(part, end)) is not None:
            fields.append((_plain(found[1]), found[2], found[3]))
            end = found.end()
        if end != len(part):
            raise _malformed(text)
        codecs = [self._find(type_name) for _, type_name, _ in fields]
        unknown = [
            type_name
            for codec, (_, type_name, _) in zip(codecs, fields, strict=True)
            if codec is None
        ]
        if unknown:
            raise UnknownTypes(unknown)
        columns = tuple(
            ColumnOf(name, codec.oid, -1, type_name, False)
            for codec, (name, type_name, _) in zip(codecs, fields, strict=True)
            if codec is not None
        )
        relation = self._relation(table, columns)
        return relation, relation._row(
            [
                _value(codec, literal)
                for codec, (_, _, literal) in zip(relation._codecs, fields, strict=True)
            ]
        )

    def _relation(self, table: tuple[str, str], columns: tuple[ColumnOf, ...]) -> Relation:
        key = table, columns
        relation = self._relations.get(key)
        if relation is None:
            if len(self._relations) > 1000:  # a table has as many as it has had forms
                self._relations.clear()
            relation = self._relations[key] = Relation(*table, None, None, columns)
            codecs = [self._find(column.type_name) for column in columns]
            relation._codecs = tuple(codec for codec in codecs if codec is not None)
        return relation


def _value(codec: Codec, literal: str) -> Any:
    if literal == "null":
        return None
    if literal == "unchanged-toast-datum":
        return UNCHANGED
    if literal.startswith("B'"):
        literal = literal[1:]
    if literal.startswith("'"):
        literal = literal[1:-1].replace("''", "'")
    elif literal in ("true", "false"):
        literal = literal[0]
    return _text.decode(codec, literal)


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _zone(text: str) -> str:
    """A timestamp in the server's ISO style as Python's."""
    found = re.fullmatch(r"(.*?)(?:\.(\d+))?([+-]\d\d)(:?\d\d)?", text)
    if found is None:
        return text
    fraction = f".{found[2].ljust(6, '0')}" if found[2] else ""
    return f"{found[1]}{fraction}{found[3]}{found[4] or ':00'}"


def _malformed(text: str) -> InternalError:
    return InternalError(f"this is not test_decoding's text: {text[:200]!r}")
