"""What a drill tells at its end."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.drill.judge import Verdict
from workers.drill.searcher import Searches


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a fault was, and the seconds until everything that it hit worked again; None: it did not in time.

    alone: no other fault came, or was still felt, in that time.
    """

    fault: str
    seconds: float | None
    alone: bool


@dataclass(frozen=True, slots=True)
class Report:
    """seconds: of all of it. missed: times that a fault would have hit no work, and was put off. writes: jobs."""

    collection: str
    seed: int
    seconds: float
    recoveries: Sequence[Recovery]
    missed: int
    changes: Mapping[str, int]
    writes: int
    searches: Searches

    @property
    def unrecovered(self) -> int:
        return sum(recovery.seconds is None for recovery in self.recoveries)

    def passed(self, verdict: Verdict) -> bool:
        """Whether nothing was lost, doubled, stale or halved, every answer was right, and everything works again."""
        return verdict.clean and not self.searches.anomalies and not self.unrecovered

    def to_json(self, verdict: Verdict) -> dict[str, Any]:
        times = sorted(recovery.seconds for recovery in self.recoveries if recovery.seconds is not None)
        by_kind: dict[str, list[float]] = {}
        for recovery in self.recoveries:
            if recovery.seconds is not None:
                by_kind.setdefault(recovery.fault, []).append(recovery.seconds)
        return {
            "passed": self.passed(verdict),
            "faults": len(self.recoveries),
            "lost": verdict.lost,
            "duplicate": verdict.duplicate,
            "stale": verdict.stale,
            "half_documents": verdict.half_documents,
            "wrong_vectors": verdict.wrong_vectors,
            "wrong_metadata": verdict.wrong_metadata,
            "embedded_twice": verdict.embedded_twice,
            "failed": verdict.failed,
            "unrecovered": self.unrecovered,
            "median_recovery_seconds": round(statistics.median(times), 1) if times else None,
            "max_recovery_seconds": round(times[-1], 1) if times else None,
            "alone": _summary([found.seconds for found in self.recoveries if found.alone and found.seconds]),
            "faults_by_kind": dict(sorted(Counter(recovery.fault for recovery in self.recoveries).items())),
            "recovery_seconds_by_kind": {name: _summary(found) for name, found in sorted(by_kind.items())},
            "documents": verdict.documents,
            "documents_deleted_at_the_end": verdict.deleted,
            "points": verdict.points,
            "leaving": verdict.leaving,
            "jobs": self.writes,
            "creations": self.changes["created"],
            "updates": self.changes["updated"],
            "deletes": self.changes["deleted"],
            "unchanged": self.changes["same"],
            "searches": self.searches.to_json(),
            "put_off": self.missed,
            "seconds": round(self.seconds, 1),
            "seed": self.seed,
            "collection": self.collection,
            "details": [*verdict.details, *self.searches.anomalies],
        }


def _summary(times: Sequence[float]) -> dict[str, float | int | None]:
    return {
        "faults": len(times),
        "median": round(statistics.median(times), 1) if times else None,
        "max": round(max(times), 1) if times else None,
    }
