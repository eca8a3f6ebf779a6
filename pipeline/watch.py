"""Watching one job until it is finished, through outages of Postgres too. Whoever watches does the waiting."""

from __future__ import annotations

import time
import uuid
from collections import deque
from dataclasses import replace

from pipeline.assembly import Services
from pipeline.errors import Unavailable, UnknownJob, WaitTimeout
from pipeline.ledger.diagnosis import Waiting
from pipeline.status import JobStatus, average_rate, recent_rate, with_rate
from pipeline.submission import read_status

_FIRST_POLL_SECONDS = 0.05
_POLL_SECONDS = 0.5
# The rate shown while waiting is that of the last so many seconds.
_RATE_WINDOW_SECONDS = 20.0


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
        return self._last

    def pause(self) -> float:
        """Seconds until the next look. Raises WaitTimeout at the deadline (the job goes on)."""
        if self._away:
            return _POLL_SECONDS
        left = None if self._deadline is None else self._deadline - time.monotonic()
        if left is not None and left <= 0:
            state = self._last.state if self._last else "not known"
            raise WaitTimeout(
                f"job {self._job_id} is {state} after {self._timeout:g} seconds; it goes on. "
                f"Look at it with `millrace job {self._job_id}`."
            )
        pause = self._pause if left is None else min(self._pause, left)
        self._pause = min(_POLL_SECONDS, self._pause * 1.5)
        return pause


def parse_job_id(value: uuid.UUID | str) -> uuid.UUID:
    """Raises UnknownJob for what is no id."""
    try:
        return value if isinstance(value, uuid.UUID) else uuid.UUID(value)
    except ValueError:
        raise UnknownJob(f"{value!r} is not the id of a job; `millrace jobs` lists them") from None
