"""What follows from how a step went: the row of the remote batch as it is from then on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pipeline.openai_batch.answers import GONE, Batch, Failure, answered_of, has_ended, id_of, status_of, storable
from pipeline.openai_batch.changes import (
    adopted,
    ended,
    next_attempt,
    poll_delay,
    promised_end,
    reconciled,
    refused,
    told,
    tried,
    until,
    withdrawn,
)
from pipeline.openai_batch.choosing import choose, is_fruitless, most_advanced
from pipeline.openai_batch.steps import MOST_UPLOADS, Change, Row, Timing, Uploaded, batches_of

# Tries of a step (their rests grow to 300 s: the first ten take about twenty minutes) before something else is done.
_UNSEEN_TRIES = 5  # to create a batch of a file that the server does not find: it is uploaded again
_READ_TRIES = 10  # to read a file that is shorter than the batch says: what is missing is missing
_CLEAN_TRIES = 10  # to delete files: they cost nothing, and the server deletes them after 30 days
# A batch or a file that is not there any more may come back; not after so long.
_GONE_SECONDS = 3600.0
_ABSENT = frozenset({"gone", "unseen"})


def after_upload(row: Row, answer: Uploaded | Failure, timing: Timing, jitter: float) -> Change:
    """`row` is in `uploading`. An upload costs nothing: whatever is unclear is uploaded again."""
    if isinstance(answer, Uploaded):
        if answer.kept is not None and answer.kept != answer.bytes:
            message = f"the server has {answer.kept} of the file's {answer.bytes} bytes"
            return tried(row, Failure("ambiguous", message), timing, jitter)
        columns = {"file_id": answer.file_id, "inputs": answer.lines, "bytes": answer.bytes, "sha256": answer.sha256}
        return Change({"state": "uploaded", **columns})
    if answer.kind in {"refused", "gone"}:
        return refused(answer)
    return tried(row, answer, timing, jitter)


def nothing_wanted() -> Change:
    """`row` is in `uploading`, and none of its texts is wanted any more: there is no file to render."""
    return withdrawn()


def pick_file(found: Sequence[Mapping[str, Any]], name: str, size: int) -> tuple[str | None, tuple[str, ...]]:
    """Of the files that the server lists: the one that was uploaded under this name, whole; and what to delete of the
    same name. size: bytes that were rendered."""
    same = [file for file in found if file.get("filename") == name and isinstance(file.get("id"), str)]
    whole = [str(file["id"]) for file in same if file.get("bytes") == size]
    kept = whole[0] if whole else None
    return kept, tuple(str(file["id"]) for file in same if file["id"] != kept)


def after_create(row: Row, answer: Batch | Failure, now: datetime, timing: Timing, jitter: float) -> Change:
    """`row` is in `creating`. What was certainly not created may be asked for again; all else is searched for."""
    if not isinstance(answer, Failure):
        if id_of(answer) is not None and answer.get("input_file_id") in {row.file_id, None}:
            return adopted(row, answer, row.others, now, timing, jitter)
        answer = Failure("ambiguous", "the server's answer to the creation is no batch of ours")
    if answer.kind == "ambiguous":
        return Change({"error": answer.message}, timing.first)
    if answer.kind in {"refused", "gone"} or (answer.kind == "unseen" and row.attempt >= MOST_UPLOADS):
        return refused(answer)
    if answer.kind == "unseen" and row.tries >= _UNSEEN_TRIES:
        return next_attempt(row, timing.first, answer.message)
    again = tried(row, answer, timing, jitter)
    return Change({**again.columns, "state": "uploaded", "tries": row.tries + 1}, again.seconds)


def after_search(row: Row, found: Sequence[Batch] | Failure, now: datetime, timing: Timing, jitter: float) -> Change:
    """`row` is in `creating`. found: the whole list, back to `Search.since`; a Failure is never "none"."""
    if isinstance(found, Failure):
        return tried(row, found, timing, jitter)
    choice = choose(found, key=row.key, attempt=row.attempt, sha256=row.sha256, file_id=row.file_id)
    others = list({id_of(batch): batch for batch in (*row.others, *choice.others)}.values())
    if choice.adopt is not None:
        found_so = adopted(row, choice.adopt, others, now, timing, jitter)
        # That it had to be searched for is remembered: it may have been created twice, and is looked for once more.
        return Change({**found_so.columns, "listings": row.listings + 1}, found_so.seconds)
    if row.fenced_at is not None:
        return _never_created(row, others, now, timing, jitter)
    columns = {"others": storable(others), "doubtful": row.doubtful or bool(others)}
    if row.listings:
        return Change({**columns, "listings": 2})
    seconds = until(row.intent_at or now, timing.timeout + timing.grace, now)
    return Change({**columns, "listings": 1}, seconds)


def _never_created(row: Row, others: Sequence[Batch], now: datetime, timing: Timing, jitter: float) -> Change:
    """This attempt was not, and cannot be any more. What an earlier one brought about is as good."""
    if others:
        best = most_advanced(others)
        return adopted(row, best, [one for one in others if one is not best], now, timing, jitter)
    if row.cancel_reason is not None:
        return withdrawn()
    return next_attempt(row, 0.0, "its creation was not answered, and nothing came of it", doubtful=True)


def after_delete(row: Row, answer: Failure | None, now: datetime, timing: Timing, jitter: float) -> Change:
    """`row` is in `creating` or `planned`. answer: None where it is deleted; what is not there is as good."""
    if answer is not None and answer.kind not in _ABSENT:
        return tried(row, answer, timing, jitter)
    if row.state == "creating":
        # What was created until now may take a while to be listed.
        return Change({"fenced_at": now}, timing.grace)
    return Change({"file_id": None})


def after_look(
    row: Row, answers: Mapping[str, Batch | Failure], now: datetime, timing: Timing, jitter: float
) -> Change:
    """`row` is in `submitted`. answers: of each batch that was asked for or cancelled, by its id at the server."""
    remote, *others = (_updated(row, batch, answers, now, timing) for batch in (row.remote, *row.others))
    if all(has_ended(batch) for batch in (remote, *others)):
        return ended(row, remote, others, now)
    failures = [answer for answer in answers.values() if isinstance(answer, Failure)]
    base, seconds = poll_delay(row.poll_seconds, timing, jitter)
    words = "; ".join(dict.fromkeys(one.message for one in failures)) or _worry(row, remote, now, timing)
    wait = max((one.seconds or 0.0 for one in failures), default=0.0)
    columns = {**told(remote, others), "poll_seconds": base, "error": words}
    return Change(columns, max(seconds, wait), failed=bool(failures))


def _updated(
    row: Row, known: Batch, answers: Mapping[str, Batch | Failure], now: datetime, timing: Timing
) -> dict[str, Any]:
    """The batch as it was told last; ids of files that were known stay where an answer forgets them."""
    answer = answers.get(id_of(known) or "")
    if isinstance(answer, Failure):
        absent = answer.kind in _ABSENT and not until(promised_end(row, known, timing), _GONE_SECONDS, now)
        return {**known, "status": GONE} if absent else dict(known)
    if answer is None or id_of(answer) != id_of(known):
        return dict(known)
    kept = {
        name: known[name] for name in ("output_file_id", "error_file_id") if known.get(name) and not answer.get(name)
    }
    return {**answer, **kept}


def _worry(row: Row, remote: Batch, now: datetime, timing: Timing) -> str | None:
    """What a person should know of a batch that goes on."""
    if not until(promised_end(row, remote, timing), 0.0, now):
        return "it should have ended by now; it is asked for until it has, so that nothing is paid twice"
    if (status := status_of(remote)) not in {"validating", "in_progress", "finalizing", "cancelling"}:
        return f"the server says {status!r}, which Millrace does not know; it is asked for until it has ended"
    return None


def after_read(
    row: Row, *, answered: int, torn: bool, failures: Sequence[Failure], now: datetime, timing: Timing, jitter: float
) -> Change:
    """`row` is in `harvesting`: was everything read that there is?

    answered: texts of the batch that have their vector, or the outcome of a line; torn: a file ended in the middle of a
    line; failures: of files that could not be read to their end. A connection that is cut looks like the end of the
    file: what is shorter than the batch says is read again.
    """
    lost = [one for one in failures if one.kind in _ABSENT]
    if len(lost) < len(failures) or (lost and until(row.ended_at or now, _GONE_SECONDS, now)):
        # However long that takes; it is not one of the tries, of which there are not so many.
        failed = next((one for one in failures if one not in lost), failures[0])
        base, seconds = poll_delay(row.poll_seconds, timing, jitter)
        return Change({"error": failed.message, "poll_seconds": base}, max(seconds, failed.seconds or 0.0))
    expected = max(_expected(row, batch) for batch in batches_of(row))
    if not lost and (torn or answered < expected) and row.tries < _READ_TRIES:
        message = f"its files hold {answered} of {expected} answers" + (", the last one torn" if torn else "")
        return tried(row, Failure("ambiguous", message), timing, jitter)
    return reconciled(row, now, doubtful=bool(lost) or answered < expected)


def _expected(row: Row, batch: Batch) -> int:
    """How many texts the files of a batch tell of, as far as that is known."""
    if status_of(batch) == "completed":
        return row.inputs
    return min(answered_of(batch) or 0, row.inputs)


def after_clean(row: Row, failures: Sequence[Failure], now: datetime, timing: Timing, jitter: float) -> Change:
    """`row` is in `reconciled`. Files that are not there are as good as deleted; those that cannot be deleted are left
    to the server."""
    left = [one for one in failures if one.kind not in _ABSENT and one.kind != "refused"]
    # Why the batch itself failed is worth more to a person than why a file of it is still there.
    if left and row.tries < _CLEAN_TRIES:
        again = tried(row, left[0], timing, jitter)
        return Change({"error": row.error or left[0].message}, again.seconds, failed=True)
    return Change({"state": "closed", "closed_at": now, "error": row.error})


def found_stray(row: Row, batch: Batch) -> Change | None:
    """A batch with our key that shows up in a list: None where there is nothing to do for it.

    What the row does not know is cancelled and harvested besides. A row that is just being created finds it by itself,
    and one that is being wound up takes it in when it is closed.
    """
    known = {id_of(one) for one in batches_of(row)}
    if row.state not in {"submitted", "closed"} or id_of(batch) in {None, *known} or is_fruitless(batch):
        return None
    if row.state == "submitted":
        return Change({"others": storable([*row.others, batch]), "doubtful": True})
    columns = {"state": "submitted", "closed_at": None, "ended_at": None, "poll_seconds": None, "doubtful": True}
    if row.remote_id is None:
        reason = row.cancel_reason or "its texts are in other batches by now"
        return Change({**columns, "remote": storable(batch), "remote_id": id_of(batch), "cancel_reason": reason})
    return Change({**columns, "others": storable([*row.others, batch])})
