"""Spans and metrics, as OpenTelemetry's own SDK collects them."""

import asyncio

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from greenletio import pg
from greenletio.integrations.opentelemetry import instrument
from greenletio.pg import aio, errors


class Collected:
    def __init__(self, **options: bool) -> None:
        self.spans = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.instrumentation = instrument(
            tracer_provider=self.tracers, meter_provider=self.meters, **options
        )

    def metrics(self) -> dict:
        data = self.reader.get_metrics_data()
        return {
            metric.name: metric.data.data_points
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def collected():
    found = Collected()
    yield found
    found.instrumentation.stop()


def test_a_query_is_a_span_below_its_callers(collected, pg_dsn):
    tracer = collected.tracers.get_tracer("test")

    async def request(pool, n):
        with tracer.start_as_current_span(f"request {n}"):
            return await pool.fetchval("-- a comment\nSELECT $1::int", n)

    async def main():
        async with aio.create_pool(pg_dsn, min_size=1, max_size=2) as pool:
            assert await asyncio.gather(*[request(pool, n) for n in range(4)]) == [0, 1, 2, 3]

    asyncio.run(main())
    spans = collected.spans.get_finished_spans()
    requests = {span.context.span_id: span for span in spans if span.parent is None}
    queries = [span for span in spans if span.kind is SpanKind.CLIENT]
    assert len(queries) == 4
    for span in queries:
        parent = requests.pop(span.parent.span_id)
        assert parent.start_time <= span.end_time and span.start_time <= parent.end_time
        attributes = span.attributes
        assert span.name == f"SELECT {attributes['db.namespace']}"
        assert attributes["db.system.name"] == "postgresql"
        assert attributes["db.query.text"] == "-- a comment\nSELECT $1::int"
        assert attributes["server.port"] > 0 and attributes["server.address"]
        assert attributes["code.file.path"] == __file__
    assert requests == {}


def test_what_fails_is_marked_with_its_sqlstate(collected, pg_dsn):
    with pg.connect(pg_dsn, autocommit=True) as connection:
        with pytest.raises(errors.DivisionByZero):
            connection.execute("SELECT 1/0")
    (span,) = collected.spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "DivisionByZero"
    assert span.attributes["db.response.status_code"] == "22012"


def test_durations_and_pools_are_metrics(collected, pg_dsn):
    with pg.Pool(pg_dsn, min_size=1, max_size=3, name="a pool") as pool:
        with pool.connection() as connection:
            connection.execute("SELECT 1")
            found = collected.metrics()
    (point, *_) = (
        p
        for p in found["db.client.operation.duration"]
        if p.attributes["db.operation.name"] == "SELECT"
    )
    assert point.count == 1 and point.sum > 0
    pool_name = "db.client.connection.pool.name"
    used = [
        p.value
        for p in found["db.client.connection.count"]
        if p.attributes[pool_name] == "a pool"
        and p.attributes["db.client.connection.state"] == "used"
    ]
    assert used == [1]
    most = found["db.client.connection.max"]
    assert [p.value for p in most if p.attributes[pool_name] == "a pool"] == [3]


def test_the_text_may_be_left_out_and_it_can_be_stopped(pg_dsn):
    found = Collected(query_text=False)
    with pg.connect(pg_dsn, autocommit=True) as connection:
        with found.instrumentation:
            connection.execute("SELECT 'private'")
        connection.execute("SELECT 2")
    (span,) = found.spans.get_finished_spans()
    assert "private" not in str(span.attributes)
