"""`prepare.batch`: staged documents become chunks. `delete.batch`: documents end."""

from __future__ import annotations

from collections.abc import Sequence

from celery import shared_task

from pipeline import ingest
from pipeline.ledger.batches import Claim
from pipeline.tools import Progress, Tools
from tasks import base


def prepare(tools: Tools, claims: Sequence[Claim], progress: Progress) -> None:
    """The story of one claim; prepare batches are large enough not to be coalesced."""
    for claim in claims:
        ingest.prepare(tools, claim, progress)


@shared_task(name="prepare.batch")
def prepare_batch(batch_id: int) -> None:
    """Extracts, chunks and opens the staged documents of a batch."""
    base.perform(base.services(), batch_id, prepare)


@shared_task(name="delete.batch")
def delete_batch(batch_id: int) -> None:
    """Ends the documents of a batch."""
    base.perform(base.services(), batch_id, prepare)
