"""The order in which a worker looks into its queues."""

from __future__ import annotations

import random
from collections import Counter, deque
from itertools import pairwise

import pytest

from workers.queues import TURNS, WeightedTurns


def _take(turns: WeightedTurns, backlog: dict[str, int], count: int) -> list[str]:
    """Messages as kombu takes them: from the first queue of `consume` that has one, which `rotate` is then told."""
    taken = []
    for _ in range(count):
        queue = next((name for name in turns.consume(len(backlog)) if backlog[name]), None)
        if queue is None:
            break
        backlog[queue] -= 1
        assert turns.rotate(queue) == queue
        taken.append(queue)
    return taken


def test_when_all_are_backlogged_they_share_seven_to_two_to_one() -> None:
    taken = _take(WeightedTurns(["low", "normal", "high"]), {"high": 9999, "normal": 9999, "low": 9999}, 1000)

    assert Counter(taken) == {"high": 700, "normal": 200, "low": 100}


def test_low_is_never_starved_and_high_never_waits_for_more_than_one() -> None:
    taken = _take(WeightedTurns(["high", "normal", "low"]), {"high": 9999, "normal": 9999, "low": 9999}, 1000)

    def longest_wait(queue: str) -> int:
        places = [place for place, name in enumerate(taken) if name == queue]
        return max(after - before for before, after in pairwise(places))

    assert (longest_wait("high"), longest_wait("normal"), longest_wait("low")) == (2, 6, 10)


def test_a_high_message_passes_a_backlog_of_the_others_whoever_has_the_turn() -> None:
    for turn in range(len(TURNS)):
        turns = WeightedTurns(["high", "normal", "low"])
        backlog = {"high": 0, "normal": 9999, "low": 9999}
        _take(turns, backlog, turn)
        backlog["high"] = 1

        assert "high" in _take(turns, backlog, 2), f"after {turn}"


@pytest.mark.parametrize("alone", ["high", "normal", "low"])
def test_a_queue_that_is_alone_in_having_work_gets_every_turn(alone: str) -> None:
    backlog = {"high": 0, "normal": 0, "low": 0, alone: 50}

    assert _take(WeightedTurns(backlog), backlog, 60) == [alone] * 50


def test_rescue_work_is_first_and_takes_nobodys_turn() -> None:
    turns = WeightedTurns(["high", "control"])
    backlog = {"control": 3, "high": 9, "normal": 0, "low": 0}
    assert _take(turns, backlog, 4) == ["control", "control", "control", "high"]

    everything = WeightedTurns(["low", "high", "control", "normal"])
    backlog = {"high": 9999, "normal": 9999, "low": 9999, "control": 0}
    taken = []
    dice = random.Random(7)
    for _ in range(1000):
        backlog["control"] = dice.randint(0, 1)
        taken += _take(everything, backlog, 1)
    shares = Counter(name for name in taken if name != "control")
    assert abs(shares["high"] - 7 * shares["low"]) <= 7
    assert abs(shares["normal"] - 2 * shares["low"]) <= 2


def test_the_queues_of_a_worker_are_looked_into_in_the_order_of_their_priority() -> None:
    turns = WeightedTurns()
    assert turns.consume(4) == []

    turns.update(deque(["low", "other", "control", "normal", "high"]))

    assert turns.consume(5) == ["control", "high", "normal", "low", "other"]
    assert turns.consume(2) == ["control", "high"]
    for queue in TURNS[:3]:
        turns.rotate(queue)
    assert turns.consume(5) == ["control", "normal", "high", "low", "other"]
