"""Which of the batches at the server are ours, and which of several goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.openai_batch.answers import (
    Batch,
    completed_of,
    errors_of,
    has_ended,
    id_of,
    output_of,
    status_of,
    whole_number,
)
from pipeline.openai_batch.rendering import key_of, metadata_of

# Between our clock and the server's, at most: so much further back a list is read.
SKEW = timedelta(hours=1)

# The nearer to having everything, the better; of two that are equal, the one with more done, then the older one.
_ADVANCE = {"completed": 6, "finalizing": 5, "in_progress": 4, "validating": 3, "expired": 2, "cancelled": 2}
_STRANGE = 2.5  # a status that nobody knows: it may go on
_FADING = {"cancelling": 1, "failed": 0}


@dataclass(frozen=True, slots=True)
class Choice:
    """adopt: the batch of this attempt that goes on; None: there is none. others: further ones under the same key."""

    adopt: Batch | None
    others: tuple[Batch, ...] = ()


def is_fruitless(batch: Batch) -> bool:
    """Whether it ended with nothing to read: it cost nothing, and nothing comes of it."""
    return has_ended(batch) and output_of(batch) is None and errors_of(batch) is None and not completed_of(batch)


def advance(batch: Batch) -> tuple[float, int, float, str]:
    """What `choose` compares: the greatest goes on."""
    status = status_of(batch)
    rank = _ADVANCE.get(status, _FADING.get(status, _STRANGE))
    return (rank, completed_of(batch), -(whole_number(batch.get("created_at")) or 0), id_of(batch) or "")


def most_advanced(batches: Sequence[Batch]) -> Batch:
    return max(batches, key=advance)


def choose(found: Iterable[Batch], *, key: str, attempt: int, sha256: bytes | None, file_id: str | None) -> Choice:
    """Sorts what a list told, whole and read without an error, by what it is to this attempt of this batch.

    Of this attempt is what has our metadata (key, attempt, sha256) and was made of our file. What was made of our file
    and has no metadata of ours, because its server keeps none, is so too: nobody else knows the file. What has our key
    alone is of another attempt: it does not end the search for this one, but is not forgotten either, unless it ended
    with nothing.
    """
    mine, others, seen = [], [], set()
    wanted = metadata_of(key, attempt, sha256)
    for batch in found:
        remote_id = id_of(batch)
        if remote_id is None or remote_id in seen:
            continue  # a list that is read while it grows may tell the same batch twice
        found_with = batch.get("metadata")
        metadata = found_with if isinstance(found_with, Mapping) else {}
        of_our_file = file_id is not None and batch.get("input_file_id") == file_id
        exact = all(metadata.get(name) == value for name, value in wanted.items())
        if of_our_file and (exact or key_of(metadata) is None):
            mine.append(batch)
        elif (key_of(metadata) == key or of_our_file) and not is_fruitless(batch):
            others.append(batch)
        else:
            continue
        seen.add(remote_id)
    if not mine:
        return Choice(None, tuple(others))
    adopted = most_advanced(mine)
    rest = [batch for batch in mine if batch is not adopted and not is_fruitless(batch)]
    return Choice(adopted, (*rest, *others))


def since(intent_at: datetime) -> datetime:
    """How far back a list is read: nothing that came of the intent is older."""
    return intent_at - SKEW
