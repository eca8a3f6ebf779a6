"""What is to be done for a remote batch: the rules, without the doing.

    step = next_step(row, now, timing)          from what is committed, and nothing else
    commit step.commit, if there is one         before the server is asked for anything
    answer = carry the step out                 the service's part
    commit after_...(row, answer, ...)          the row as it is from then on (`openai_batch.after`)

Whoever finds the row after a crash asks `next_step` again; every step may be carried out twice, but for `Create`: that
is never told for a row in `creating`, the state that is committed before it. docs/lifecycle.md draws the states.
"""

from __future__ import annotations

from datetime import datetime

from pipeline.openai_batch.answers import errors_of, file_was_unseen, has_ended, id_of, output_of, status_of
from pipeline.openai_batch.changes import complaint, ended, next_attempt, reconciled, rest_after, until, withdrawn
from pipeline.openai_batch.choosing import since
from pipeline.openai_batch.rendering import file_name, metadata_of
from pipeline.openai_batch.steps import (
    MOST_UPLOADS,
    Change,
    Clean,
    Commit,
    Create,
    DeleteInput,
    Look,
    Nothing,
    Read,
    ResultFile,
    Row,
    Search,
    Step,
    Timing,
    Upload,
    Wait,
    batches_of,
)


def next_step(row: Row, now: datetime, timing: Timing) -> Step:
    """What is to be done for the batch now. Whether it is due (`next_at`) is for the claim to say."""
    return _NEXT[row.state](row, now, timing)


def _planned(row: Row, now: datetime, timing: Timing) -> Step:
    if row.cancel_reason is not None:
        return Commit(withdrawn())
    if row.file_id is not None:  # of the attempt before: nothing more is to be made of it
        return DeleteInput(row.file_id)
    return Upload(file_name(row.key, row.attempt), False, Change({"state": "uploading"}))


def _uploading(row: Row, now: datetime, timing: Timing) -> Step:
    if row.cancel_reason is not None:
        return Commit(withdrawn())
    return Upload(file_name(row.key, row.attempt), True)


def _uploaded(row: Row, now: datetime, timing: Timing) -> Step:
    if row.cancel_reason is not None:
        return Commit(withdrawn())
    assert row.file_id is not None, "what is uploaded has a file"
    # The tries are those of this file: a server may need a while to find what was just uploaded.
    intent = {"state": "creating", "intent_at": now, "listings": 0, "fenced_at": None, "tries": row.tries}
    return Create(row.file_id, metadata_of(row.key, row.attempt, row.sha256), Change(intent))


def _creating(row: Row, now: datetime, timing: Timing) -> Step:
    """A creation of which nothing is known: it is only ever searched for."""
    intent_at = row.intent_at or now
    if row.listings == 1 and (early := until(intent_at, timing.timeout + timing.grace, now)):
        return Wait(early)
    if row.listings > 1 and row.fenced_at is None:
        assert row.file_id is not None, "what may be created has a file"
        return DeleteInput(row.file_id)
    if row.fenced_at is not None and (early := until(row.fenced_at, timing.grace, now)):
        return Wait(early)
    return Search(since(intent_at))


def _submitted(row: Row, now: datetime, timing: Timing) -> Step:
    ask: list[str] = []
    cancel: list[str] = []
    for batch in batches_of(row):
        remote_id = id_of(batch)
        if remote_id is None or has_ended(batch):
            continue
        unwanted = remote_id != row.remote_id or row.cancel_reason is not None
        (cancel if unwanted and status_of(batch) != "cancelling" else ask).append(remote_id)
    if not ask and not cancel:
        return Commit(ended(row, row.remote, row.others, now))
    return Look(tuple(ask), tuple(cancel))


def _ended(row: Row, now: datetime, timing: Timing) -> Step:
    if files := result_files(row):
        return Read(files, Change({"state": "harvesting"}))
    if file_was_unseen(row.remote) and row.cancel_reason is None and row.attempt < MOST_UPLOADS:
        return Commit(next_attempt(row, rest_after(row.attempt - 1, timing), complaint(row.remote)))
    return Commit(reconciled(row, now))


def _harvesting(row: Row, now: datetime, timing: Timing) -> Step:
    return Read(result_files(row))


def _reconciled(row: Row, now: datetime, timing: Timing) -> Step:
    inputs = [row.file_id, *(batch.get("input_file_id") for batch in row.others)]
    known = [found for found in inputs if isinstance(found, str) and found]
    files = dict.fromkeys([*known, *(one.file_id for one in result_files(row))])
    return Clean(tuple(files), search=row.file_id is None or row.attempt > 1 or row.listings > 0)


def _closed(row: Row, now: datetime, timing: Timing) -> Step:
    return Nothing()


_NEXT = {
    "planned": _planned,
    "uploading": _uploading,
    "uploaded": _uploaded,
    "creating": _creating,
    "submitted": _submitted,
    "ended": _ended,
    "harvesting": _harvesting,
    "reconciled": _reconciled,
    "closed": _closed,
}


def result_files(row: Row) -> tuple[ResultFile, ...]:
    """All files of all batches under its key, those of answers before those of errors: an answer outweighs an error."""
    answers: dict[str, ResultFile] = {}
    errors: dict[str, ResultFile] = {}
    for batch in batches_of(row):
        remote_id = id_of(batch) or ""
        if (file_id := output_of(batch)) is not None:
            answers[file_id] = ResultFile(remote_id, file_id, of_errors=False)
        if (file_id := errors_of(batch)) is not None:
            errors[file_id] = ResultFile(remote_id, file_id, of_errors=True)
    return tuple({**errors, **answers}[file_id] for file_id in {**answers, **errors})
