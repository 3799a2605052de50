"""Record: a row by position, by name, as a mapping, in sets, across processes."""

import copy
import gc
import pickle
import weakref

import pytest

from greenletio import _pg
from greenletio.pg import aio


@pytest.fixture
def record(sync):
    return sync.raw.fetchrow("SELECT 1 AS a, 'x' AS b, NULL AS c").run()


def test_what_it_is(record):
    assert isinstance(record, aio.Record)
    assert (record[0], record["b"], record[-1], record[:2]) == (1, "x", None, (1, "x"))
    assert list(record) == [1, "x", None]
    assert list(record.keys()) == ["a", "b", "c"]
    assert list(record.values()) == [1, "x", None]
    assert list(record.items()) == [("a", 1), ("b", "x"), ("c", None)]
    assert dict(record) == {"a": 1, "b": "x", "c": None}
    assert (len(record), "a" in record, 1 in record) == (3, True, False)
    assert (record.get("b"), record.get("z"), record.get("z", 5)) == ("x", None, 5)
    assert repr(record) == "<Record a=1 b='x' c=None>"
    a, b, c = record
    assert (a, b, c) == record


def test_what_it_refuses(record):
    with pytest.raises(KeyError, match="z"):
        record["z"]
    with pytest.raises(IndexError):
        record[3]
    with pytest.raises(IndexError):
        record[-4]
    with pytest.raises(TypeError):
        record[1.5]
    with pytest.raises(TypeError):
        record[0] = 1
    with pytest.raises(TypeError):
        aio.Record()


@pytest.mark.parametrize("width", [0, 1, 16, 17])
def test_memory_that_is_used_again(sync, width):
    """More rows than are kept for another use, in turns with those that are held."""
    columns = ", ".join(f"i + {at} AS c{at}" for at in range(width))
    fetch = sync.raw.fetch
    held = []
    for many in (3, 2500, 900, 2500):
        rows = fetch(f"SELECT {columns} FROM generate_series(1, {many}) AS i").run()
        held.append(rows[many // 2])
        assert [tuple(row) for row in rows] == [
            tuple(range(i, i + width)) for i in range(1, many + 1)
        ]
        del rows
    assert held == [tuple(range(i + 1, i + 1 + width)) for i in (1, 1250, 450, 1250)]
    assert [list(row.keys()) for row in held] == [[f"c{at}" for at in range(width)]] * 4


def test_equality_order_and_hash_are_a_tuples(record, sync):
    same = sync.raw.fetchrow("SELECT 1, 'x', NULL").run()
    assert record == same == (1, "x", None)
    assert {record: 1}[(1, "x", None)] == 1
    assert (1, "y") > sync.raw.fetchrow("SELECT 1, 'x'").run() > (0,)
    assert record != [1, "x", None]
    with pytest.raises(TypeError):
        hash(sync.raw.fetchrow("SELECT ARRAY[1]").run())


class Mine(aio.Record):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def test_a_class_of_ones_own(sync):
    row = sync.raw.fetchrow("SELECT 1 AS a, ARRAY[2] AS b", record_class=Mine).run()
    assert type(row) is Mine
    assert (row.a, row.b) == (1, [2])
    canary = set()
    row.more = (row, canary)
    ref = weakref.ref(canary)
    del row, canary
    gc.collect()
    assert ref() is None
    with pytest.raises(sync.InterfaceError, match="subclass of Record"):
        sync.raw.fetchrow("SELECT 1", record_class=dict)


@pytest.mark.parametrize("cls", [None, Mine])
def test_it_can_be_pickled_and_copied(sync, cls):
    row = sync.raw.fetchrow("SELECT 1 AS a, ARRAY[2] AS b", record_class=cls).run()
    for again in (pickle.loads(pickle.dumps(row)), copy.copy(row), copy.deepcopy(row)):
        assert (again, again["b"], list(again.keys())) == (row, [2], ["a", "b"])
        assert isinstance(again, cls or aio.Record)
    with pytest.raises(TypeError):
        _pg.make_record(aio.Record, ("a",), (1, 2))
    with pytest.raises(TypeError):
        _pg.make_record(int, ("a",), (1,))


def test_plain_rows_are_not_the_collectors_business(sync):
    plain = sync.raw.fetchrow("SELECT 1, 'x', now()").run()
    nested = sync.raw.fetchrow("SELECT ARRAY[1]").run()
    assert not gc.is_tracked(plain)
    assert gc.is_tracked(nested)
    nested[0].append(nested)  # a cycle
    count = len(gc.get_objects())
    del nested
    gc.collect()
    assert len(gc.get_objects()) <= count


def test_names_that_occur_twice(sync):
    row = sync.raw.fetchrow("SELECT 1 AS a, 2 AS a").run()
    assert (row["a"], list(row.items()), tuple(row)) == (2, [("a", 1), ("a", 2)], (1, 2))
