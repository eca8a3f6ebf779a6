"""What a pool child says of itself in shared memory, and what its worker's main process reads there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from tasks import vitals
from tasks.vitals import Vitals

SLOT = 500  # of no pool child that there is


def in_a_child(slot: int, work: Callable[[], None]) -> int:
    """Forks a pool child that does this and ends without a word. Returns its pid."""
    pid = os.fork()
    if not pid:
        try:
            vitals.enter(slot)
            work()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return pid


def seen(slot: int) -> Vitals | None:
    return next((child for child in vitals.children() if child.slot == slot), None)


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    yield
    in_a_child(SLOT, vitals.leave)
    if (left := seen(SLOT)) is not None:
        vitals.bury(left)


def test_the_main_process_sees_what_its_children_write() -> None:
    before, done = time.monotonic(), vitals.done()

    def work() -> None:
        vitals.begin()
        vitals.beat()
        vitals.count(1, 3)
        vitals.count(2, 1)

    pid = in_a_child(SLOT, work)

    child = seen(SLOT)
    assert child is not None
    assert (child.pid, child.fallen) == (pid, 0)
    assert before <= child.progressed <= child.began <= child.beat <= time.monotonic()
    assert [after - earlier for earlier, after in zip(done, vitals.done(), strict=True)] == [0, 3, 1]


def test_a_child_between_two_tasks_has_nothing_to_be_watched() -> None:
    def work() -> None:
        vitals.begin()
        vitals.beat()
        vitals.quiet()
        vitals.end()

    in_a_child(SLOT, work)

    child = seen(SLOT)
    assert child is not None
    assert (child.began, child.beat) == (0.0, 0.0)


def test_a_child_that_left_no_word_is_told_of_by_the_one_after_it() -> None:
    first = in_a_child(SLOT, vitals.begin)
    second = in_a_child(SLOT, lambda: None)

    child = seen(SLOT)
    assert child is not None
    assert (child.pid, child.fallen, child.began) == (second, first, 0.0)
    vitals.bury(child)
    again = seen(SLOT)
    assert again is not None
    assert again.fallen == 0


def test_a_child_that_ended_in_good_order_leaves_nothing() -> None:
    in_a_child(SLOT, vitals.leave)

    assert seen(SLOT) is None


def test_a_process_that_is_no_pool_child_says_nothing() -> None:
    before = list(vitals.children()), vitals.done()

    vitals.begin()
    vitals.beat()
    vitals.count(0, 1)
    vitals.end()

    assert (list(vitals.children()), vitals.done()) == before


def test_a_child_beyond_the_slots_is_not_watched() -> None:
    pid = in_a_child(512, vitals.begin)

    assert pid not in {child.pid for child in vitals.children()}
