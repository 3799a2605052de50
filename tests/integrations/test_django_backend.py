"""greenletio.integrations.django: whose connection is whose, what is refused, what comes back."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from fix_missing import need

django = need("django")

from django.conf import settings  # noqa: E402
from django.core.exceptions import SynchronousOnlyOperation  # noqa: E402
from django.db import IntegrityError, connection, connections, models, transaction  # noqa: E402

from greenletio import async_, spawn  # noqa: E402

if not settings.configured:
    settings.configure(
        DATABASES={"default": {"ENGINE": "greenletio.integrations.django", "NAME": "none"}},
        INSTALLED_APPS=["django.contrib.postgres", "greenletio.integrations.django"],
        USE_TZ=True,
        TIME_ZONE="Europe/Vienna",
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    django.setup()

from asgiref.sync import async_to_sync, sync_to_async  # noqa: E402
from django.contrib.postgres.fields import ArrayField, DateTimeRangeField, HStoreField  # noqa: E402
from django.contrib.postgres.search import SearchVectorField  # noqa: E402
from fix_postgres import Query  # noqa: E402
from psycopg.types.range import Range  # noqa: E402

from greenletio.integrations.django.sync import patch_asgiref, unpatch_asgiref  # noqa: E402

unpatch_asgiref()  # for the tests of others in this process

PID = "SELECT pg_backend_pid()"
UTC = datetime.timezone.utc
OPTIONS = {"pool": {"max_size": 4, "timeout": 30}, "application_name": "backend"}


class Thing(models.Model):
    name = models.CharField(max_length=30, unique=True)
    price = models.DecimalField(max_digits=8, decimal_places=2, null=True)
    at = models.DateTimeField(null=True)
    data = models.JSONField(null=True)
    address = models.GenericIPAddressField(null=True)
    tags = ArrayField(models.TextField(), null=True)
    sizes = ArrayField(models.BigIntegerField(), null=True)
    during = DateTimeRangeField(null=True)
    words = SearchVectorField(null=True)

    class Meta:
        app_label = "things"


class Bag(models.Model):
    content = HStoreField()

    class Meta:
        app_label = "things"


@pytest.fixture(autouse=True)
def database(pg_dsn: str) -> Iterator[None]:
    """The alias `default` is the test's own database, with a table of things."""
    url = urlsplit(pg_dsn)
    connections.settings["default"].update(
        NAME=url.path.strip("/"),
        HOST=url.hostname or "",
        PORT=str(url.port or ""),
        USER=unquote(url.username or ""),
        PASSWORD=unquote(url.password or ""),
        OPTIONS=dict(OPTIONS),
        CONN_MAX_AGE=0,
    )
    patch_asgiref()
    with connection.schema_editor() as editor:
        editor.create_model(Thing)
    connection.close()
    try:
        yield
    finally:
        unpatch_asgiref()
        connection.close()
        connection.close_pool()
        del connections["default"]


def pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute(PID)
        found: int = cursor.fetchone()[0]
        return found


async def a_count() -> int:
    found: int = await Thing.objects.acount()
    return found


def states(pg_query: Query) -> list[str]:
    return [
        state
        for (state,) in pg_query(
            "SELECT state FROM pg_stat_activity WHERE application_name = 'backend'"
        )
    ]


async def until_idle(pg_query: Query) -> list[str]:
    for _ in range(400):
        found = states(pg_query)
        if set(found) <= {"idle"}:
            break
        await asyncio.sleep(0.05)
    return found


# ---- whose connection is whose ----------------------------------------------------------------


def test_a_task_has_one_connection_and_gives_it_back_at_its_end() -> None:
    async def main() -> None:
        async def both() -> tuple[int, int]:
            one = await async_(pid)()
            assert connection.connection is not None
            return one, await sync_to_async(pid)()

        one, other = await asyncio.create_task(both())
        assert one == other
        assert connection.connection is None  # this task has had none
        await asyncio.sleep(0)  # its end is told to us first, and then to its connections
        stats = connections["default"].pool.get_stats()
        assert stats["pool_size"] == stats["pool_available"] > 0

    asyncio.run(main())


def test_tasks_and_greenlets_have_each_their_own() -> None:
    async def main() -> None:
        met = asyncio.Barrier(3) if hasattr(asyncio, "Barrier") else None

        async def one() -> int:
            found = await async_(pid)()
            if met is not None:
                await met.wait()
            else:
                await asyncio.sleep(0.5)
            return found

        def green() -> int:
            from greenletio import await_

            return await_(one())

        pids = await asyncio.gather(one(), one(), spawn(green))
        assert len(set(pids)) == 3

    asyncio.run(main())


def test_a_thread_has_its_own_and_keeps_it() -> None:
    connections.settings["default"].update(OPTIONS={}, CONN_MAX_AGE=None)
    connection.close_pool()
    del connections["default"]
    here = pid()
    assert pid() == here
    there: list[int] = []

    def run() -> None:
        there.append(pid())
        connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert there[0] != here

    async def main() -> None:
        assert await async_(pid)() not in (here, there[0])
        # A task's comes from a pool all the same.
        assert connection.pool is not None

    asyncio.run(main())
    assert pid() == here
    assert connection.pool is None


@pytest.mark.parametrize("call", [async_, sync_to_async])
def test_a_cancelled_task_gives_its_connection_back(call: Any, pg_query: Query) -> None:
    def slow() -> None:
        with transaction.atomic():
            Thing.objects.create(name="lost")
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(60)")

    async def main() -> None:
        for _ in range(3):
            tasks = [asyncio.create_task(call(slow)()) for _ in range(4)]
            while states(pg_query).count("active") < 4:
                # Three of them wait for the first one's name.
                await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            assert all(
                isinstance(result, asyncio.CancelledError)
                for result in await asyncio.gather(*tasks, return_exceptions=True)
            )
            assert set(await until_idle(pg_query)) <= {"idle"}
        assert await async_(Thing.objects.count)() == 0

    asyncio.run(main())


def test_coroutines_that_a_transaction_calls_are_in_it() -> None:
    async def count() -> int:
        assert await Thing.objects.acount() == 1
        counts = await asyncio.gather(*(Thing.objects.acount() for _ in range(5)))
        assert counts == [1] * 5
        with pytest.raises(IntegrityError):
            await sync_to_async(again)()
        return await async_(Thing.objects.count)()

    def again() -> None:
        with transaction.atomic():
            Thing.objects.create(name="one")

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Thing.objects.create(name="one")
        assert async_to_sync(count)() == 1
        assert Thing.objects.count() == 1
        raise ZeroDivisionError
    assert async_to_sync(a_count)() == 0


def test_a_greenlet_s_coroutines_are_in_its_transaction() -> None:
    def view() -> int:
        with transaction.atomic():
            Thing.objects.create(name="one")
            found: int = async_to_sync(a_count)()
            return found

    assert asyncio.run(async_(view)()) == 1


def test_context_variables_pass_both_bridges() -> None:
    from django.utils import translation

    async def main() -> str:
        await sync_to_async(translation.activate)("de")
        return translation.get_language()

    before = translation.get_language()
    try:
        assert async_to_sync(main)() == "de"
        assert translation.get_language() == "de"
    finally:
        translation.activate(before)


def test_wsgi_in_asgi() -> None:
    from greenletio.integrations.asgi import as_asgi

    def app(environ: Any, start_response: Any) -> list[bytes]:
        with transaction.atomic():
            thing = Thing.objects.create(name=environ["PATH_INFO"])
        start_response("200 OK", [])
        return [str(thing.pk).encode()]

    async def main() -> None:
        transport = httpx.ASGITransport(as_asgi(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            answers = await asyncio.gather(*(client.get(f"/{n}") for n in range(50)))
            assert len({answer.text for answer in answers}) == 50
        assert await async_(Thing.objects.count)() == 50

    asyncio.run(main())


# ---- what is refused --------------------------------------------------------------------------


def test_a_coroutine_is_told_what_it_lacks() -> None:
    async def main() -> None:
        with pytest.raises(SynchronousOnlyOperation, match="async_"):
            Thing.objects.count()
        with pytest.raises(SynchronousOnlyOperation):
            connection.cursor()
        assert await async_(Thing.objects.count)() == 0
        connection.close()  # gives it back: this never waits

    asyncio.run(main())


def test_what_is_to_be_parallel_stays_in_threads() -> None:
    async def main() -> None:
        here = threading.get_ident()
        assert await sync_to_async(threading.get_ident)() == here
        assert await sync_to_async(threading.get_ident, thread_sensitive=False)() != here

        def nested() -> int:
            async def inner() -> int:
                return await sync_to_async(threading.get_ident)()

            found: int = async_to_sync(inner)()
            return found

        # The loop's thread runs the sync code that a thread's coroutine calls.
        assert await sync_to_async(nested, thread_sensitive=False)() == here

    asyncio.run(main())


# ---- what comes back --------------------------------------------------------------------------


def test_values_are_as_django_has_them() -> None:
    at = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.timezone.utc)
    Thing.objects.create(
        name="all",
        price=decimal.Decimal("1.50"),
        at=at,
        data={"a": [1, None]},
        address="::ffff:1.2.3.4",
        tags=["x", ""],
        during=Range(at, None),
    )
    # A column whose type the driver knows as text alone has the whole row come as text.
    for query in (Thing.objects.defer("words"), Thing.objects.all()):
        thing = query.get(data__a__0=1, tags__contains=["x"], during__contains=at)
        assert (thing.price, thing.at) == (decimal.Decimal("1.50"), at)
        assert thing.data == {"a": [1, None]}
        assert (thing.address, thing.tags) == ("::ffff:1.2.3.4", ["x", ""])
        assert thing.during == Range(at, None)
        assert isinstance(thing.during, Range)


def test_an_integer_is_of_its_field_s_type() -> None:
    Thing.objects.create(name="one", sizes=[1, 2])
    Thing.objects.create(name="two", sizes=[2**40])
    things = Thing.objects.order_by("pk").values_list("name", flat=True)
    assert [*things.filter(sizes__gt=[1, 2])] == ["two"]
    assert [*things.filter(sizes__in=[[1, 2], [3]])] == ["one"]
    adapt = connection.ops.adapt_integerfield_value
    fields: list[Any] = [adapt(1, f"{kind}IntegerField") for kind in ("Small", "", "Big")]
    params = [*fields, *([one] for one in fields), [[None], [fields[0]]], 1, [1]]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(['pg_typeof(%s)::text'] * len(params))}", params)
        found = [*cursor.fetchone()]
    names = ["smallint", "integer", "bigint"]
    assert found[:3] == names
    assert found[3:] == [f"{name}[]" for name in names] + ["smallint[]", "integer", "integer[]"]


@pytest.mark.parametrize("use_tz", [True, False])
def test_a_moment_is_in_the_connection_s_time_zone(use_tz: bool) -> None:
    from django.test import override_settings

    with override_settings(USE_TZ=use_tz, TIME_ZONE="Europe/Vienna"):
        with connection.cursor() as cursor:
            cursor.execute("SELECT '2026-03-01 12:00+00'::timestamptz, current_setting('TimeZone')")
            at, zone = cursor.fetchone()
        if use_tz:
            assert (at.isoformat(), zone) == ("2026-03-01T12:00:00+00:00", "UTC")
        else:
            assert (at.isoformat(), zone) == ("2026-03-01T13:00:00", "Europe/Vienna")


def test_hstore() -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION hstore")
    connection.close()
    from django.contrib.postgres.signals import get_hstore_oids

    get_hstore_oids.cache_clear()
    with connection.schema_editor() as editor:
        editor.create_model(Bag)
    Bag.objects.create(content={"a": "1", "b": None})
    assert Bag.objects.get(content__contains={"a": "1"}).content == {"a": "1", "b": None}
    get_hstore_oids.cache_clear()


def test_the_columns_of_a_table_have_the_names_of_their_types() -> None:
    from greenletio.integrations.django.introspection import Described

    with connection.cursor() as cursor:
        described = connection.introspection.get_table_description(cursor, "things_thing")
        assert [column.name for column in described][:3] == ["id", "name", "price"]
        cursor.execute("SELECT 1::bigint, '{a}'::text[], NULL::things_thing[] LIMIT 0")
        types = connection.connection.adapters.types
        names = [column.type_display for column in Described(cursor, types).description]
        assert names[0] == "int8"
        assert names[2].isdigit()  # psycopg knows nothing of it


def test_a_pool_s_check_is_the_settings_own() -> None:
    checked: list[Any] = []
    connections.settings["default"].update(
        OPTIONS={**OPTIONS, "pool": {"max_size": 1, "check": checked.append}},
        CONN_HEALTH_CHECKS=True,
    )
    try:
        connection.close()
        connection.close_pool()
        del connections["default"]
        for _ in range(2):
            assert Thing.objects.count() == 0
            connection.close()
        assert checked
    finally:
        connection.close_pool()
        connections.settings["default"]["CONN_HEALTH_CHECKS"] = False


def test_a_base_method_that_is_replaced_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Django's SimpleTestCase does to forbid threads their queries."""
    from django.db.backends.base.base import BaseDatabaseWrapper

    def refuse(self: Any) -> None:
        raise PermissionError(self.alias)

    monkeypatch.setattr(BaseDatabaseWrapper, "ensure_connection", refuse)
    with pytest.raises(PermissionError, match="default"):
        Thing.objects.count()


@pytest.mark.parametrize("binding", [True, False])
def test_a_query_that_compares_parameters(binding: bool) -> None:
    connections.settings["default"]["OPTIONS"]["server_side_binding"] = binding
    connection.close()
    Thing.objects.create(name="abc")
    Thing.objects.create(name="abd")
    from django.db.models import Count, Value
    from django.db.models.functions import Concat, Left

    start = Concat(Left("name", 2), Value("%"))
    rows = Thing.objects.annotate(start=start).values("start").annotate(n=Count("pk"))
    assert list(rows) == [{"start": "ab%", "n": 2}]


def test_iterator_takes_rows_from_the_server_part_by_part(pg_query: Query) -> None:
    Thing.objects.bulk_create(Thing(name=f"thing {n}") for n in range(100))
    named = "SELECT count(*)::int FROM pg_cursors WHERE name LIKE '_django_curs_%%'"

    def cursors() -> int:
        with connection.cursor() as cursor:
            cursor.execute(named.replace("%%", "%"))
            found: int = cursor.fetchone()[0]
            return found

    def view(inside: bool) -> list[str]:
        names = []
        for thing in Thing.objects.order_by("pk").iterator(chunk_size=10):
            if not names:
                assert cursors() == 1
            names.append(thing.name)
        assert cursors() == 0
        return names

    async def main() -> None:
        expected = [f"thing {n}" for n in range(100)]
        assert await async_(view)(False) == expected
        assert await async_(transaction.atomic(view))(True) == expected
        ordered = Thing.objects.order_by("pk")
        assert [thing.name async for thing in ordered.aiterator(chunk_size=10)] == expected
        # One that is left early is closed.
        await async_(lambda: next(iter(Thing.objects.iterator(chunk_size=10))))()
        assert await async_(cursors)() == 0

    asyncio.run(main())


def test_select_for_update_waits_without_holding_the_loop() -> None:
    Thing.objects.create(name="one", price=0)

    def raise_price() -> None:
        with transaction.atomic():
            thing = Thing.objects.select_for_update().get(name="one")
            thing.price += 1
            thing.save()

    async def main() -> None:
        await asyncio.gather(*(async_(raise_price)() for _ in range(50)))

    asyncio.run(main())
    assert Thing.objects.get().price == 50


def test_a_table_that_is_changed_in_a_transaction_is_read_anew() -> None:
    Thing.objects.create(name="one")
    with transaction.atomic():
        with connection.cursor() as cursor:
            for _ in range(2):
                cursor.execute("SELECT * FROM things_thing", ())
                before = len(cursor.fetchone())
            cursor.execute("ALTER TABLE things_thing ADD COLUMN more int")
            cursor.execute("SELECT * FROM things_thing", ())
            assert len(cursor.fetchone()) == before + 1


def test_options() -> None:
    from psycopg import IsolationLevel

    with connection.cursor() as cursor:
        cursor.execute("CREATE ROLE backend_role")
        try:
            connection.close()
            connections.settings["default"]["OPTIONS"].update(
                pool=False, assume_role="backend_role", isolation_level=IsolationLevel.SERIALIZABLE
            )
            del connections["default"]
            with transaction.atomic(), connection.cursor() as own:
                own.execute("SELECT current_user, current_setting('transaction_isolation')")
                assert own.fetchone() == ("backend_role", "serializable")
        finally:
            connection.close()
            connections.settings["default"]["OPTIONS"] = dict(OPTIONS)
            del connections["default"]
            with connection.cursor() as own:
                own.execute("DROP ROLE backend_role")


def test_behind_a_pooler_that_lends_sessions_for_a_transaction(
    pg_dsn: str, pgbouncer: Any, pg_query: Query
) -> None:
    port = urlsplit(pgbouncer(pg_dsn, "transaction", default_pool_size=2)).port
    connection.close_pool()
    connections.settings["default"].update(
        PORT=str(port),
        OPTIONS={"pooler": True, "pool": {"max_size": 10}},
        DISABLE_SERVER_SIDE_CURSORS=True,
        TIME_ZONE="Asia/Tokyo",
    )
    del connections["default"]
    Thing.objects.create(name="one", price=0, at=datetime.datetime(2024, 7, 1, 12, tzinfo=UTC))

    def work(n: int) -> set[int]:
        pids = {pid() for _ in range(3)}
        with transaction.atomic():
            thing = Thing.objects.select_for_update().get(name="one")
            thing.price += 1
            thing.save()
        Thing.objects.create(name=f"other {n}")
        assert len([*Thing.objects.iterator(chunk_size=5)]) > 1
        with connection.cursor() as cursor:
            cursor.execute("SELECT at::text FROM things_thing WHERE name = 'one'")
            assert cursor.fetchone() == ("2024-07-01 21:00:00+09",)
            cursor.execute("SELECT count(*)::int FROM pg_prepared_statements WHERE name <> ''")
            assert cursor.fetchone() == (0,)
        return pids

    async def main() -> None:
        found = await asyncio.gather(*(async_(work)(n) for n in range(40)))
        assert len(set().union(*found)) == 2

    try:
        asyncio.run(main())
        thing = Thing.objects.get(name="one")
        assert thing.price == 40
        assert thing.at == datetime.datetime(2024, 7, 1, 12, tzinfo=UTC)
    finally:
        connection.close()
        connection.close_pool()
        connections.settings["default"].update(DISABLE_SERVER_SIDE_CURSORS=False, TIME_ZONE=None)
