"""Where Redis is away, beat says so in a line for each tick, and goes on."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from workers.clock import BoundedScheduler


class Cut(BoundedScheduler):
    def __init__(self) -> None:
        """Without an app: nothing is sent."""

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **options: Any) -> Any:
        raise ConnectionError("Redis is away")


def test_a_tick_that_cannot_be_sent_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Cut().apply_entry(SimpleNamespace(name="duty.contract"))

    (record,) = caplog.records
    assert record.getMessage() == "duty.contract is not sent: Redis is away"
    assert record.exc_info is None
