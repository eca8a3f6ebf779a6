"""Watching one job until it is finished, through outages of Postgres too. Whoever watches does the waiting."""

from __future__ import annotations

import time
import uuid
from collections import deque
from dataclasses import replace

from pipeline.assembly import Services
from pipeline.errors import BudgetExhausted, Unavailable, UnknownJob, WaitTimeout
from pipeline.ledger.diagnosis import Waiting
from pipeline.observe import logger
from pipeline.status import JobStatus, average_rate, recent_rate, with_rate
from pipeline.submission import read_status

_FIRST_POLL_SECONDS = 0.05
_POLL_SECONDS = 0.5
# The rate shown while waiting is that of the last so many seconds.
_RATE_WINDOW_SECONDS = 20.0

_log = logger("client")


class Watch:
    """Looks at a job again and again: `look`, and between two looks a `pause` of the caller's own making."""

    def __init__(self, services: Services, job_id: uuid.UUID | str, timeout: float | None = None) -> None:
        """timeout: seconds from now. Raises UnknownJob where that is no id."""
        self._services = services
        self._job_id = parse_job_id(job_id)
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._samples: deque[tuple[float, int]] = deque()
        self._last: JobStatus | None = None
        self._told = ""  # why it is paused, as it was logged last
        self._away = False
        self._pause = _FIRST_POLL_SECONDS

    def look(self) -> JobStatus | None:
        """How the job is going. While Postgres is away: what was seen last, and what it waits for; None where nothing
        was seen yet. Raises UnknownJob; Unavailable where it is away at the deadline."""
        try:
            with self._services.ledger.transaction() as own:
                status, job = read_status(own, self._job_id)
        except Unavailable as error:
            if self._deadline is not None and time.monotonic() > self._deadline:
                raise
            self._away = True
            return self._last and replace(self._last, waiting=Waiting(str(error)), rate=None, eta_seconds=None)
        self._away = False
        if job.indexing_seconds is not None:
            self._samples.append((time.monotonic(), job.counters["chunks_indexed"]))
        while len(self._samples) > 2 and self._samples[-1][0] - self._samples[0][0] > _RATE_WINDOW_SECONDS:
            self._samples.popleft()
        self._last = with_rate(status, job, recent_rate(self._samples) or average_rate(job))
        self._log_pause(self._last)
        return self._last

    def _log_pause(self, status: JobStatus) -> None:
        """For whoever waits without looking: that it may take as long as people take, and why."""
        resumable = status.paused and not status.over_budget  # which is raised
        why = status.waiting.reason if status.waiting is not None and resumable else ""
        if why and why != self._told:
            _log.warning("job %s is waited for, and does not go on: %s", status.job_id, why)
        self._told = why

    def pause(self) -> float:
        """Seconds until the next look. Raises BudgetExhausted where a budget has paused the job, since nothing changes
        before somebody raises that; WaitTimeout at the deadline. The job stays as it is."""
        if self._away:
            return _POLL_SECONDS
        last = self._last
        if last is not None and last.waiting is not None and last.over_budget:
            raise BudgetExhausted(f"job {self._job_id} is {last.waiting.reason}")
        left = None if self._deadline is None else self._deadline - time.monotonic()
        if left is not None and left <= 0:
            raise WaitTimeout(self._timed_out())
        pause = self._pause if left is None else min(self._pause, left)
        self._pause = min(_POLL_SECONDS, self._pause * 1.5)
        return pause

    def _timed_out(self) -> str:
        last = self._last
        state = last.state if last is not None else "not known"
        told = f"job {self._job_id} is {state} after {self._timeout:g} seconds"
        if last is not None and last.waiting is not None and last.paused:
            return f"{told} ({last.waiting.reason}); {last.waiting.remedy}."
        return f"{told}; it goes on. Look at it with `millrace job {self._job_id}`."


def parse_job_id(value: uuid.UUID | str) -> uuid.UUID:
    """Raises UnknownJob for what is no id."""
    try:
        return value if isinstance(value, uuid.UUID) else uuid.UUID(value)
    except ValueError:
        raise UnknownJob(f"{value!r} is not the id of a job; `millrace jobs` lists them") from None
