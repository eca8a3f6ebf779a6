"""When alerts are raised, held and cleared: over any sequence of readings."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pipeline.monitoring.alerts import CLEAR_SECONDS, Event, Standing, step
from pipeline.monitoring.checks import SEVERITIES, Condition, rank

LOOK_SECONDS = 30.0


def condition(
    firm: bool = True, severity: str = "medium", for_seconds: float = 60.0, subject: str = "low"
) -> Condition:
    found = next(one for one in SEVERITIES if one == severity)
    lasting = 0.0 if severity == "critical" else for_seconds
    return Condition("queue_size", subject, found, "many wait", {"size": 501}, firm, lasting)


class Watched:
    """The alerts, as the duty leaves them: it looks every LOOK_SECONDS."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.open: dict[tuple[str, str], Standing] = {}
        self.events: list[tuple[float, tuple[str, str], Event]] = []
        self.written = 0

    def look(self, *conditions: Condition, unknown: tuple[str, ...] = (), after: float = LOOK_SECONDS) -> None:
        self.now += after
        for made in step(list(self.open.values()), conditions, unknown, self.now):
            if made.event:
                self.events.append((self.now, made.standing.key, made.event))
            if made.forgotten or made.standing.cleared_at is not None:
                del self.open[made.standing.key]
                continue
            self.written += made.standing.id is None
            self.open[made.standing.key] = replace(made.standing, id=made.standing.id or self.written)

    @property
    def told(self) -> list[Event]:
        return [event for _, _, event in self.events]

    @property
    def active(self) -> bool:
        return any(one.active for one in self.open.values())


def test_a_condition_must_last_before_it_is_raised() -> None:
    watched = Watched()
    watched.look(condition())
    watched.look(condition())
    assert watched.told == []
    watched.look(condition())
    assert watched.told == ["raised"]
    watched.look(condition())
    assert watched.told == ["raised"]


def test_one_that_was_over_before_it_lasted_was_none() -> None:
    watched = Watched()
    for _ in range(20):
        watched.look(condition())
        watched.look()
    assert (watched.told, watched.open) == ([], {})


def test_a_critical_one_is_raised_at_once() -> None:
    watched = Watched()
    watched.look(condition(severity="critical"))
    assert watched.told == ["raised"]


def test_it_clears_only_after_it_has_been_gone_for_a_while() -> None:
    watched = Watched()
    watched.look(condition(for_seconds=0))
    for _ in range(4):
        watched.look()
        assert watched.told == ["raised"]
    watched.look()
    assert watched.told == ["raised", "cleared"]


def test_between_its_threshold_and_the_lower_bound_it_is_held_and_none_begins() -> None:
    watched = Watched()
    for _ in range(20):
        watched.look(condition(firm=False))
    assert (watched.told, watched.open) == ([], {})
    watched.look(condition(for_seconds=0))
    for _ in range(20):
        watched.look(condition(firm=False))
    assert watched.told == ["raised"]
    assert watched.active


def test_what_cannot_be_looked_at_is_neither_seen_nor_gone() -> None:
    watched = Watched()
    watched.look(condition(for_seconds=0))
    for _ in range(20):
        watched.look(unknown=("queue_size",))
    assert watched.active
    for _ in range(5):
        watched.look()
    assert not watched.active


def test_what_was_not_looked_at_meanwhile_is_not_known_to_have_lasted() -> None:
    watched = Watched()
    watched.look(condition())
    watched.look(condition(), after=3600.0)
    assert watched.told == []
    watched.look(condition())
    watched.look(condition())
    assert watched.told == ["raised"]


def test_a_severity_that_rises_is_told_again_and_does_not_fall() -> None:
    watched = Watched()
    watched.look(condition(for_seconds=0))
    watched.look(condition(severity="high"))
    watched.look(condition(severity="low"))
    watched.look(condition(severity="high"))
    assert watched.told == ["raised", "risen"]
    (one,) = watched.open.values()
    assert one.severity == "high"


READINGS = st.lists(
    st.tuples(
        st.sampled_from(["over", "band", "gone", "unknown", "worse", "critical"]),
        st.sampled_from(["high", "low"]),
        st.floats(1.0, 200.0),
    ),
    max_size=60,
)


@given(READINGS)
def test_whatever_is_read_there_is_one_of_a_kind_at_most_and_it_clears_in_the_end(
    readings: list[tuple[str, str, float]],
) -> None:
    watched = Watched()
    for reading, subject, after in readings:
        match reading:
            case "over" | "band":
                watched.look(condition(reading == "over", subject=subject), after=after)
            case "worse" | "critical":
                severity = "high" if reading == "worse" else "critical"
                watched.look(condition(severity=severity, subject=subject), after=after)
            case "gone":
                watched.look(after=after)
            case "unknown":
                watched.look(unknown=("queue_size",), after=after)

    # Of each kind raised and cleared alternate, so that there are never two; risen comes in between only
    for subject in ("high", "low"):
        told = [event for _, key, event in watched.events if key == ("queue_size", subject) and event != "risen"]
        assert told == ["raised", "cleared"] * (len(told) // 2) + ["raised"] * (len(told) % 2)
        # a severity rises at most as often as there are higher ones, for each time that it is raised
        risen = [event for _, key, event in watched.events if key == ("queue_size", subject) and event == "risen"]
        assert len(risen) <= (len(SEVERITIES) - 1) * told.count("raised")
    # Nothing clears sooner than it must have been gone for
    for (began, key, event), (ended, other, then) in zip(watched.events, watched.events[1:], strict=False):
        if key == other and (event, then) == ("raised", "cleared"):
            assert ended - began >= CLEAR_SECONDS
    # When the conditions stay away, all clear
    for _ in range(7):
        watched.look()
    assert watched.open == {}
    assert watched.told.count("raised") == watched.told.count("cleared")


@given(st.lists(st.floats(0.5, 1.5), min_size=1, max_size=100), st.floats(60.0, 100.0))
def test_a_value_that_swings_around_its_threshold_changes_little(swings: list[float], share: float) -> None:
    """Whatever it does, it is raised and cleared at most once in CLEAR_SECONDS; inside of the band, once at most."""
    watched = Watched()
    for value in swings:
        over = True if value > 1.0 else None if value > 0.8 else False
        watched.look(*([] if over is False else [condition(bool(over), for_seconds=0)]))
    seconds = LOOK_SECONDS * len(swings)
    assert len(watched.events) <= 2 * (1 + seconds / CLEAR_SECONDS)
    if min(swings) > 0.8:
        assert len(watched.events) <= 1


def test_severities_are_ranked() -> None:
    assert [rank(severity) for severity in SEVERITIES] == [0, 1, 2, 3]
