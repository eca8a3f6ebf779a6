"""The circuit of one process, by a clock of the test's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.circuits import Admission, Circuit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> Circuit:
    return Circuit((1.0, 2.0, 4.0), clock)


def test_a_closed_circuit_lets_everybody_through(circuit: Circuit) -> None:
    assert [circuit.admit() for _ in range(3)] == [Admission.GO] * 3


def test_after_a_failure_nobody_goes_until_the_rest_is_over_and_then_one(circuit: Circuit, clock: Clock) -> None:
    circuit.failed("no answer")

    assert (circuit.admit(), circuit.why, circuit.failures) == (Admission.REST, "no answer", 1)
    clock.now += 1.0
    assert [circuit.admit() for _ in range(3)] == [Admission.PROBE, Admission.REST, Admission.REST]


def test_a_probe_that_succeeds_closes_it_for_all(circuit: Circuit, clock: Clock) -> None:
    circuit.failed("no answer")
    clock.now += 1.0
    assert circuit.admit() is Admission.PROBE

    circuit.succeeded()

    assert (circuit.admit(), circuit.why, circuit.failures) == (Admission.GO, "", 0)


def test_a_probe_that_fails_opens_it_for_longer_up_to_a_limit(circuit: Circuit, clock: Clock) -> None:
    rests = []
    for _ in range(5):
        circuit.failed("no answer")
        rest = 0.0
        while circuit.admit() is Admission.REST:
            clock.now += 0.5
            rest += 0.5
        rests.append(rest)

    assert rests == [1.0, 2.0, 4.0, 4.0, 4.0]


def test_of_many_that_fail_together_one_counts(circuit: Circuit) -> None:
    for _ in range(10):
        circuit.failed("no answer")

    assert circuit.failures == 1


def test_a_probe_that_learned_nothing_leaves_the_question_to_the_next(circuit: Circuit, clock: Clock) -> None:
    circuit.failed("no answer")
    clock.now += 1.0
    assert circuit.admit() is Admission.PROBE

    circuit.released()

    assert circuit.admit() is Admission.PROBE


def test_a_probe_that_never_comes_back_is_followed_by_another(circuit: Circuit, clock: Clock) -> None:
    circuit.failed("no answer")
    clock.now += 1.0
    assert circuit.admit() is Admission.PROBE

    clock.now += 61.0

    assert circuit.admit() is Admission.PROBE


def test_of_many_threads_one_is_the_probe(circuit: Circuit, clock: Clock) -> None:
    circuit.failed("no answer")
    clock.now += 1.0

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: circuit.admit(), range(64)))

    assert found.count(Admission.PROBE) == 1
    assert found.count(Admission.REST) == 63
