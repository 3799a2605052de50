"""Logical replication of transactions that are committed in two phases; what slots are made for."""

import pytest
from fix_replication import make

from greenletio import pg
from greenletio.pg import errors

LIMIT_S = 30  # against a hang, not a measure

LARGE = "INSERT INTO numbers SELECT i, repeat('x', 100) FROM generate_series(1, 3000) i"


class Prepared:
    """A replicated database, whose prepared transactions are rolled back at the end."""

    def __init__(self, replicated):
        self.sql, self.url = replicated.sql, replicated.url
        self.slot = replicated.slot()
        self.sql("CREATE TABLE numbers (n int, t text)")

    def gid(self, name):
        return f"{self.slot} {name}"  # which the whole server has in common

    def prepare(self, name, *commands):
        self.sql("BEGIN", *commands, f"PREPARE TRANSACTION '{self.gid(name)}'")

    def commit(self, name):
        self.sql(f"COMMIT PREPARED '{self.gid(name)}'")

    def roll_back(self, name):
        self.sql(f"ROLLBACK PREPARED '{self.gid(name)}'")

    def end_walsender(self):
        self.sql(
            "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots "
            f"WHERE slot_name = '{self.slot}' AND active_pid IS NOT NULL"
        )

    def close(self):
        there = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
        for (gid,) in self.sql(there):
            self.sql(f"ROLLBACK PREPARED '{gid}'")


@pytest.fixture
def prepared(replicated):
    made = Prepared(replicated)
    yield made
    made.close()


def insert(n):
    return f"INSERT INTO numbers VALUES ({n})"


def taken(item):
    """What came, as a tuple."""
    if isinstance(item, (pg.CommitPrepared, pg.RollbackPrepared)):
        return type(item).__name__, item.gid
    return item.gid, [change.new["n"] for change in item]


@pytest.mark.parametrize("lost", [False, True], ids=["", "each connection is lost"])
def test_what_was_prepared_comes_before_its_end(prepared, lost):
    with pg.connect_replication(prepared.url) as replication:
        with replication.stream(prepared.slot, "everything", two_phase=True) as stream:

            def get():
                if lost:
                    prepared.end_walsender()
                return stream.get(LIMIT_S)

            prepared.prepare("a", insert(1), insert(2))
            prepared.sql(insert(3))
            first = get()
            assert taken(first) == (prepared.gid("a"), [1, 2])
            assert taken(get()) == (None, [3])
            prepared.prepare("b", insert(4))
            if lost:
                prepared.roll_back("b")
                prepared.commit("a")
                prepared.sql(insert(5))
            gid, rows = taken(get())
            assert gid == prepared.gid("b")
            assert rows in ([4], []) if lost else rows == [4]  # it was rolled back already
            if not lost:
                prepared.roll_back("b")
                prepared.commit("a")
                prepared.sql(insert(5))
            assert taken(get()) == ("RollbackPrepared", prepared.gid("b"))
            end = get()
            assert taken(end) == ("CommitPrepared", prepared.gid("a"))
            assert (end.xid, end.time >= first.commit_time) == (first.xid, True)
            assert first.end_lsn < end.lsn < end.end_lsn
            assert taken(get()) == (None, [5])
            stream.confirm(end)
        slot = replication.slot(prepared.slot)
        assert slot.two_phase and not slot.failover
        assert lost or slot.confirmed_flush_lsn >= end.end_lsn


def test_without_it_they_come_when_they_are_committed(prepared):
    prepared.prepare("a", insert(1))
    prepared.prepare("b", insert(2))
    prepared.sql(insert(3))
    with pg.connect_replication(prepared.url) as replication:
        with replication.stream(prepared.slot, "everything") as stream:
            assert taken(stream.get(LIMIT_S)) == (None, [3])
            prepared.roll_back("b")
            prepared.commit("a")
            assert taken(stream.get(LIMIT_S)) == (None, [1])


def test_one_prepared_before_the_slot_was_for_that_comes_at_its_end(prepared):
    prepared.prepare("early", insert(1), insert(2))
    prepared.sql(insert(3))
    with pg.connect_replication(prepared.url) as replication:
        with replication.stream(prepared.slot, "everything") as stream:
            item = stream.get(LIMIT_S)
            assert taken(item) == (None, [3])
            stream.confirm(item)
        with replication.stream(prepared.slot, "everything", two_phase=True) as stream:
            prepared.sql(insert(4))
            assert taken(stream.get(LIMIT_S)) == (None, [4])
            prepared.commit("early")
            prepared.sql(insert(5))
            assert taken(stream.get(LIMIT_S)) == (prepared.gid("early"), [1, 2])
            prepared.end_walsender()
            assert taken(stream.get(LIMIT_S)) == ("CommitPrepared", prepared.gid("early"))
            assert taken(stream.get(LIMIT_S)) == (None, [5])


def test_large_ones_are_sent_before_they_are_prepared(prepared):
    name = prepared.url.rpartition("/")[2]
    prepared.sql(f"ALTER ROLE postgres IN DATABASE {name} SET logical_decoding_work_mem = '64kB'")
    how = {"streaming": True, "two_phase": True}
    with pg.connect_replication(prepared.url) as replication:
        with replication.stream(prepared.slot, "everything", **how) as stream:
            prepared.prepare("a", LARGE, "SAVEPOINT s", LARGE, "ROLLBACK TO s", insert(0))
            prepared.sql(insert(-1))
            assert taken(stream.get(LIMIT_S)) == (prepared.gid("a"), [*range(1, 3001), 0])
            assert taken(stream.get(LIMIT_S)) == (None, [-1])
            prepared.commit("a")
            assert taken(stream.get(LIMIT_S)) == ("CommitPrepared", prepared.gid("a"))


def test_the_next_program_is_told_the_end_of_what_was_confirmed(prepared):
    prepared.prepare("a", insert(1))
    with pg.connect_replication(prepared.url) as replication:
        with replication.stream(prepared.slot, "everything", two_phase=True) as stream:
            item = stream.get(LIMIT_S)
            assert taken(item) == (prepared.gid("a"), [1])
            stream.confirm(item)
        prepared.commit("a")
        with replication.stream(prepared.slot, "everything", two_phase=True) as stream:
            assert taken(stream.get(LIMIT_S)) == ("CommitPrepared", prepared.gid("a"))


def test_slots_for_both_phases_and_for_fail_over(replicated):
    version = replicated.writer.raw._server_version
    with pg.connect_replication(replicated.url) as replication:
        made = replication.create_slot("test_two_phase", two_phase=True, snapshot=True)
        try:
            assert made.two_phase and not made.failover and made.snapshot_name
            found = replication.slot("test_two_phase")
            assert (found.two_phase, found.failover) == (True, False)
        finally:
            replication.drop_slot("test_two_phase")
        if version < 170000:
            with pytest.raises(errors.NotSupportedError, match="PostgreSQL 17"):
                replication.create_slot("test_failover", failover=True)
            return
        assert replication.create_slot("test_failover", failover=True).failover
        try:
            found = replication.slot("test_failover")
            assert (found.two_phase, found.failover) == (False, True)
        finally:
            replication.drop_slot("test_failover")


def test_the_other_plugin_has_no_phases(pg_url):
    for replicated in make(pg_url):
        slot = replicated.slot("test_decoding")
        with pg.connect_replication(replicated.url) as replication:
            with replication.stream(slot, two_phase=True) as stream:
                with pytest.raises(errors.ProgrammingError, match="two_phase"):
                    stream.get(LIMIT_S)
