"""What the system does by itself: in steps, bounded, and back again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.monitoring.alerts import Standing
from pipeline.monitoring.triggers import LEAST_SHARE, STEP_SECONDS, Response, Share, respond

LOOK_SECONDS = 30.0


def active(type: str, subject: str, gone_at: float | None = None) -> Standing:
    return Standing(type, subject, "high", f"{subject} is over", 0.0, 0.0, raised_at=0.0, gone_at=gone_at, id=1)


MEMORY = active("memory_pressure", "general1@here child 0")


class Plant:
    """The override, as the duty leaves it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.share: Share | None = None
        self.changes: list[tuple[float, float]] = []

    def look(self, *alerts: Standing) -> Response:
        self.now += LOOK_SECONDS
        response = respond(alerts, self.share or Share(), False, self.now)
        if response.share is not None:
            self.share = Share(response.share, self.now)
            self.changes.append((self.now, response.share))
        if response.restored:
            self.share = None
        return response


def test_pressure_shrinks_batches_step_by_step_down_to_a_floor_and_back() -> None:
    plant = Plant()
    assert plant.look(MEMORY).share == 0.5
    for _ in range(60):
        plant.look(MEMORY)
    assert [share for _, share in plant.changes] == [0.5, 0.25]

    for _ in range(60):
        plant.look()
    assert [share for _, share in plant.changes] == [0.5, 0.25, 0.5, 1.0]
    assert plant.share is None


def test_what_is_done_is_told_with_the_alert_it_is_done_for() -> None:
    response = respond([MEMORY, active("slow_operation", "embed")], Share(), False, 0.0)
    assert dict(response.told) == {
        ("memory_pressure", "general1@here child 0"): "batches shrunk to 50% of their size",
        ("slow_operation", "embed"): "batches shrunk to 50% of their size",
    }
    assert response.collect == ("general1@here child 0",)
    assert "embed is over" in response.reason


def test_a_slow_search_asks_for_tuning_once_and_shrinks_nothing() -> None:
    slow = active("slow_operation", "search.retrieve")
    response = respond([slow], Share(), False, 0.0)
    assert (response.share, response.tuning) == (None, "search.retrieve is over")
    assert respond([slow], Share(), True, 0.0) == Response()


def test_an_alert_that_only_waits_to_clear_is_no_reason_to_go_further() -> None:
    waiting = active("memory_pressure", "here", gone_at=0.0)
    assert respond([waiting], Share(0.5, 0.0), False, STEP_SECONDS) == Response()


def test_other_alerts_are_no_reason_to_do_anything() -> None:
    assert respond([active("queue_size", "low"), active("error_rate", "search")], Share(), False, 0.0) == Response()


@given(st.lists(st.booleans(), max_size=300))
def test_however_pressure_comes_and_goes_shares_stay_in_bounds_and_steps_apart(pressure: list[bool]) -> None:
    plant = Plant()
    for pressed in pressure:
        plant.look(*([MEMORY] if pressed else []))
    assert all(LEAST_SHARE <= share <= 1.0 for _, share in plant.changes)
    for (earlier, _), (later, _) in zip(plant.changes, plant.changes[1:], strict=False):
        assert later - earlier >= STEP_SECONDS
    for _ in range(5 * int(STEP_SECONDS / LOOK_SECONDS)):
        plant.look()
    assert plant.share is None


def test_batches_are_not_made_smaller_because_somebody_elses_server_is_slow() -> None:
    plant = Plant()
    assert plant.look(active("slow_operation", "embed.buy")).share is None
    assert plant.look(active("slow_operation", "embed.compute")).share == 0.5
