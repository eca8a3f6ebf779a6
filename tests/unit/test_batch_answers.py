"""What the server's answers mean: errors, batches, lists, and what becomes of the texts of a batch that has ended."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.openai_batch.answers import (
    complaints_of,
    errors_of,
    failure,
    file_was_unseen,
    has_ended,
    id_of,
    output_of,
    over_token_limit,
    status_of,
    storable,
)
from pipeline.openai_batch.choosing import choose, is_fruitless, since
from pipeline.openai_batch.lines import Outcome
from pipeline.openai_batch.rendering import metadata_of
from pipeline.openai_batch.verdicts import MOST_ATTEMPTS, Item, verdict, verdicts

SHA = b"\7" * 32
KEYS = [bytes([number]) * 32 for number in range(1, 6)]


def batch(number: int = 1, status: str = "in_progress", **more: Any) -> dict[str, Any]:
    ours = {"metadata": metadata_of("key", 2, SHA), "input_file_id": "file-1", "created_at": number}
    return {"id": f"batch-{number}", "status": status, **ours, **more}


def failed(*errors: dict[str, Any]) -> dict[str, Any]:
    return batch(status="failed", errors={"object": "list", "data": list(errors)})


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [None, 200, 302, 408, 409, 425, 500, 502, 503, 504, 520, 599])
def test_what_may_have_happened_is_ambiguous(status: int | None) -> None:
    assert failure(status, None, "Bad gateway").kind == "ambiguous"


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (400, "invalid_request_error", "Unsupported endpoint", "refused"),
        (400, None, "Invalid file format for Batch API. Must be .jsonl", "refused"),
        (404, "model_not_found", "The model `x` does not exist", "gone"),
        (404, None, "Invalid URL (POST /v1/batches)", "gone"),
        (413, None, "Too large", "refused"),
        (422, None, "Unprocessable", "refused"),
        (
            400,
            "invalid_request_error",
            "Cannot find file file-1, or organization x does not have access to it",
            "unseen",
        ),
        (400, None, "No such File object: file-1", "unseen"),
        (404, None, "File file-1 not found", "unseen"),
        (401, "invalid_api_key", "Incorrect API key", "denied"),
        (403, None, "You are not allowed to", "denied"),
        (429, "rate_limit_exceeded", "Slow down", "limited"),
        (429, "insufficient_quota", "You exceeded your current quota", "quota"),
        (400, "billing_hard_limit_reached", "Billing hard limit has been reached", "quota"),
        (402, None, "Payment required", "quota"),
    ],
)
def test_what_certainly_did_not_happen_says_why(status: int, code: str | None, message: str, kind: str) -> None:
    assert failure(status, code, message, 3.0).kind == kind
    assert failure(status, code, message, 3.0).seconds == 3.0


@given(st.none() | st.integers(0, 999), st.none() | st.text(max_size=9), st.text())
def test_only_an_answer_that_says_no_is_a_no(status: int | None, code: str | None, message: str) -> None:
    found = failure(status, code, message)

    certain = status is not None and 400 <= status < 500 and status not in {408, 409, 425}
    assert (found.kind == "ambiguous") == (not certain)
    assert len(found.message) <= 500
    json.dumps(found.message).encode()


# -- batches ---------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = "id status metadata input_file_id output_file_id error_file_id errors request_counts created_at expires_at"
batches = st.dictionaries(st.sampled_from(FIELDS.split()), json_values)


@given(batches)
def test_a_batch_may_hold_anything(value: dict[str, Any]) -> None:
    assert has_ended(value) == (status_of(value) in {"completed", "failed", "expired", "cancelled", "gone"})
    for read in (id_of, output_of, errors_of):
        assert read(value) is None or read(value)
    assert isinstance(is_fruitless(value), bool)
    assert all(one.line is None or one.line >= 0 for one in complaints_of(value))
    choose([value], key="key", attempt=2, sha256=SHA, file_id="file-1")
    stored = json.dumps(storable(value), allow_nan=False, ensure_ascii=False).encode("utf-8")
    assert b"\\u0000" not in stored


def test_only_these_are_an_end() -> None:
    for status in ("validating", "in_progress", "finalizing", "cancelling", "pondering", "", "COMPLETED"):
        assert not has_ended(batch(status=status))


def test_too_many_tokens_and_a_file_that_was_not_seen_are_nobodys_fault() -> None:
    limit = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None}
    unseen = {"code": "invalid_file", "message": "Could not find the input file", "line": None}

    assert over_token_limit(failed(limit))
    assert not over_token_limit(failed(unseen))
    assert not over_token_limit({**failed(limit), "status": "completed"})
    assert file_was_unseen(failed(unseen))
    assert not file_was_unseen(failed({**unseen, "line": 3}))
    assert not file_was_unseen(failed())


# -- choosing --------------------------------------------------------------------------------------------------------


def chosen(*found: dict[str, Any], file_id: str | None = "file-1") -> tuple[str | None, list[str]]:
    choice = choose(found, key="key", attempt=2, sha256=SHA, file_id=file_id)
    return choice.adopt["id"] if choice.adopt else None, [one["id"] for one in choice.others]


def test_none_is_adopted_that_is_not_ours() -> None:
    theirs: dict[str, Any] = {"metadata": {"key": "key", "attempt": "2"}, "input_file_id": "file-9"}
    another: dict[str, Any] = {"metadata": metadata_of("another", 2, SHA), "input_file_id": "file-9"}

    assert chosen() == (None, [])
    assert chosen(batch(**theirs), batch(2, **another), batch(3, metadata=None, input_file_id=None)) == (None, [])
    assert chosen(batch(metadata={}, input_file_id=None), file_id=None) == (None, [])


def test_one_is_adopted_by_its_metadata_and_its_file() -> None:
    assert chosen(batch(3)) == ("batch-3", [])
    assert chosen(batch(3), batch(3)) == ("batch-3", []), "a list that grows while it is read tells it twice"


def test_a_batch_of_our_file_is_ours_where_the_server_keeps_no_metadata() -> None:
    assert chosen(batch(metadata=None)) == ("batch-1", [])


def test_a_batch_of_another_attempt_is_not_the_one_that_is_looked_for_and_is_not_forgotten() -> None:
    first: dict[str, Any] = {"metadata": metadata_of("key", 1, SHA), "input_file_id": "file-0"}

    assert chosen(batch(1, **first)) == (None, ["batch-1"])
    assert chosen(batch(1, "completed", output_file_id="f", **first), batch(2)) == ("batch-2", ["batch-1"])
    assert chosen(batch(1, "failed", **first)) == (None, []), "nothing comes of it"
    # Same key and attempt, and made of another file: of whatever it is, it is not of this one.
    assert chosen(batch(1, input_file_id="file-9")) == (None, ["batch-1"])


def test_of_several_the_most_advanced_goes_on() -> None:
    order = ["completed", "finalizing", "in_progress", "validating", "pondering", "expired", "cancelling"]
    found = [batch(number, status, output_file_id="f") for number, status in enumerate(order)]
    for number in range(len(order)):
        adopted, others = chosen(*reversed(found[number:]))
        assert adopted == f"batch-{number}"
        assert set(others) == {one["id"] for one in found[number + 1 :]}
    done = [batch(number, request_counts={"completed": count}) for number, count in ((1, 2), (2, 5), (3, 5))]
    assert chosen(*done)[0] == "batch-2", "the one with more done, then the older one"


@given(
    st.permutations([batch(n, status) for n, status in enumerate(["in_progress", "failed", "completed", "expired"])])
)
def test_the_order_of_the_list_decides_nothing(found: list[dict[str, Any]]) -> None:
    assert chosen(*found) == ("batch-2", ["batch-0"]), "the others ended with nothing"


def test_a_list_is_read_back_past_the_intent() -> None:
    intent = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert since(intent) < intent


# -- verdicts --------------------------------------------------------------------------------------------------------


def fates(remote: dict[str, Any], items: list[Item], inputs: int | None = None, **more: Any) -> list[tuple[str, bool]]:
    status = more.pop("status", status_of(remote))
    found = verdicts(items, status=status, remote=remote, inputs=len(items) if inputs is None else inputs, **more)
    return [(found[item.key].fate, found[item.key].blamed) for item in items]


ITEMS = [Item(key) for key in KEYS]


def test_every_outcome_of_a_line_has_its_verdict() -> None:
    again = {"expired", "cancelled", "limited", "denied"}
    idle = {"blank", "torn", "unnamed", "unknown", "duplicate"}  # never those of a text that waits
    for outcome in Outcome.__args__:  # type: ignore[attr-defined]
        if outcome in idle:
            continue
        found = verdict(Item(KEYS[0], outcome=outcome, message="why"), "completed")
        wanted = {"embedded": ("done", False), "refused": ("dead", True)}
        default = ("again", outcome not in again)
        assert (found.fate, found.blamed) == wanted.get(outcome, default), outcome
        assert found.reason == f"{outcome}: why"


def test_who_is_blamed_three_times_is_given_up_and_who_is_not_never() -> None:
    assert verdict(Item(KEYS[0], MOST_ATTEMPTS - 2, "failed"), "completed").fate == "again"
    assert verdict(Item(KEYS[0], MOST_ATTEMPTS - 1, "failed"), "completed").fate == "dead"
    assert verdict(Item(KEYS[0], 99, "expired"), "expired").fate == "again"
    assert verdict(Item(KEYS[0], 99), "cancelled").fate == "again"


BLAMED = {"completed", "failed", "refused"}


@pytest.mark.parametrize("status", [*sorted(BLAMED), "expired", "cancelled", "withdrawn", "gone", "pondering"])
def test_a_text_without_a_line_is_bought_again(status: str) -> None:
    assert fates(batch(status=status), ITEMS) == [("again", status in BLAMED)] * 5


def test_a_whole_batch_is_bought_again_where_it_was_too_much_at_once() -> None:
    worn = [Item(key, 99) for key in KEYS]
    assert fates(failed({"code": "token_limit_exceeded", "message": "later"}), worn) == [("again", False)] * 5
    assert fates(failed({"code": "x", "message": "Could not find the input file"}), worn) == [("again", False)] * 5


@pytest.mark.parametrize("base", [0, 1])
def test_named_lines_are_given_up_and_the_others_are_innocent(base: int) -> None:
    lines = [0, 3] if base == 0 else [2, 4]
    remote = failed(*({"code": "invalid", "message": "no", "line": line} for line in lines))
    wanted = [("again", False)] * 5
    for line in lines:
        wanted[line - base] = ("dead", True)

    assert fates(remote, ITEMS) == wanted
    assert fates(remote, ITEMS[::-1]) == wanted[::-1], "the file is in the order of the keys"


def test_lines_are_not_named_where_it_is_not_known_which_they_were() -> None:
    remote = failed({"code": "invalid", "message": "no", "line": 2})
    assert fates(remote, ITEMS, inputs=7) == [("again", True)] * 5
    assert fates(failed({"code": "invalid", "message": "no", "line": 77}), ITEMS) == [("again", True)] * 5
    assert fates(failed({"code": "invalid", "message": "no", "line": None}), ITEMS) == [("again", True)] * 5


def test_the_reason_names_what_the_server_said() -> None:
    found = verdicts([Item(KEYS[0], 2)], status="refused", remote={}, inputs=1, error="no such endpoint")
    assert found[KEYS[0]].reason == "no such endpoint (after 3 attempts)"
    remote = failed({"code": "model_not_found", "message": "no model"})
    assert verdicts(ITEMS, status="failed", remote=remote, inputs=5)[KEYS[0]].reason == "model_not_found: no model"
