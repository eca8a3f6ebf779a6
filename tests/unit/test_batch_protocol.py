"""The protocol of remote batches, step by step: what is done in each state, and what follows from each answer."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from batch_scene import CREATING, LOST, NOW, SHA, TIMING, applied, batch, later, step, submitted
from batch_worker_model import Row

from pipeline.lifecycle import REMOTE
from pipeline.openai_batch.after import (
    after_create,
    after_delete,
    after_look,
    after_search,
    after_upload,
    nothing_wanted,
    pick_file,
)
from pipeline.openai_batch.answers import Failure
from pipeline.openai_batch.protocol import next_step, result_files
from pipeline.openai_batch.rendering import metadata_of
from pipeline.openai_batch.steps import (
    Change,
    Commit,
    DeleteInput,
    Look,
    Search,
    Upload,
    Uploaded,
    Wait,
)


def test_every_state_has_its_step() -> None:
    for state in REMOTE:
        assert next_step(replace(submitted(), state=state), NOW, TIMING) is not None


# -- until it is asked for -------------------------------------------------------------------------------------------


def test_a_file_is_uploaded_then_the_intent_is_committed_then_the_batch_is_created() -> None:
    row = Row("key", inputs=3)
    upload = step(row)
    assert upload == Upload("key-1.jsonl", False, Change({"state": "uploading"}))

    row = applied(applied(row, upload.commit), after_upload(row, Uploaded("file-1", 3, 99, SHA, 99), TIMING, 0.0))
    create = step(row, later(5))

    assert (row.state, row.file_id, row.bytes) == ("uploaded", "file-1", 99)
    assert (create.file_id, create.metadata) == ("file-1", metadata_of("key", 1, SHA))
    assert create.commit.columns | {"state": "creating", "intent_at": later(5)} == create.commit.columns
    assert isinstance(step(applied(row, create.commit)), Search), "whoever finds it so does not ask again"


def test_an_upload_that_was_cut_off_is_searched_for_by_its_name() -> None:
    assert step(Row("key", state="uploading")) == Upload("key-1.jsonl", True)
    listed: list[dict[str, Any]] = [
        {"id": "a", "filename": "key-1.jsonl", "bytes": 50},
        {"id": "b", "filename": "key-1.jsonl", "bytes": 99},
        {"id": "c", "filename": "key-2.jsonl", "bytes": 99},
        {"id": None, "filename": "key-1.jsonl", "bytes": 99},
    ]
    assert pick_file(listed, "key-1.jsonl", 99) == ("b", ("a",))
    assert pick_file(listed, "key-1.jsonl", 98) == (None, ("a", "b"))
    assert pick_file([], "key-1.jsonl", 98) == (None, ())


def test_a_file_that_did_not_arrive_whole_is_uploaded_again() -> None:
    row = Row("key", state="uploading")
    change = after_upload(row, Uploaded("file-1", 3, 99, SHA, 50), TIMING, 0.0)
    assert change.failed
    assert "file_id" not in change.columns
    assert after_upload(row, LOST, TIMING, 0.0).failed
    assert after_upload(row, Failure("denied", "no"), TIMING, 0.0).seconds >= 60
    refused = after_upload(row, Failure("refused", "no"), TIMING, 0.0)
    assert (refused.columns["state"], refused.columns["status"], refused.settle) == ("reconciled", "refused", True)
    assert nothing_wanted().columns["status"] == "withdrawn"


@pytest.mark.parametrize("state", ["planned", "uploading", "uploaded"])
def test_what_is_not_wanted_any_more_is_not_begun(state: str) -> None:
    found = step(Row("key", state=state, file_id="file-1", cancel_reason="late"))
    assert isinstance(found, Commit)
    assert (found.change.columns["state"], found.change.settle) == ("reconciled", True)


# -- a creation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["limited", "denied", "quota", "unseen"])
def test_what_was_certainly_not_created_may_be_asked_for_again(kind: Any) -> None:
    change = after_create(CREATING, Failure(kind, "no", 500.0), NOW, TIMING, 0.0)
    assert change.columns["state"] == "uploaded"
    assert change.seconds == 500.0
    assert "attempt" not in change.columns


@pytest.mark.parametrize("kind", ["refused", "gone"])
def test_what_will_never_be_created_is_given_back(kind: Any) -> None:
    change = after_create(CREATING, Failure(kind, "no"), NOW, TIMING, 0.0)
    assert (change.columns["state"], change.columns["status"], change.settle) == ("reconciled", "refused", True)


def test_a_file_that_stays_unseen_is_uploaded_again_and_not_for_ever() -> None:
    row = replace(CREATING, tries=5)
    unseen = Failure("unseen", "cannot find file")
    change = after_create(row, unseen, NOW, TIMING, 0.0)
    assert (change.columns["state"], change.columns["attempt"]) == ("planned", 2)
    assert step(applied(row, change)) == DeleteInput("file-1"), "before another is uploaded"
    assert after_delete(applied(row, change), None, NOW, TIMING, 0.0) == Change({"file_id": None})
    assert after_create(replace(row, attempt=8), unseen, NOW, TIMING, 0.0).columns["status"] == "refused"
    intent = step(replace(row, state="uploaded", tries=3)).commit
    assert intent.columns["tries"] == 3, "they are counted on from one creation to the next"


@pytest.mark.parametrize("answer", [LOST, {}, {"id": ""}, {"id": 5}, batch(input_file_id="file-9")])
def test_an_answer_that_says_nothing_is_searched_for(answer: Any) -> None:
    change = after_create(CREATING, answer, NOW, TIMING, 0.0)
    assert "state" not in change.columns
    assert isinstance(step(applied(CREATING, change)), Search)


def test_a_created_batch_is_looked_at_later() -> None:
    change = after_create(CREATING, batch(status="validating"), NOW, TIMING, 0.0)
    assert (change.columns["state"], change.columns["remote_id"], change.seconds) == ("submitted", "batch-1", 10.0)
    assert not change.columns["doubtful"]


# -- a search --------------------------------------------------------------------------------------------------------


def test_a_failed_list_is_never_none() -> None:
    row = CREATING
    for tries in range(30):
        change = after_search(row, Failure("ambiguous", "500"), later(10_000), TIMING, 0.0)
        assert change.failed
        row = replace(applied(row, change), tries=tries + 1)
    assert (row.state, row.listings, row.attempt) == ("creating", 0, 1)


def test_none_waits_and_is_searched_for_again_then_its_file_goes_and_it_is_searched_for_once_more() -> None:
    row, seen = CREATING, []
    clock = later(30)
    for _ in range(9):
        found = step(row, clock)
        seen.append(type(found).__name__)
        if isinstance(found, Wait):
            clock += timedelta(seconds=found.seconds)
        elif isinstance(found, Search):
            row = applied(row, after_search(row, [batch(9, input_file_id="x", metadata={})], clock, TIMING, 0.0))
        elif isinstance(found, DeleteInput):
            row = applied(row, after_delete(row, Failure("gone", "404"), clock, TIMING, 0.0))
        if row.state != "creating":
            break

    assert seen == ["Search", "Wait", "Search", "DeleteInput", "Wait", "Search"]
    assert clock == later(TIMING.timeout + TIMING.grace + TIMING.grace)
    assert (row.state, row.attempt, row.doubtful, row.listings, row.fenced_at) == ("planned", 2, True, 0, None)


def test_a_file_that_cannot_be_deleted_holds_everything_up() -> None:
    row = replace(CREATING, listings=2)
    assert step(row, later(900)) == DeleteInput("file-1")
    assert after_delete(row, LOST, later(900), TIMING, 0.0).failed
    assert "fenced_at" not in after_delete(row, Failure("limited", "429"), later(900), TIMING, 0.0).columns


@pytest.mark.parametrize("row", [CREATING, replace(CREATING, listings=1), replace(CREATING, listings=2, fenced_at=NOW)])
def test_one_that_is_found_is_adopted_whenever(row: Row) -> None:
    change = after_search(row, [batch(4)], later(300), TIMING, 0.0)
    assert (change.columns["state"], change.columns["remote_id"]) == ("submitted", "batch-4")
    assert not change.columns["doubtful"]
    assert step(replace(applied(row, change), state="reconciled")).search, "there may be another one still"


def test_of_several_one_goes_on_and_the_others_are_cancelled_and_read_too() -> None:
    found = [batch(1, "validating"), batch(2, "finalizing"), batch(3, "completed", output_file_id="out-3")]
    change = after_search(CREATING, found, NOW, TIMING, 0.0)
    row = applied(CREATING, change)
    assert (row.remote_id, row.doubtful, change.seconds) == ("batch-3", True, 0.0)
    assert step(row) == Look((), ("batch-1", "batch-2"))

    answers = {
        "batch-1": batch(1, "cancelling"),
        "batch-2": batch(2, "cancelled", output_file_id="out-2", error_file_id=""),
    }
    row = applied(row, after_look(row, answers, NOW, TIMING, 0.0))
    assert step(row) == Look(("batch-1",), ())
    row = applied(row, after_look(row, {"batch-1": batch(1, "cancelled", error_file_id="err-1")}, NOW, TIMING, 0.0))

    assert row.state == "ended"
    assert [file.file_id for file in result_files(row)] == ["out-3", "out-2", "err-1"]


def test_a_cancellation_waits_until_it_is_known_what_there_is_to_cancel() -> None:
    row = replace(CREATING, cancel_reason="late")
    assert isinstance(step(row), Search)
    adopted = applied(row, after_search(row, [batch(1)], NOW, TIMING, 0.0))
    assert step(adopted) == Look((), ("batch-1",))
    fenced = replace(row, listings=2, fenced_at=NOW)
    change = after_search(fenced, [], later(200), TIMING, 0.0)
    assert (change.columns["state"], change.columns["status"]) == ("reconciled", "withdrawn")


def test_what_an_earlier_attempt_brought_about_is_taken_when_this_one_did_not_come_to_be() -> None:
    row = replace(CREATING, attempt=2)
    first = batch(1)  # of attempt 1
    change = after_search(row, [first], NOW, TIMING, 0.0)
    assert "state" not in change.columns
    row = replace(applied(row, change), listings=2, fenced_at=NOW)
    change = after_search(row, [first], later(200), TIMING, 0.0)
    assert (change.columns["state"], change.columns["remote_id"]) == ("submitted", "batch-1")
