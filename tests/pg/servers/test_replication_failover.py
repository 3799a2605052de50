"""A slot that standbys have, too: the stream goes on at the new primary."""

import time
from contextlib import ExitStack

import pytest
from fix_cluster import OwnStandby
from fix_postgres import SETTINGS, OwnServer, ask, need_embedded
from fix_replication import numbers_of

from greenletio import pg

LIMIT_S = 60  # against a hang, not a measure

FOLLOWS = {
    **SETTINGS,
    "sync_replication_slots": "on",
    "hot_standby_feedback": "on",
    "primary_slot_name": "standby",
}


@pytest.mark.slow
def test_a_stream_goes_on_at_the_new_primary():
    need_embedded()
    with ExitStack() as stack:
        primary = stack.enter_context(OwnServer(settings=SETTINGS))
        ask(primary.url, "SELECT pg_create_physical_replication_slot('standby', true)")
        standby = stack.enter_context(OwnStandby(primary, settings=FOLLOWS))
        ask(primary.url, "ALTER SYSTEM SET synchronized_standby_slots = 'standby'")
        ask(primary.url, "SELECT pg_reload_conf()")
        ask(primary.url, "CREATE TABLE numbers (n int)")
        ask(primary.url, "CREATE PUBLICATION everything FOR ALL TABLES")
        options = {
            "host": ["127.0.0.1"] * 2,
            "port": [primary.port, standby.port],
            "user": "postgres",
            "password": primary.password,
            "database": "postgres",
            "target_session_attrs": "read-write",
        }
        with pg.connect_replication(**options) as replication:
            replication.create_slot("consumer", failover=True)
            with replication.stream("consumer", "everything") as stream:
                synced = "SELECT synced AND NOT temporary FROM pg_replication_slots"
                end = time.monotonic() + LIMIT_S
                n = 0
                while n < 2 or ask(standby.url, synced) != [(True,)]:
                    assert time.monotonic() < end
                    n += 1  # the standby has it when its consumer has gone on
                    ask(primary.url, "SELECT pg_log_standby_snapshot()")
                    ask(primary.url, f"INSERT INTO numbers VALUES ({n})")
                    item = stream.get(LIMIT_S)
                    assert numbers_of(item) == [n]
                    stream.confirm(item)
                primary.kill()
                ask(standby.url, "SELECT pg_promote()")
                ask(standby.url, "INSERT INTO numbers VALUES (0)")
                assert numbers_of(stream.get(LIMIT_S)) == [0]
