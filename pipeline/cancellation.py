"""Taking back what was asked for."""

from __future__ import annotations

import uuid

from pipeline.assembly import Services
from pipeline.ledger import batches, jobs, versions
from pipeline.submission import top_up


def cancel(services: Services, job_id: uuid.UUID) -> None:
    """Ends what is unfinished of a job, and the job. Raises UnknownJob."""
    # Twice: an enqueuer that is still adding may have committed a group that the first round did not see. It finds the
    # job cancelled from then on.
    for _ in range(2):
        with services.ledger.transaction() as connection:
            jobs.get(connection, job_id)
            changes = versions.cancel_job(connection, job_id)
            batches.cancel_job(connection, job_id)
            jobs.count(connection, changes)
            jobs.end_cancelled(connection, job_id)
    top_up(services)
