"""Spans and metrics of greenletio.pg: ``pip install "greenletio[opentelemetry]"``.

By OpenTelemetry's semantic conventions for database clients: a span for each query, the histogram
``db.client.operation.duration``, and what there is to know of the pools. Arguments are never told;
the text of a query is, with its placeholders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry import context, metrics, trace
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider

import greenletio
from greenletio.pg import observe

__all__ = ("Instrumentation", "instrument")

_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
_COMMENT_STARTS = ("--", "/*")


class Instrumentation:
    """What `instrument` has begun. Leaving its block ends it, too."""

    def __init__(self, hook: Callable[[observe.Query], None]) -> None:
        self._hook = hook
        self.active = True

    def stop(self) -> None:
        """No more spans and metrics. Again: nothing."""
        self.active = False
        observe.remove_hook(self._hook)

    def __enter__(self) -> Instrumentation:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def instrument(
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    query_text: bool = True,
) -> Instrumentation:
    """Tell OpenTelemetry of all queries and pools of greenletio.pg, in both faces.

    The providers are the global ones unless they are given. `query_text` False leaves the text of
    queries out. Each call tells once more.
    """
    version = greenletio.__version__
    tracer = trace.get_tracer("greenletio.pg", version, tracer_provider)
    meter = metrics.get_meter("greenletio.pg", version, meter_provider)
    duration = meter.create_histogram(
        "db.client.operation.duration",
        unit="s",
        description="Duration of database client operations",
        explicit_bucket_boundaries_advisory=list(_BUCKETS),
    )

    def tell(query: observe.Query) -> None:
        attributes = _attributes(query)
        duration.record(query.seconds, attributes)
        begin = int(query.started * 1e9)
        target = attributes.get("db.namespace")
        span = tracer.start_span(
            f"{attributes['db.operation.name']} {target or ''}".strip(),
            query.at_start,
            SpanKind.CLIENT,
            attributes,
            start_time=begin,
        )
        if span.is_recording():
            if query_text:
                span.set_attribute("db.query.text", query.text)
            span.set_attribute("code.file.path", query.caller.filename)
            span.set_attribute("code.line.number", query.caller.lineno)
            span.set_attribute("code.function.name", query.caller.function)
            if query.error is not None:
                # Not what the server said: that may have values in it.
                span.set_status(Status(StatusCode.ERROR, str(attributes["error.type"])))
        span.end(begin + int(query.seconds * 1e9))

    found = Instrumentation(tell)
    _observe_pools(meter, found)
    observe.add_hook(tell, at_start=context.get_current)
    return found


def _operation(query: observe.Query) -> str:
    """The first word of a query, behind its comments."""
    text = query.text.lstrip()
    while text.startswith(_COMMENT_STARTS):
        text = text.partition("\n" if text.startswith("--") else "*/")[2].lstrip()
    word = text.split(None, 1)[0] if text else query.kind
    return word.strip("(;").upper()


def _attributes(query: observe.Query) -> dict[str, str | int]:
    options = query.options
    attributes: dict[str, str | int] = {
        "db.system.name": "postgresql",
        "db.operation.name": _operation(query),
    }
    if database := options.get("dbname"):
        attributes["db.namespace"] = database
    if host := options.get("host"):
        attributes["server.address"] = host
    port = options.get("port", "5432") if options else ""
    if port.isdigit():
        attributes["server.port"] = int(port)
    if query.error is not None:
        attributes["error.type"] = type(query.error).__qualname__
        state = getattr(query.error, "sqlstate", None)
        if state is not None:
            attributes["db.response.status_code"] = state
    return attributes


_Read = Callable[[dict[str, int]], list[tuple[int, dict[str, str]]]]


def _reader(key: str) -> _Read:
    return lambda stats: [(stats[key], {})]


def _observe_pools(meter: metrics.Meter, found: Instrumentation) -> None:
    def per_pool(read: _Read) -> Any:
        def callback(_options: CallbackOptions) -> Iterable[Observation]:
            if not found.active:
                return
            for name, stats in observe.pools().items():
                for value, more in read(stats):
                    yield Observation(value, {"db.client.connection.pool.name": name, **more})

        return [callback]

    def count(stats: dict[str, int]) -> list[tuple[int, dict[str, str]]]:
        idle = stats["pool_available"]
        state = "db.client.connection.state"
        return [(idle, {state: "idle"}), (stats["pool_size"] - idle, {state: "used"})]

    meter.create_observable_up_down_counter(
        "db.client.connection.count",
        per_pool(count),
        unit="{connection}",
        description="The number of connections that are currently in the state described",
    )
    for name, key, unit, description in (
        ("idle.min", "pool_min", "{connection}", "The minimum number of connections kept"),
        ("max", "pool_max", "{connection}", "The maximum number of connections"),
        ("pending_requests", "requests_waiting", "{request}", "Those that wait for a connection"),
    ):
        meter.create_observable_up_down_counter(
            f"db.client.connection.{name}",
            per_pool(_reader(key)),
            unit=unit,
            description=description,
        )
    meter.create_observable_counter(
        "db.client.connection.timeouts",
        per_pool(_reader("requests_errors")),
        unit="{timeout}",
        description="Those that waited for a connection in vain",
    )
