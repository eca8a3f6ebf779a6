"""Jobs: how they go, and what is done with them meanwhile."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from pipeline import control
from pipeline.client.connection import Connected
from pipeline.errors import InvalidRequest
from pipeline.ledger import jobs, usage
from pipeline.ledger.diagnosis import diagnose
from pipeline.ledger.pauses import Pause
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
            told = diagnose(own, found)
            used = usage.of_jobs(own, found)
        return [job_status(job, (), waiting, used[job.id]) for job, waiting in zip(found, told, strict=True)]

    def wait(
        self,
        job_id: uuid.UUID | str,
        timeout: float | None = None,
        on_progress: Callable[[JobStatus], None] | None = None,
    ) -> JobStatus:
        """Waits until the job is finished, through outages of Postgres too. timeout: seconds.

        A job that somebody has paused is waited for, since it may be resumed at any time; the log says so, and
        on_progress gets it (`status.paused`, `status.waiting`). Raises BudgetExhausted as soon as a budget has paused
        it: raise that (`set_budget`), `resume` the job, and wait again. Raises WaitTimeout, UnknownJob. The job stays
        as it is, whatever is raised.
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
        control.cancel(self._services, wanted)
        return self.job(wanted)

    def pause(
        self,
        job_id: uuid.UUID | str | None = None,
        *,
        collection: str | None = None,
        everything: bool = False,
        reason: str | None = None,
    ) -> list[Pause]:
        """Pauses a job, a collection, or everything, until `resume`: nothing more of it is begun, what is at work goes
        on to its end, and documents are taken in as before. Twice is once. Returns what is paused then.

        reason: shown wherever somebody asks why it waits. Raises UnknownJob, UnknownCollection, InvalidRequest where
        the job is finished, or not one thing is named.
        """
        match _one_of(job_id, collection, everything):
            case uuid.UUID() as wanted:
                control.pause_job(self._services, wanted, reason)
            case str() as name:
                control.pause_collection(self._services, name, reason)
            case None:
                control.pause_everything(self._services, reason)
        return self.paused()

    def resume(
        self, job_id: uuid.UUID | str | None = None, *, collection: str | None = None, everything: bool = False
    ) -> list[Pause]:
        """Ends the pause of a job, a collection, or everything; what is not paused stays as it is. Each has a pause of
        its own: a job goes on when neither it, nor its collection, nor everything is paused. Returns what is paused
        then. Raises as `pause`."""
        match _one_of(job_id, collection, everything):
            case uuid.UUID() as wanted:
                control.resume_job(self._services, wanted)
            case str() as name:
                control.resume_collection(self._services, name)
            case None:
                control.resume_everything(self._services)
        return self.paused()

    def paused(self) -> list[Pause]:
        """What is paused: everything first, then collections, then jobs."""
        return control.paused(self._services)

    def prioritize(self, job_id: uuid.UUID | str, priority: str) -> JobStatus:
        """Gives an unfinished job another priority (high, normal, low); its waiting work goes to that queue at once.

        Raises UnknownJob, InvalidRequest where the job is finished or there is no such priority.
        """
        wanted = parse_job_id(job_id)
        control.prioritize(self._services, wanted, priority)
        return self.job(wanted)


def _one_of(job_id: uuid.UUID | str | None, collection: str | None, everything: bool) -> uuid.UUID | str | None:
    """The job's id, the collection's name, or None for everything. Raises InvalidRequest unless one thing is named."""
    if [job_id is not None, collection is not None, everything].count(True) != 1:
        raise InvalidRequest("name one thing: a job by its id, a collection, or everything")
    return parse_job_id(job_id) if job_id is not None else collection
