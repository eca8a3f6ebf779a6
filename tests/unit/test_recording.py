"""What a process counts and measures: bounded, cheap, and handed on whole."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator

import pytest

from pipeline.errors import LeaseLost, LedgerUnavailable, Unavailable
from pipeline.monitoring.reporting import MOST_BYTES, Report, Reporter, pieces
from pipeline.observe import MOST_SERIES, Measured, Recorder, count, observe, operation, recorder
from tasks.leaving import Leaving


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    """Nothing is recorded yet, and nothing is left for the next test."""
    recorder.clear()
    yield
    recorder.clear()
    recorder.enabled = True


def test_a_label_that_takes_values_without_bound_ends_in_a_bounded_number_of_series() -> None:
    # Given somebody who labels by a number that never comes twice
    for number in range(MOST_SERIES + 500):
        count("counted", 1, str(number))
        observe("observed", 1.0, str(number))
        recorder.gauge("gauged", 1.0, (str(number),))

    # When what was recorded is drained, then there is an end to it, also where more is merged; what is known goes on
    count("counted", 1, "0")
    measured = recorder.drain()
    other = Measured()
    for number in range(MOST_SERIES):
        other.count(("other", (str(number),)), 1)
    measured.merge(other)
    assert len(measured.counts) == len(measured.sketches) == len(measured.gauges) == MOST_SERIES
    assert measured.counts["counted", ("0",)] == 2


def test_what_is_switched_off_records_nothing() -> None:
    recorder.enabled = False

    with operation("search"):
        count("counted")
        observe("observed", 1.0)
        recorder.gauge("gauged", 1.0, ())

    assert not recorder.drain()


def test_errors_are_counted_by_class_where_there_are_finitely_many() -> None:
    class OfSomebody(LedgerUnavailable):
        """Derived by an application."""

    # Given operations that end in errors of ours, of somebody's, in a stop of the worker, and well
    for error in (LeaseLost(), OfSomebody(), ValueError("no"), ValueError("again"), Leaving(), KeyboardInterrupt()):
        with pytest.raises(type(error)), operation("embed"):
            raise error
    with operation("embed"):
        pass

    # When they are drained, then all are timed, and failures are counted under names of pipeline.errors, or `other`
    measured = recorder.drain()
    assert measured.sketches["operation_seconds", ("embed",)].count == 7
    assert measured.counts == {
        ("operation_errors", ("embed", "LeaseLost")): 1,
        ("operation_errors", ("embed", "LedgerUnavailable")): 1,
        ("operation_errors", ("embed", "other")): 2,
    }


def test_a_forked_child_does_not_report_what_its_parent_recorded() -> None:
    # Given a process that has recorded something, and is forked
    count("counted")
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        count("own")
        os.write(writing, json.dumps(recorder.drain().to_json()).encode())
        os._exit(0)
    os.waitpid(pid, 0)

    # When both are drained, then each has its own
    assert Measured.from_json(json.loads(os.read(reading, 10_000))).counts == {("own", ()): 1.0}
    assert recorder.drain().counts == {("counted", ()): 1.0}
    os.close(reading)
    os.close(writing)


def test_who_listens_is_called_at_the_next_record_once() -> None:
    called = []
    own = Recorder()
    own.listen(lambda: called.append(1))

    own.count("counted", 1, ())
    own.observe("observed", 1.0, ())

    assert called == [1]


def test_a_large_report_goes_in_pieces_that_add_up_to_it() -> None:
    # Given a report that fits into no datagram
    chance = random.Random(7)
    whole = Measured()
    for number in range(300):
        whole.count(("counted", (str(number),)), number)
        whole.gauge(("gauged", (str(number),)), number)
        sketch = whole.sketch(("observed", (str(number),)))
        assert sketch is not None
        for _ in range(50):
            sketch.add(chance.lognormvariate(0, 2))

    # When it is cut, then each piece fits, and all together are what was recorded
    cut = [piece.to_bytes() for piece in pieces(Report(1, 0, whole, {"rss": 1}))]
    assert len(cut) > 1
    assert max(len(piece) for piece in cut) <= MOST_BYTES
    merged = Measured()
    for piece in cut:
        merged.merge(Report.from_bytes(piece).measured)
    assert merged.counts == whole.counts
    assert merged.gauges == whole.gauges
    assert merged.sketches.keys() == whole.sketches.keys()
    for series, sketch in whole.sketches.items():
        assert merged.sketches[series].buckets == sketch.buckets
        assert merged.sketches[series].total == pytest.approx(sketch.total)


class Sink:
    """Takes what it is given, when it is there."""

    def __init__(self) -> None:
        self.away = False
        self.closed = False
        self.waiting: list[Measured] = []
        self.taken: list[Measured] = []

    def add(self, measured: Measured) -> None:
        self.waiting.append(measured)
        if self.away:
            raise Unavailable("away")
        self.taken += self.waiting
        self.waiting.clear()

    def close(self) -> None:
        self.closed = True


def test_a_reporter_hands_over_what_is_left_when_it_is_closed() -> None:
    # Given a reporter that would not report for an hour, of a process that has recorded something
    sink = Sink()
    reporter = Reporter(sink, 3600.0)
    reporter.start()
    count("counted", 3)

    # When it is closed, then the sink has it; and closing again does nothing
    reporter.close()
    reporter.close()
    assert [measured.counts for measured in sink.taken] == [{("counted", ()): 3.0}]
    assert sink.closed


def test_a_sink_that_is_away_ends_neither_the_reporter_nor_the_process() -> None:
    sink = Sink()
    sink.away = True
    reporter = Reporter(sink, 3600.0)
    reporter.start()
    count("counted")

    reporter.close()

    assert [measured.counts for measured in sink.waiting] == [{("counted", ()): 1.0}]
