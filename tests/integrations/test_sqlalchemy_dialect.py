"""postgresql+greenletio: SQLAlchemy on greenletio.pg, in sync code and by its asyncio API."""

import asyncio
import datetime
import decimal
import ipaddress
import logging
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from fix_missing import missing
from fix_progress import Ticker
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from greenletio import async_, errors, pg
from greenletio.integrations.sqlalchemy import GreenQueuePool

UTC = datetime.timezone.utc


class Base(orm.DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "parent"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    children: orm.Mapped[list["Child"]] = orm.relationship(order_by="Child.id")


class Child(Base):
    __tablename__ = "child"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    parent_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("parent.id"))


VALUES: dict[str, tuple[Any, Any]] = {
    "json": (sa.JSON, {"a": [1, None, "x"]}),
    "jsonb": (postgresql.JSONB, [1, {"b": True}]),
    "uuid": (sa.Uuid, uuid.UUID(int=5)),
    "number": (sa.Numeric(10, 3), decimal.Decimal("12.500")),
    "float": (sa.Float, 0.1),
    "array": (postgresql.ARRAY(sa.Integer), [1, 2, None]),
    "texts": (postgresql.ARRAY(sa.Text), ["a", 'b"']),
    "range": (postgresql.INT4RANGE, postgresql.Range(1, 10, bounds="[)")),
    "nothing": (postgresql.INT4RANGE, postgresql.Range(empty=True)),
    "ranges": (postgresql.INT4MULTIRANGE, [postgresql.Range(1, 3), postgresql.Range(5, None)]),
    "interval": (sa.Interval, datetime.timedelta(days=2, microseconds=5)),
    "when": (
        sa.DateTime(timezone=True),
        datetime.datetime(2024, 2, 3, tzinfo=datetime.timezone.utc),
    ),
    "day": (sa.Date, datetime.date(2024, 2, 29)),
    "bytes": (sa.LargeBinary, b"\0\xff"),
    "inet": (postgresql.INET, ipaddress.ip_address("10.0.0.1")),
    "enum": (sa.Enum("sad", "glad", name="mood"), "glad"),
}


@pytest.fixture
def url(pg_dsn: str) -> sa.URL:
    return sa.make_url(pg_dsn).set(drivername="postgresql+greenletio")


@pytest.fixture
def engine(url: sa.URL) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


def fill(engine: sa.Engine) -> None:
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session, session.begin():
        session.add(Parent(id=1, name="Ada", children=[Child(), Child()]))


def family(engine: sa.Engine) -> tuple[str, int]:
    with orm.Session(engine) as session:
        parent = session.scalars(sa.select(Parent)).one()
        return parent.name, len(parent.children)  # a lazy attribute


def test_sync_code_with_no_loop_and_in_greenlets(engine: sa.Engine, run: Any) -> None:
    assert isinstance(engine.pool, GreenQueuePool)
    fill(engine)
    assert family(engine) == ("Ada", 2)
    engine.dispose()

    def wait() -> int:
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT pg_sleep(0.2)"))
            checkedout: int = engine.pool.checkedout()  # type: ignore[attr-defined]
            return checkedout

    async def main() -> None:
        assert await async_(family)(engine) == ("Ada", 2)
        async with Ticker():
            used = await asyncio.gather(*(async_(wait)() for _ in range(5)))
        assert max(used) == 5
        with pytest.raises(errors.WouldBlockError):
            family(engine)
        await async_(engine.dispose)()

    run(main())


def test_the_asyncio_api(url: sa.URL, run: Any) -> None:
    async def main() -> None:
        engine: AsyncEngine = create_async_engine(url)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(engine) as session, session.begin():
            session.add(Parent(id=1, name="Ada", children=[Child(), Child()]))
        async with AsyncSession(engine) as session:
            load = orm.selectinload(Parent.children)
            parent = (await session.scalars(sa.select(Parent).options(load))).one()
            assert (parent.name, len(parent.children)) == ("Ada", 2)
        async with engine.connect() as connection:
            rows = await connection.stream(sa.text("SELECT generate_series(1, 1000)"))
            assert len([row async for row in rows]) == 1000
            with pytest.raises(sa.exc.IntegrityError):
                await connection.execute(sa.text("INSERT INTO child VALUES (1, 7)"))
            await connection.rollback()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(connection.execute(sa.text("SELECT pg_sleep(60)")), 0.05)
        async with Ticker():

            async def wait() -> None:
                async with engine.connect() as connection:
                    await connection.execute(sa.text("SELECT pg_sleep(0.3)"))

            await asyncio.gather(*(wait() for _ in range(5)))
        await engine.dispose()

    run(main())


def test_values_of_many_types(engine: sa.Engine) -> None:
    table = sa.Table(
        "things", sa.MetaData(), *(sa.Column(name, kind) for name, (kind, _) in VALUES.items())
    )
    table.create(engine)
    expected = tuple(value for _, value in VALUES.values())
    with engine.begin() as connection:
        connection.execute(
            table.insert(), [{name: value for name, (_, value) in VALUES.items()}] * 2
        )
        connection.execute(table.insert(), dict.fromkeys(VALUES))
        rows = connection.execute(table.select()).all()
        assert rows == [expected, expected, (None,) * len(VALUES)]
        for name, (_, value) in VALUES.items():
            if name != "json":  # which has no =
                assert (
                    connection.scalar(sa.select(sa.func.count()).where(table.c[name] == value)) == 2
                ), name


def test_a_serializer_and_inet_as_text(url: sa.URL) -> None:
    engine = sa.create_engine(
        url,
        json_serializer=lambda value: f'"<{value}>"',
        json_deserializer=lambda text: text.upper(),
        native_inet_types=False,
    )
    with engine.connect() as connection:
        kinds = sa.literal("x", sa.JSON), sa.literal("y", postgresql.JSONB)
        assert connection.execute(sa.select(*kinds)).one() == ('"<X>"', '"<Y>"')
        assert connection.scalar(sa.text("SELECT '10.0.0.0/8'::inet")) == "10.0.0.0/8"
    engine.dispose()


def test_a_cursor_at_the_server(engine: sa.Engine) -> None:
    query = sa.text("SELECT generate_series(1, :n)")
    held = "SELECT count(*) FROM pg_cursors WHERE name LIKE '\\_gio%%'"
    in_parts = {"stream_results": True}
    for options in ({}, {"isolation_level": "AUTOCOMMIT"}):
        with engine.connect().execution_options(**options) as connection:
            result = connection.execute(query, {"n": 95}, execution_options=in_parts)
            assert [len(part) for part in result.partitions(10)] == [10] * 9 + [5]
            result = connection.execute(query, {"n": 95}, execution_options=in_parts)
            assert next(result) == (1,)
            assert connection.exec_driver_sql(held).scalar() == 1
            result.close()
            assert connection.exec_driver_sql(held).scalar() == 0


@pytest.mark.parametrize("ended", ["commit", "next transaction", "savepoint", "failure"])
def test_a_cursor_that_its_transaction_has_ended(engine: sa.Engine, ended: str) -> None:
    """Its result is closed without harm: nothing fails in the transaction that is open then."""
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TEMP TABLE t (a int)")
        connection.commit()
        savepoint = connection.begin_nested() if ended == "savepoint" else None
        result = connection.execute(
            sa.text("SELECT generate_series(1, 95)"), execution_options={"stream_results": True}
        )
        assert next(result) == (1,)
        if savepoint is not None:
            savepoint.rollback()
        elif ended == "failure":
            with pytest.raises(sa.exc.DataError):
                connection.exec_driver_sql("SELECT 1/0")
        else:
            connection.commit()
        if ended == "next transaction":
            connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        result.close()
        if ended == "failure":
            connection.rollback()
        elif ended == "commit":
            raw = connection.connection.dbapi_connection
            assert raw.raw._transaction_status == 0  # type: ignore[union-attr]
        connection.exec_driver_sql("INSERT INTO t VALUES (2)")
        connection.commit()


def test_a_held_cursor_ends_with_the_connections_use(engine: sa.Engine) -> None:
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    for _ in range(2):
        with autocommit.connect() as connection:
            held = "SELECT count(*) FROM pg_cursors WHERE name LIKE '\\_gio%%'"
            assert connection.exec_driver_sql(held).scalar() == 0
            query = sa.text("SELECT generate_series(1, 95)")
            options = {"stream_results": True}
            assert next(connection.execute(query, execution_options=options)) == (1,)


def test_a_query_that_is_cancelled_leaves_its_connection(url: sa.URL, run: Any) -> None:
    engine = sa.create_engine(url, pool_size=1, max_overflow=0)

    def pid() -> Any:
        with engine.connect() as connection:
            return connection.scalar(sa.text("SELECT pg_backend_pid()"))

    def work() -> None:
        with engine.begin() as connection:
            connection.execute(sa.text("SELECT pg_sleep(60)"))

    async def main() -> None:
        before = await async_(pid)()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(async_(work)(), 0.05)
        assert await async_(pid)() == before
        await async_(engine.dispose)()

    run(main())


def test_connections_that_others_make(url: sa.URL, run: Any) -> None:
    conninfo = url.set(drivername="postgresql").render_as_string(hide_password=False)
    in_parts = {"stream_results": True}
    query = sa.text("SELECT generate_series(1, 95)")
    engine = sa.create_engine(url, creator=lambda: pg.connect(conninfo))
    with engine.connect() as connection:
        assert len(connection.execute(query, execution_options=in_parts).all()) == 95
    engine.dispose()

    async def connect(**kwargs: Any) -> pg.Connection[Any]:
        return await async_(pg.connect)(conninfo)

    async def no_connection(**kwargs: Any) -> Any:
        return "none"

    async def main() -> None:
        engine = create_async_engine(url, async_creator=connect)
        async with engine.connect() as connection:
            assert len(await (await connection.stream(query)).all()) == 95
        await engine.dispose()
        with pytest.raises(TypeError, match="needs a greenletio.pg.Connection, not 'none'"):
            await create_async_engine(url, async_creator=no_connection).connect()

    run(main())


def test_transactions(engine: sa.Engine) -> None:
    def shown(connection: sa.Connection, what: str) -> Any:
        return connection.exec_driver_sql(f"SHOW {what}").scalar()

    with engine.connect().execution_options(
        isolation_level="SERIALIZABLE", postgresql_readonly=True, postgresql_deferrable=True
    ) as connection:
        assert connection.get_isolation_level() == "SERIALIZABLE"
        assert shown(connection, "transaction_isolation") == "serializable"
        assert shown(connection, "transaction_read_only") == "on"
        assert shown(connection, "transaction_deferrable") == "on"
    with engine.connect() as connection:  # the same one, from the pool
        assert shown(connection, "transaction_isolation") == "read committed"
        assert shown(connection, "transaction_read_only") == "off"
        connection.exec_driver_sql("CREATE TEMP TABLE t (a int)")
        with connection.begin_nested() as nested:
            connection.exec_driver_sql("INSERT INTO t VALUES (1)")
            nested.rollback()
        connection.exec_driver_sql("INSERT INTO t VALUES (2), (3)")
        assert connection.exec_driver_sql("SELECT * FROM t").all() == [(2,), (3,)]
        connection.exec_driver_sql("SELECT 1; SELECT 2")
        assert connection.exec_driver_sql("SELECT '100%%'").scalar() == "100%"


def test_what_a_transaction_is_like_leaves_nothing_in_the_session(engine: sa.Engine) -> None:
    dialect = engine.dialect
    with engine.connect() as connection:
        raw = connection.connection.dbapi_connection
    for options in (
        {"isolation_level": "REPEATABLE READ"},
        {"postgresql_readonly": True},
        {"postgresql_deferrable": True, "isolation_level": "AUTOCOMMIT"},
    ):
        with engine.connect().execution_options(**options) as connection:
            assert connection.connection.dbapi_connection is raw
            assert connection.exec_driver_sql("SHOW default_transaction_isolation").scalar() == (
                "read committed"
            )
            shown = connection.exec_driver_sql("SHOW default_transaction_read_only").scalar()
            assert shown == "off"
    assert raw is not None
    assert (raw.autocommit, raw.read_only, raw.deferrable) == (False, None, None)
    # A server's default holds, also after somebody wanted something else.
    raw.execute("SET default_transaction_read_only = on")
    raw.commit()
    for wanted, seen in ((False, False), (None, True)):
        options = {} if wanted is None else {"postgresql_readonly": wanted}
        with engine.connect().execution_options(**options) as connection:
            assert dialect.get_readonly(connection.connection.dbapi_connection) is seen  # type: ignore[attr-defined]


def test_two_phases(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        if connection.exec_driver_sql("SHOW max_prepared_transactions").scalar() == "0":
            missing("the server has max_prepared_transactions = 0")
        connection.exec_driver_sql("CREATE TABLE two_phases (a int)")
        connection.commit()
        for value, end in ((1, "commit"), (2, "rollback"), (3, "commit")):
            with connection.begin_twophase() as transaction:
                connection.execute(sa.text("INSERT INTO two_phases VALUES (:a)"), {"a": value})
                if value != 3:  # which is committed in one phase
                    transaction.prepare()
                getattr(transaction, end)()
        connection.begin_twophase(xid="lost")
        connection.exec_driver_sql("INSERT INTO two_phases VALUES (4)")
        connection.get_transaction().prepare()  # type: ignore[union-attr]
        connection.invalidate()
    with engine.connect() as connection:
        assert connection.recover_twophase() == ["lost"]
        connection.commit_prepared("lost", recover=True)
        assert connection.recover_twophase() == []
        found = connection.exec_driver_sql("SELECT a FROM two_phases ORDER BY a").scalars()
        assert found.all() == [1, 3, 4]


def test_a_connection_that_the_server_ends_is_replaced(url: sa.URL, caplog: Any) -> None:
    engine = sa.create_engine(url, pool_pre_ping=True)
    with engine.connect() as connection:
        with caplog.at_level(logging.INFO, "sqlalchemy.dialects.postgresql"):
            connection.exec_driver_sql("DO $$BEGIN RAISE NOTICE 'heard'; END$$")
        assert "heard" in caplog.text
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        with engine.connect() as other:
            other.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(sa.exc.OperationalError) as failed:
            connection.exec_driver_sql("SELECT 1")
        assert failed.value.connection_invalidated
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT pg_backend_pid()").scalar() != pid
    engine.dispose()
