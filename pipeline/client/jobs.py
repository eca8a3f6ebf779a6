"""Jobs: how they go, and what is done with them meanwhile."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from pipeline.cancellation import cancel
from pipeline.client.connection import Connected
from pipeline.ledger import jobs
from pipeline.ledger.waiting import waiting
from pipeline.status import JobStatus, average_rate, job_status, with_rate
from pipeline.submission import read_status
from pipeline.watch import Watch, parse_job_id


class Jobs(Connected):
    """Jobs by their ids."""

    def job(self, job_id: uuid.UUID | str) -> JobStatus:
        """How the job is going. Raises UnknownJob, naming it."""
        with self._services.ledger.transaction() as own:
            status, job = read_status(own, parse_job_id(job_id))
        return with_rate(status, job, average_rate(job))

    def jobs(self, *, limit: int = 20, state: str | None = None) -> list[JobStatus]:
        """The newest jobs first."""
        with self._services.ledger.transaction() as own:
            found = jobs.recent(own, limit, state)
            return [job_status(job, (), waiting(own, job)) for job in found]

    def wait(
        self,
        job_id: uuid.UUID | str,
        timeout: float | None = None,
        on_progress: Callable[[JobStatus], None] | None = None,
    ) -> JobStatus:
        """Waits until the job is finished, through outages of Postgres too. timeout: seconds.

        Raises UnknownJob, WaitTimeout (the job goes on).
        """
        watch = Watch(self._services, job_id, timeout)
        while True:
            status = watch.look()
            if status is not None and on_progress is not None:
                on_progress(status)
            if status is not None and status.finished:
                return status
            time.sleep(watch.pause())

    def cancel(self, job_id: uuid.UUID | str) -> JobStatus:
        """Cancels what is not published yet; a finished job stays as it is. Running work stops at its next step, and
        what it added leaves the index."""
        wanted = parse_job_id(job_id)
        cancel(self._services, wanted)
        return self.job(wanted)
