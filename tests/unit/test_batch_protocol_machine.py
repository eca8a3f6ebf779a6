"""Whatever happens to remote batches in whatever order, every text gets its vector once, or a reason; and none is paid
for twice unless the server itself is to blame. And whoever breaks one of the rules is found out.

MILLRACE_MACHINE_RUNS says how many runs of 60 steps are tried: five by Hypothesis for each one of it, and fifty by
chance alone; by default it is four (CI: sixty). With MILLRACE_FUZZ_RANDOM every call tries others.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from batch_machine import STEPS, Several, Walk, walk_by_chance
from batch_server_model import THEMES
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from pipeline.lifecycle import REMOTE
from pipeline.openai_batch import after, answers, changes, choosing, lines, protocol, verdicts
from pipeline.openai_batch.answers import Failure
from pipeline.openai_batch.choosing import Choice
from pipeline.openai_batch.rendering import key_of, metadata_of
from pipeline.openai_batch.steps import Change, Commit, Create, DeleteInput, ResultFile
from pipeline.openai_batch.verdicts import Verdict

RUNS = 5 * int(os.environ.get("MILLRACE_MACHINE_RUNS", "4"))
LENGTH = 60
# A walk by chance takes a tenth of the time of one by Hypothesis. In so many of them every mutant is found, most of
# them in the first ten.
WALKS = 6000
pytestmark = pytest.mark.timeout(600 + RUNS)


def _given(of: Any) -> st.SearchStrategy[Any]:
    return st.lists(st.sampled_from(of.of), min_size=1, max_size=4) if isinstance(of, Several) else st.sampled_from(of)


_NAMES = [name for name, (often, _) in STEPS.items() for _ in range(often)]
_GIVEN = {
    name: st.fixed_dictionaries({what: _given(of) for what, of in given.items()}) for name, (_, given) in STEPS.items()
}


class BatchMachine(RuleBasedStateMachine):
    """A walk whose steps Hypothesis chooses, and shortens to what it takes to fail."""

    @initialize(theme=st.sampled_from(THEMES))
    def begin(self, theme: tuple[list[str], list[str]]) -> None:
        self.walk = Walk(theme)

    @rule(step=st.sampled_from(_NAMES).flatmap(lambda name: st.tuples(st.just(name), _GIVEN[name])))
    def happen(self, step: tuple[str, dict[str, Any]]) -> None:
        self.walk.happen(*step)
        self.walk.check()

    def teardown(self) -> None:
        self.walk.finish()


def test_in_any_order_every_text_gets_its_vector_once_and_is_paid_once() -> None:
    run_state_machine_as_test(
        BatchMachine,
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=LENGTH,
            derandomize=not os.environ.get("MILLRACE_FUZZ_RANDOM"),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )


def walks(number: int) -> set[tuple[str, str]]:
    """The same ones at each call, unless MILLRACE_FUZZ_RANDOM is set. Returns the steps of remote batches."""
    chance = random.Random(None if os.environ.get("MILLRACE_FUZZ_RANDOM") else 1)
    return set().union(*(walk_by_chance(chance, LENGTH) for _ in range(number)))


def test_nor_is_any_rule_broken_on_many_walks_by_chance_and_every_step_is_taken() -> None:
    table = {(state, target) for state, targets in REMOTE.items() for target in targets}

    taken = walks(max(500, 10 * RUNS))

    assert taken <= table
    assert taken == table or os.environ.get("MILLRACE_FUZZ_RANDOM"), "other walks may leave out a rare one"


# -- mutants: each breaks one rule -----------------------------------------------------------------------------------

Patch = Callable[[pytest.MonkeyPatch], None]


def _a_failed_list_says_none(patch: pytest.MonkeyPatch) -> None:
    real = after.after_search
    patch.setattr(after, "after_search", lambda row, found, *more: real(row, _listed(found), *more))


def _listed(found: Any) -> Any:
    return [] if isinstance(found, Failure) else found


def _an_unanswered_creation_is_asked_for_again(patch: pytest.MonkeyPatch) -> None:
    real = after.after_create

    def mutant(row: Any, answer: Any, *more: Any) -> Change:
        lost = isinstance(answer, Failure) and answer.kind == "ambiguous"
        return Change({"state": "uploaded"}) if lost else real(row, answer, *more)

    patch.setattr(after, "after_create", mutant)


def _a_row_found_in_creating_is_created(patch: pytest.MonkeyPatch) -> None:
    def mutant(row: Any, now: Any, timing: Any) -> Any:
        metadata = metadata_of(row.key, row.attempt, row.sha256)
        return Create(row.file_id, metadata, Change({"intent_at": now}))

    patch.setitem(protocol._NEXT, "creating", mutant)


def _nobody_waits_for_the_request_to_be_over(patch: pytest.MonkeyPatch) -> None:
    """And the file stays: a creation that comes late succeeds."""
    _the_file_is_not_deleted(patch)
    patch.setattr(protocol, "until", lambda *_: 0.0)


def _the_file_is_not_deleted(patch: pytest.MonkeyPatch) -> None:
    real = protocol._NEXT["creating"]

    def mutant(row: Any, now: Any, timing: Any) -> Any:
        step = real(row, now, timing)
        return Commit(Change({"fenced_at": now})) if isinstance(step, DeleteInput) else step

    patch.setitem(protocol._NEXT, "creating", mutant)


def _the_list_is_not_waited_for_after_the_file_is_deleted(patch: pytest.MonkeyPatch) -> None:
    real = protocol._NEXT["creating"]

    def mutant(row: Any, now: Any, timing: Any) -> Any:
        return real(row, now, replace(timing, grace=0.0) if row.fenced_at is not None else timing)

    patch.setitem(protocol._NEXT, "creating", mutant)


def _what_is_past_its_time_has_ended(patch: pytest.MonkeyPatch) -> None:
    real = after.after_look

    def mutant(row: Any, told: Any, now: Any, *more: Any) -> Change:
        if now > row.submitted_at + timedelta(seconds=86_400):
            expired = {**row.remote, "status": "expired"}
            return changes.ended(row, expired, row.others, now)
        return real(row, told, now, *more)

    patch.setattr(after, "after_look", mutant)


def _a_status_that_nobody_knows_is_an_end(patch: pytest.MonkeyPatch) -> None:
    known = {"validating", "in_progress", "finalizing", "cancelling"}
    for module in (after, protocol, choosing, changes):
        patch.setattr(module, "has_ended", lambda batch: answers.status_of(batch) not in known)


def _what_is_cancelling_has_ended(patch: pytest.MonkeyPatch) -> None:
    real = answers.has_ended
    for module in (after, protocol, choosing, changes):
        patch.setattr(module, "has_ended", lambda batch: real(batch) or answers.status_of(batch) == "cancelling")


def _what_is_not_found_once_is_gone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(after, "promised_end", lambda row, batch, timing: row.submitted_at - timedelta(days=1))


def _only_a_completed_batch_has_files(patch: pytest.MonkeyPatch) -> None:
    real = protocol.result_files
    patch.setattr(
        protocol, "result_files", lambda row: real(row) if answers.status_of(row.remote) == "completed" else ()
    )


def _the_file_of_errors_is_not_read(patch: pytest.MonkeyPatch) -> None:
    real = protocol.result_files

    def mutant(row: Any) -> tuple[ResultFile, ...]:
        return tuple(file for file in real(row) if not file.of_errors)

    patch.setattr(protocol, "result_files", mutant)


def _the_others_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(after, "choose", lambda found, **row: Choice(choosing.choose(found, **row).adopt))
    patch.setattr(after, "found_stray", lambda row, batch: None)


def _any_batch_of_the_account_is_ours(patch: pytest.MonkeyPatch) -> None:
    def mutant(found: Any, **_: Any) -> Choice:
        return Choice(found[0] if found else None)

    patch.setattr(after, "choose", mutant)


def _what_ended_of_an_earlier_attempt_is_adopted(patch: pytest.MonkeyPatch) -> None:
    def mutant(found: Any, *, key: str, **_: Any) -> Choice:
        mine = [batch for batch in found if key_of(batch.get("metadata")) == key]
        return Choice(mine[-1] if mine else None)

    patch.setattr(after, "choose", mutant)


def _a_short_file_is_whole(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(after, "_READ_TRIES", 0)


def _a_file_that_cannot_be_read_is_passed_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(after, "after_read", lambda row, *, now, **_: changes.reconciled(row, now))


def _an_answer_is_a_vector_whatever_it_is(patch: pytest.MonkeyPatch) -> None:
    def mutant(body: Any, spec: Any) -> Any:
        values = lines._numbers(body["data"][0]["embedding"]) if body else np.ones(1)
        return np.resize(values, spec.dimensions).astype(np.float32)

    patch.setattr(lines, "_vector", mutant)


def _a_line_without_a_vector_is_done(patch: pytest.MonkeyPatch) -> None:
    table = {**verdicts._OF_LINES, "expired": ("done", False), "failed": ("done", False)}
    patch.setattr(verdicts, "_OF_LINES", table)


def _an_expired_text_is_given_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verdicts, "_OF_LINES", {**verdicts._OF_LINES, "expired": ("dead", True)})


def _another_line_than_the_named_one_is_given_up(patch: pytest.MonkeyPatch) -> None:
    real = verdicts._named

    def mutant(keys: Any, inputs: int, remote: Any) -> dict[bytes, str]:
        ordered = sorted(keys)
        found = real(ordered, inputs, remote)
        return {ordered[(ordered.index(key) + 1) % len(ordered)]: words for key, words in found.items()}

    patch.setattr(verdicts, "_named", mutant)


def _innocents_are_blamed(patch: pytest.MonkeyPatch) -> None:
    real = verdicts.verdict

    def mutant(*given: Any, **more: Any) -> Verdict:
        told = real(*given, **more)
        return Verdict("dead", True, told.reason) if told.fate == "again" else told

    patch.setattr(verdicts, "verdict", mutant)


def _a_creation_that_was_refused_for_now_is_searched_for(patch: pytest.MonkeyPatch) -> None:
    """Not wrong, only slow: no mutant. It shows that it is the broken rules that are found out."""
    real = after.after_create

    def mutant(row: Any, answer: Any, *more: Any) -> Change:
        if isinstance(answer, Failure) and answer.kind in {"limited", "denied"}:
            answer = replace(answer, kind="ambiguous")
        return real(row, answer, *more)

    patch.setattr(after, "after_create", mutant)


MUTANTS: list[Patch] = [
    _a_failed_list_says_none,
    _an_unanswered_creation_is_asked_for_again,
    _a_row_found_in_creating_is_created,
    _nobody_waits_for_the_request_to_be_over,
    _the_file_is_not_deleted,
    _the_list_is_not_waited_for_after_the_file_is_deleted,
    _what_is_past_its_time_has_ended,
    _a_status_that_nobody_knows_is_an_end,
    _what_is_cancelling_has_ended,
    _what_is_not_found_once_is_gone,
    _only_a_completed_batch_has_files,
    _the_file_of_errors_is_not_read,
    _the_others_are_forgotten,
    _any_batch_of_the_account_is_ours,
    _what_ended_of_an_earlier_attempt_is_adopted,
    _a_short_file_is_whole,
    _a_file_that_cannot_be_read_is_passed_over,
    _an_answer_is_a_vector_whatever_it_is,
    _a_line_without_a_vector_is_done,
    _an_expired_text_is_given_up,
    _another_line_than_the_named_one_is_given_up,
    _innocents_are_blamed,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__.strip("_"))
def test_a_broken_rule_is_found_out(mutant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)

    with pytest.raises(AssertionError):
        walks(WALKS)


def test_what_is_only_slow_is_no_broken_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    _a_creation_that_was_refused_for_now_is_searched_for(monkeypatch)

    walks(30)
