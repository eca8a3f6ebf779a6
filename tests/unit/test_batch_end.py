"""The protocol of remote batches from their creation on: looking at them, reading what came, winding them up."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from batch_scene import LOST, NOW, TIMING, applied, batch, later, step, submitted
from batch_worker_model import Row
from hypothesis import given
from hypothesis import strategies as st

from pipeline.openai_batch.after import (
    after_clean,
    after_look,
    after_read,
    found_stray,
)
from pipeline.openai_batch.answers import Failure
from pipeline.openai_batch.changes import poll_delay, rest_after
from pipeline.openai_batch.protocol import result_files
from pipeline.openai_batch.steps import (
    Change,
    Clean,
    Look,
    Nothing,
)

# -- looking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing", "cancelling", "pondering", ""])
def test_what_has_not_ended_is_asked_for_again_and_never_given_up(status: str) -> None:
    row = submitted(status)
    for days in (0, 1, 2, 30):
        assert step(row, later(days * 86_400)) == Look(("batch-1",), ())
        change = after_look(row, {"batch-1": batch(1, status)}, later(days * 86_400), TIMING, 0.0)
        assert "state" not in change.columns
        row = applied(row, change)
    assert "should have ended" in str(row.error)


@pytest.mark.parametrize("kind", ["ambiguous", "limited", "denied", "quota", "gone", "unseen", "refused"])
def test_a_look_that_fails_changes_nothing(kind: Any) -> None:
    row = submitted()
    change = after_look(row, {"batch-1": Failure(kind, "no", 1000.0)}, later(86_000), TIMING, 0.0)
    assert "state" not in change.columns
    assert change.columns["remote"] == row.remote
    assert (change.failed, change.seconds, change.columns["error"]) == (True, 1000.0, "no")


def test_a_batch_that_is_not_there_any_more_is_gone_only_when_it_must_have_ended() -> None:
    gone = {"batch-1": Failure("gone", "404")}
    row = submitted(output_file_id="out-1")
    assert "state" not in after_look(row, gone, later(86_400 + 3599), TIMING, 0.0).columns
    row = applied(row, after_look(row, gone, later(86_400 + 3601), TIMING, 0.0))
    assert (row.state, row.status, row.doubtful) == ("ended", "gone", True)
    assert [file.file_id for file in result_files(row)] == ["out-1"], "what it was known to have is still asked for"
    lost = replace(row, remote={**row.remote, "output_file_id": None})
    assert step(lost).change.columns["status"] == "gone"


@pytest.mark.parametrize("status", ["completed", "expired", "cancelled", "failed"])
def test_an_end_is_stored_whole_and_its_files_are_read(status: str) -> None:
    ended = batch(1, status, output_file_id="out-1", error_file_id="err-1", more={"x": 1})
    row = applied(submitted(), after_look(submitted(), {"batch-1": ended}, NOW, TIMING, 0.0))
    assert (row.state, row.status, row.ended_at, row.remote) == ("ended", status, NOW, ended)
    found = step(row)
    assert [file.file_id for file in found.files] == ["out-1", "err-1"]
    assert [file.of_errors for file in found.files] == [False, True]
    assert found.commit.columns == {"state": "harvesting"}
    assert step(replace(row, state="harvesting")).files == found.files


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_batch_without_files_is_decided_about_at_once(nothing: str | None) -> None:
    ended = batch(1, "expired", output_file_id=nothing, error_file_id=nothing)
    row = applied(submitted(), after_look(submitted(), {"batch-1": ended}, NOW, TIMING, 0.0))
    assert (step(row).change.columns["state"], step(row).change.settle) == ("reconciled", True)


def test_files_that_an_answer_forgets_stay_known() -> None:
    row = submitted(output_file_id="out-1")
    change = after_look(row, {"batch-1": batch(1, output_file_id=None)}, NOW, TIMING, 0.0)
    assert change.columns["output_file_id"] == "out-1"
    assert after_look(row, {"batch-1": batch(2, "completed")}, NOW, TIMING, 0.0).columns["remote"] == row.remote


def test_a_file_that_was_not_seen_in_time_is_uploaded_again() -> None:
    errors = {"data": [{"code": "invalid_file", "message": "Could not find the input file"}]}
    row = applied(
        submitted(), after_look(submitted(), {"batch-1": batch(1, "failed", errors=errors)}, NOW, TIMING, 0.0)
    )
    change = step(row).change
    assert (change.columns["state"], change.columns["attempt"], change.settle) == ("planned", 2, False)
    assert step(replace(row, attempt=8)).change.settle
    assert step(replace(row, cancel_reason="late")).change.settle


def test_too_many_tokens_are_told_first_so_that_packing_finds_them() -> None:
    errors = {
        "data": [{"code": "other", "message": "x"}, {"code": "token_limit_exceeded", "message": "Limit: 3,000,000"}]
    }
    row = applied(
        submitted(), after_look(submitted(), {"batch-1": batch(1, "failed", errors=errors)}, NOW, TIMING, 0.0)
    )
    closing = applied(row, step(row).change)
    closed = applied(closing, after_clean(closing, [], NOW, TIMING, 0.0))
    for one in (row, closing, closed):
        assert str(one.error).startswith("token_limit_exceeded: Limit: 3,000,000")


# -- reading and winding up ------------------------------------------------------------------------------------------


def read(row: Row, answered: int, *failures: Failure, torn: bool = False, now: datetime = NOW) -> Change:
    return after_read(row, answered=answered, torn=torn, failures=failures, now=now, timing=TIMING, jitter=0.0)


def harvesting(status: str, **more: Any) -> Row:
    return replace(submitted(status, **more), state="harvesting", ended_at=NOW)


def test_what_is_shorter_than_the_batch_says_is_read_again_but_not_for_ever() -> None:
    for row, answered in (
        (harvesting("completed"), 2),
        (harvesting("expired", request_counts={"completed": 1, "failed": 1}), 1),
    ):
        assert "state" not in read(row, answered).columns
        given_up = read(replace(row, tries=10), answered)
        assert (given_up.columns["state"], given_up.columns["doubtful"], given_up.settle) == ("reconciled", True, True)
        whole = read(row, answered + 1)
        assert (whole.columns["state"], whole.columns["doubtful"]) == ("reconciled", False)
    torn = harvesting("expired")
    assert "torn" in read(torn, 0, torn=True).columns["error"]


def test_a_file_that_cannot_be_read_is_asked_for_until_it_can() -> None:
    row = replace(harvesting("completed"), tries=99)
    for failed in (LOST, Failure("denied", "401"), Failure("gone", "404")):
        change = read(row, 0, failed, now=later(3599))
        assert "state" not in change.columns
        assert not change.failed, "that is none of the tries"
    assert "state" not in read(row, 0, LOST, Failure("gone", "404"), now=later(99_999)).columns
    lost = read(row, 0, Failure("gone", "404"), now=later(3601))
    assert (lost.columns["state"], lost.columns["doubtful"]) == ("reconciled", True)


def test_all_files_are_deleted_when_nothing_is_needed_of_them() -> None:
    other = batch(2, "cancelled", input_file_id="file-0", output_file_id="out-2")
    row = replace(submitted("completed", other, output_file_id="out-1", error_file_id="err-1"), state="reconciled")
    assert step(row) == Clean(("file-1", "file-0", "out-1", "out-2", "err-1"), search=False)
    assert step(replace(row, attempt=2)).search
    assert after_clean(row, [LOST], NOW, TIMING, 0.0).failed
    for failures in ([], [Failure("gone", "404")], [Failure("refused", "400")]):
        assert after_clean(row, failures, NOW, TIMING, 0.0).columns["state"] == "closed"
    assert after_clean(replace(row, tries=10), [LOST], NOW, TIMING, 0.0).columns["state"] == "closed"
    assert isinstance(step(replace(row, state="closed")), Nothing)


def test_a_duplicate_that_shows_up_late_is_cancelled_and_read_too() -> None:
    stray = batch(2)
    closed = replace(submitted("completed", output_file_id="out-1"), state="closed", closed_at=NOW)
    change = found_stray(closed, stray)
    assert change is not None
    row = applied(closed, change)
    assert (row.state, row.doubtful) == ("submitted", True)
    assert step(row) == Look((), ("batch-2",))
    assert found_stray(row, stray) is None, "it is known now"
    assert found_stray(closed, batch(2, "failed")) is None, "nothing comes of it"
    for state in ("planned", "uploading", "uploaded", "creating", "ended", "harvesting", "reconciled"):
        assert found_stray(replace(closed, state=state), stray) is None
    never = Row("key", state="closed", status="refused")
    taken = found_stray(never, stray)
    assert taken is not None
    assert step(applied(never, taken)) == Look((), ("batch-2",))
    assert "state" not in after_look(applied(never, taken), {"batch-2": stray}, NOW, TIMING, 0.0).columns


# -- delays ----------------------------------------------------------------------------------------------------------


def test_looks_come_later_and_later() -> None:
    before, delays = None, []
    for _ in range(12):
        before, seconds = poll_delay(before, TIMING, 0.0)
        delays.append(round(seconds, 1))
    assert delays == [10.0, 15.0, 22.5, 33.8, 50.6, 75.9, 113.9, 170.9, 256.3, 300.0, 300.0, 300.0]


@given(st.none() | st.floats(0, 1e6), st.floats(0, 1), st.integers(0, 100_000))
def test_no_delay_is_over_the_longest_or_nothing(before: float | None, jitter: float, tries: int) -> None:
    base, seconds = poll_delay(before, TIMING, jitter)
    assert 0.8 * base <= seconds <= base <= 300.0
    assert 8.0 <= rest_after(tries, TIMING, jitter) <= 300.0
