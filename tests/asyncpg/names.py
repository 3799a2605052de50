"""The name ``asyncpg`` for greenletio.pg.aio, with asyncpg's own helpers for its tests.

What its modules are called there is found here. Where the tests look at asyncpg's insides, they
see what ours say of the same facts, as far as there is such a fact.
"""

import enum
import importlib.abc
import importlib.machinery
import importlib.util
import os
import pathlib
import socket
import sys
import types
import weakref
from collections.abc import Iterator, Sequence
from functools import wraps
from typing import Any
from unittest import SkipTest
from unittest.mock import patch

from greenletio import _pg
from greenletio._hosts import hosts_of
from greenletio.pg import _conninfo, aio

#: Helpers of the tests, which use asyncpg by its public names: they come from the checkout.
HELPERS = {"_testbase", "_asyncio_compat", "cluster", "compat", "serverversion"}


class Cached:
    """A statement of the cache, as it was; closed, if it is not usable as that any more."""

    def __init__(self, connection: aio.Connection, key: Any, statement: _pg.Statement) -> None:
        self._connection = connection
        self._key = key
        self._statement = statement
        self._name = statement.name

    @property
    def closed(self) -> bool:
        statement = self._statement
        lost = self._connection._cache.get(self._key) is not statement
        changed = statement.is_outdated or statement.name != self._name
        return lost or changed or not statement.is_prepared


class Cache:
    """The statements that a connection has at hand."""

    def __init__(self, connection: aio.Connection) -> None:
        self._connection = connection

    def __len__(self) -> int:
        return len(self._connection._cache)

    def iter_statements(self) -> Iterator[Cached]:
        return (Cached(self._connection, *each) for each in self._connection._cache.items())

    def get_max_size(self) -> int:
        return self._connection._cache_size

    def set_max_size(self, size: int) -> None:
        self._connection._cache_size = size

    def get_max_lifetime(self) -> float:
        return self._connection._cache_lifetime

    def set_max_lifetime(self, seconds: float) -> None:
        self._connection._cache_lifetime = seconds


class Protocol:
    """What is asked of a connection's protocol."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = weakref.ref(connection)
        self.is_ssl = connection.tls is not None
        self.queries_count = connection._count

    def is_closed(self) -> bool:
        connection = self._connection()
        return connection is None or connection.is_closed()


class PreparedStatement(aio.PreparedStatement):
    @property
    def _state(self) -> Any:
        def mark_closed() -> None:
            self._closed = True

        return Same(self._statement, mark_closed)


class Same:
    """A statement, which is the same whenever it is asked for."""

    known: "weakref.WeakValueDictionary[int, Same]" = weakref.WeakValueDictionary()

    def __new__(cls, statement: _pg.Statement, mark_closed: Any) -> "Same":
        found = cls.known.get(id(statement))
        if found is None:
            found = cls.known[id(statement)] = super().__new__(cls)
            found.statement, found.mark_closed = statement, mark_closed
        return found


class Connection(aio.Connection):
    """Ours, with some of the attributes by which the tests look into asyncpg's."""

    _count = 0

    def __init__(self) -> None:
        super().__init__()
        live.add(self)

    @wraps(aio.Connection.execute)
    def execute(self, *args: Any, **kwargs: Any) -> Any:
        self._count += 1
        return super().execute(*args, **kwargs)

    def fetchval(self, *args: Any, **kwargs: Any) -> Any:
        self._count += 1
        return super().fetchval(*args, **kwargs)

    def _op(self, kind: str, *args: Any, **kwargs: Any) -> Any:
        self._count += kind == "query"
        return super()._op(kind, *args, **kwargs)

    async def prepare(self, *args: Any, **kwargs: Any) -> Any:
        statement = await super().prepare(*args, **kwargs)
        statement.__class__ = PreparedStatement
        return statement

    async def _prepare(self, query: str, *, use_cache: bool = False) -> Any:
        if not use_cache:
            return await self.prepare(query)
        await self._close_statements(None)
        statement = await self._op("prepare", "statement", query)
        return PreparedStatement(self, statement, None)

    def _cancel_current_command(self, waiter: Any) -> None:
        self._cancel()
        waiter.set_result(None)

    @property
    def _protocol(self) -> Protocol:
        return Protocol(self)

    @property
    def _transport(self) -> Any:
        # A socket of the same descriptor is asked where it is connected to.
        with socket.socket(fileno=os.dup(self._fd)) as peer:
            info = {"peername": peer.getpeername()}
        return types.SimpleNamespace(
            get_extra_info=info.get, set_write_buffer_limits=lambda high, low: None
        )

    @property
    def _stmt_cache(self) -> Cache:
        return Cache(self)

    @property
    def _config(self) -> Any:
        return types.SimpleNamespace(statement_cache_size=self._cache_size)

    @property
    def _stmts_to_close(self) -> list[str]:
        return self._to_close

    @property
    def _top_xact(self) -> Any:
        return self._transaction

    @property
    def _server_caps(self) -> Any:
        return types.SimpleNamespace(sql_copy_from_where=True)


Connection.__module__ = "asyncpg.connection"  # a message has it


class Holder:
    """A place of a pool, which has a connection or none."""

    def __init__(self, pool: aio.Pool, number: int) -> None:
        self._core = pool._core
        self._number = number

    @property
    def _con(self) -> aio.Connection | None:
        slots = [slot for slot in self._core._slots if slot.is_connected()]
        connected = [slot.con for slot in slots if not slot.con.is_closed()]
        return connected[self._number] if self._number < len(connected) else None

    @property
    def _in_use(self) -> bool | None:
        return self._con is not None or None


class Pool(aio.Pool):
    """Ours, with some of the attributes by which the tests look into asyncpg's."""

    @property
    def _holders(self) -> list[Holder]:
        return [Holder(self, number) for number in range(self._core.limits.max_size)]

    @property
    def _queue(self) -> Any:
        core = self._core
        used = core.places - core.available
        return types.SimpleNamespace(qsize=lambda: core.limits.max_size - used)


def create_pool(dsn: str | None = None, **kwargs: Any) -> Pool:
    kwargs.setdefault("connection_class", Connection)
    return Pool(dsn, **kwargs)


async def connect(*args: Any, **kwargs: Any) -> aio.Connection:
    """The tests move pathlib's home directory: libpq's is in the environment. And asyncpg tries
    several folders for sockets: libpq has one of its own, which is not that of the tests."""
    kwargs.setdefault("connection_class", Connection)
    if not args and not kwargs.get("dsn"):
        kwargs.setdefault("host", os.environ["TMPDIR"])
    try:
        home = str(pathlib.Path.home())
    except RuntimeError:
        home = "/nonexistent"
    with patch.dict(os.environ, HOME=home):
        return await aio.connect(*args, **kwargs)


def parse(
    *,
    dsn: str | None,
    port: Any,
    ssl: Any,
    service: str | None,
    servicefile: str | None,
    direct_tls: Any,
    server_settings: Any,
    **given: Any,
) -> tuple[list[Any], Any]:
    """Where a connection would go, and as whom, by libpq."""
    given["dbname"] = given.pop("database")
    given |= {"port": port, "service": service}
    named = _conninfo.options_of(dsn, given)
    found = _pg.complete_conninfo(_conninfo.conninfo({**named, "sslmode": "only-read-the-options"}))
    hosts = hosts_of(found) or []
    addresses = [
        f"{host.host}/.s.PGSQL.{host.port}"
        if host.host.startswith("/")
        else (host.host, int(host.port or 5432))
        for host in hosts
    ]
    params = {
        "user": found.get("user"),
        "password": found.get("password"),
        "database": found.get("dbname"),
        "target_session_attrs": found.get("target_session_attrs", "any"),
    }
    return addresses, types.SimpleNamespace(_asdict=lambda: params)


live: "weakref.WeakSet[Connection]" = weakref.WeakSet()


def uid(name: str) -> int:
    """asyncpg numbers the statements that it caches."""
    if name != "_uid":
        raise AttributeError(name)
    return sum(len(connection._cache) for connection in live)


class SSLMode(enum.IntEnum):
    disable = 0
    allow = 1
    prefer = 2
    require = 3
    verify_ca = 4
    verify_full = 5


def create_record(mapping: Any, values: Sequence[Any]) -> _pg.Record:
    names = tuple(mapping or ())
    if len(names) != len(values):
        raise SkipTest("a record whose names do not fit its values cannot be made")
    if list(dict(mapping or {}).values()) != list(range(len(names))):
        raise SkipTest("a record whose names stand for other columns cannot be made")
    return _pg.make_record(_pg.Record, tuple(names), tuple(values))


def use_their_name() -> None:
    """As reprs have it."""
    for name in aio.__all__:
        thing = getattr(aio, name)
        if isinstance(thing, type) and thing.__module__.startswith("greenletio.pg.aio."):
            thing.__module__ = "asyncpg"


def modules() -> dict[str, dict[str, Any]]:
    """What is in which of asyncpg's modules."""
    package = {name: getattr(aio, name) for name in (*aio.__all__, *aio.exceptions.__all__)}
    package |= {"Connection": Connection, "connect": connect}
    package |= {"Pool": Pool, "create_pool": create_pool}
    package["__all__"] = tuple(package)
    protocol = {"Record": aio.Record, "_create_record": create_record}
    protocol["BUILTIN_TYPE_OID_MAP"] = {oid: codec.name for oid, codec in _pg.BUILTIN.items()}
    return {
        "": package,
        "exceptions": {name: getattr(aio.exceptions, name) for name in aio.exceptions.__all__},
        "connection": {"Connection": Connection, "connect": connect, "__getattr__": uid},
        "pool": {"Pool": Pool, "create_pool": create_pool},
        "types": package,
        "connect_utils": {"SSLMode": SSLMode, "_parse_connect_dsn_and_args": parse},
        "utils": {"_mogrify": aio._copy._with_literals},
        "protocol": protocol,
        "protocol.protocol": protocol,
        "protocol.record": protocol,
    }


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds asyncpg and its modules: ours by `modules`, the helpers in a folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._modules = modules()

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        package, _, rest = name.partition(".")
        if package != "asyncpg":
            return None
        if rest.partition(".")[0] in HELPERS:
            return importlib.machinery.PathFinder.find_spec(name, path or [str(self._folder)])
        if rest not in self._modules:
            return None
        spec = importlib.machinery.ModuleSpec(name, self, is_package=True)
        if not rest:
            spec.submodule_search_locations = [str(self._folder)]
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        contents = self._modules[module.__name__.partition(".")[2]]
        module.__dict__.update(contents)


def install(checkout: pathlib.Path) -> None:
    """From now on `import asyncpg` is ours. Nothing of the real one may have been imported."""
    assert "asyncpg" not in sys.modules
    use_their_name()
    sys.meta_path.insert(0, Finder(checkout / "asyncpg"))
