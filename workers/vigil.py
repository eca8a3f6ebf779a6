"""The main process watches over its pool children: one that died is known at once, one that hangs is interrupted.

A child without progress for `work.stall_seconds` is marked in the ledger (the job then says `wedged`), and killed if it
still makes none a heartbeat later; Celery starts another in its place. Its claims are ended, and `reconcile` counts an
attempt on them as on those of any child that died. While a child cannot beat for itself, because something holds the
interpreter's lock, its leases are kept from here: it may be at work.

Nobody is interrupted for waiting: where the ledger is away, where the machine or the whole worker was stopped, all
counting begins anew.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

import psutil

from pipeline.errors import Unavailable
from pipeline.ledger import fleet
from pipeline.ledger.engine import Ledger
from pipeline.ledger.jobs import PRIORITIES
from pipeline.observe import logger
from pipeline.settings import WorkSettings
from tasks import vitals
from tasks.vitals import Vitals

# Between two looks: reading memory costs nothing.
_LOOK_SECONDS = 1.0
# A whole worker that is being killed sees its children die first, and should not blame them.
_CERTAIN_SECONDS = 0.3
# A look that comes so late means that this process, or the machine, was stopped meanwhile; or a share of the stall.
_LATE_SECONDS = 10.0
_LATE_SHARE = 0.25
# A heartbeat that is late by so much of its interval is not coming.
_MUTE = 1.5
_RATE_WINDOW_SECONDS = 60.0

# A child answers with where each of its threads is, in the worker's log; in C, so that it need not be well for that.
TRACE_SIGNAL = signal.SIGUSR2

_log = logger("vigil")


class Vigil:
    """A thread of the worker's main process."""

    def __init__(self, ledger: Ledger, worker_id: str, work: WorkSettings) -> None:
        self._ledger = ledger
        self._worker_id = worker_id
        self._work = work
        self._every = min(_LOOK_SECONDS, work.heartbeat_seconds / 2)
        self._since = time.monotonic()  # what was before does not count
        self._looked = self._since
        self._marked: dict[int, float] = {}  # pid -> when it was marked
        self._kept: dict[int, float] = {}  # pid -> when its leases were last kept for it
        self._buried: set[int] = set()
        self._done: deque[tuple[float, tuple[int, ...]]] = deque([(self._since, vitals.done())])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vigil", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=_LOOK_SECONDS)

    def rates(self) -> Mapping[str, float]:
        """Queue -> batches per second over the last minute, where there were any."""
        now, done = time.monotonic(), vitals.done()
        self._done.append((now, done))
        while len(self._done) > 2 and now - self._done[0][0] > _RATE_WINDOW_SECONDS:
            self._done.popleft()
        then, before = self._done[0]
        seconds = max(now - then, 1.0)
        return {
            queue: round((after - earlier) / seconds, 4)
            for queue, earlier, after in zip(PRIORITIES, before, done, strict=True)
            if after > earlier
        }

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self._look()
            except Unavailable as error:
                # What waits for the ledger makes no progress, and is not wedged.
                self._count_anew()
                _log.warning("children are not watched: %s", error)
            except Exception:  # noqa: BLE001 - whatever it was: nobody else watches over the children
                _log.exception("a look at the children failed")

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked > self._every + min(_LATE_SECONDS, self._work.stall_seconds * _LATE_SHARE):
            self._count_anew()
        self._looked = now
        children = list(vitals.children())
        self._bury([child for child in children if self._is_dead(child)])
        self._keep([child for child in children if self._is_mute(child, now)], now)
        for child in children:
            self._watch(child, now)
        pids = {child.pid for child in children}
        for known in (self._marked, self._kept):
            for pid in known.keys() - pids:
                del known[pid]

    def _count_anew(self) -> None:
        self._since = time.monotonic()
        self._marked.clear()

    # -- the dead -------------------------------------------------------------------------------------------------

    def _is_dead(self, child: Vitals) -> bool:
        return bool(child.fallen) or (child.pid not in self._buried and _child(child.pid) is None)

    def _bury(self, dead: Sequence[Vitals]) -> None:
        """Ends the leases of children that are gone: nobody else is going to."""
        if not dead or self._stop.wait(_CERTAIN_SECONDS):
            return
        gone = {pid for child in dead for pid in (child.pid, child.fallen) if pid and _child(pid) is None}
        with self._ledger.transaction() as connection:
            ended = fleet.end_leases(connection, self._worker_id, gone)
        for child in dead:
            vitals.bury(child)
        self._buried = (self._buried | gone) & {pid for child in vitals.children() for pid in (child.pid,)}
        if ended:
            _log.warning("pool children %s died with %d batches", sorted(gone), ended)

    # -- those that hang --------------------------------------------------------------------------------------------

    def _is_mute(self, child: Vitals, now: float) -> bool:
        """Whether it holds claims, and its heartbeat does not come; one that was stopped is not helped."""
        return (
            child.beat > 0.0
            and child.pid not in self._marked
            and now - max(child.beat, self._kept.get(child.pid, 0.0)) > self._work.heartbeat_seconds * _MUTE
            and (process := _child(child.pid)) is not None
            and process.status() != psutil.STATUS_STOPPED
        )

    def _keep(self, mute: Sequence[Vitals], now: float) -> None:
        if not mute:
            return
        with self._ledger.transaction() as connection:
            pids = [child.pid for child in mute]
            fleet.keep_leases(connection, self._worker_id, pids, self._work.lease_seconds)
        for child in mute:
            self._kept[child.pid] = now

    def _watch(self, child: Vitals, now: float) -> None:
        still = now - max(child.progressed, child.began, self._since)
        stalls = child.began > 0.0 and still > self._work.stall_seconds
        if stalls and child.pid not in self._marked:
            self._mark(child, now)
        elif stalls and now - self._marked[child.pid] >= self._work.heartbeat_seconds:
            self._interrupt(child)
        elif not stalls and child.pid in self._marked:
            del self._marked[child.pid]
            with self._ledger.transaction() as connection:
                fleet.unmark_wedged(connection, self._worker_id, [child.pid])

    def _mark(self, child: Vitals, now: float) -> None:
        if _child(child.pid) is None:
            return
        with self._ledger.transaction() as connection:
            count = fleet.mark_wedged(connection, self._worker_id, [child.pid], self._work.lease_seconds)
        self._marked[child.pid] = now
        _log.warning(
            "pool child %d makes no progress for %g s with %d batches; this is where it is:",
            child.pid,
            self._work.stall_seconds,
            count,
        )
        os.kill(child.pid, TRACE_SIGNAL)

    def _interrupt(self, child: Vitals) -> None:
        """Ends the child; the next look finds it dead. The pool acknowledges its message and starts another.

        The look may have waited for the ledger since it read how the child is: one that has got on meanwhile is left.
        """
        now = [(found.pid, found.began, found.progressed) for found in vitals.children() if found.slot == child.slot]
        if now == [(child.pid, child.began, child.progressed)] and _child(child.pid) is not None:
            _log.warning("pool child %d is interrupted", child.pid)
            os.kill(child.pid, signal.SIGKILL)


def _child(pid: int) -> psutil.Process | None:
    """The process, where it lives and is a child of this one."""
    try:
        process = psutil.Process(pid)
        return process if process.ppid() == os.getpid() and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
