"""greenletio.green.time."""

from __future__ import annotations

import asyncio
import time as std
from typing import Any

import pytest

from greenletio import WouldBlockError, async_
from greenletio.green import time

pytestmark = pytest.mark.leaks


def test_sleep_lets_the_others_run(green: Any) -> None:
    def main() -> None:
        before = std.monotonic()
        assert time.sleep(0.01) is None  # type: ignore[func-returns-value]
        assert std.monotonic() - before >= 0.01
        assert green.ticker.steps > 0
        steps = green.ticker.steps
        time.sleep(0)
        assert green.ticker.steps > steps

    green(main)


def test_sleep_without_a_loop() -> None:
    before = std.monotonic()
    time.sleep(0.01)
    assert std.monotonic() - before >= 0.01


def test_arguments_are_judged_as_in_the_standard_library(green: Any) -> None:
    def main() -> None:
        for value in (-1, -0.001, float("nan"), None, "1", [], 1j):
            outcomes = []
            for sleep in (std.sleep, time.sleep):
                with pytest.raises(Exception) as raised:
                    sleep(value)
                outcomes.append(raised.type)
            assert outcomes[0] is outcomes[1], value
        time.sleep(False)

    green(main)


def test_sleep_can_be_cancelled(run: Any) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(async_(time.sleep)(3600))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(WouldBlockError):
            time.sleep(1)

    run(main())


def test_the_rest_is_the_standard_module() -> None:
    assert time.monotonic is std.monotonic
    assert time.struct_time is std.struct_time


def test_the_time_zone_is_the_one_that_was_set_last(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv("TZ", "XYZ-3")
        time.tzset()
        assert (time.tzname[0], time.timezone) == ("XYZ", -3 * 3600)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert time.tzname is std.tzname
