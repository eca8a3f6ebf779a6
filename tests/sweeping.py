"""Collecting garbage in a workshop: what is kept for how long there, and what one run takes."""

from __future__ import annotations

from workshop import Workshop, chunked

from pipeline import Settings
from pipeline.duties import Bounds
from tasks import garbage

NEVER = 1e-9  # days; an age that everything has reached


def kept(settings: Settings, *, settled_seconds: float = 0.0, **ages: float) -> Settings:
    """Settings that keep so little, and know at once that nobody comes back."""
    given = settings.garbage.model_copy(update=ages)
    work = settings.work.model_copy(update={"recontract_seconds": settled_seconds, "contract_seconds": 0.0})
    return chunked(settings.model_copy(update={"garbage": given, "work": work}))


def enough() -> Bounds:
    return Bounds(100, 20.0)


def collected(workshop: Workshop, bounds: Bounds | None = None) -> dict[str, int]:
    """What is not zero of one run. Temporary files are left out: other tests' dead processes leave theirs on this
    machine, too (test_temporary_files.py looks at its own)."""
    counts = garbage.collect(workshop.services, bounds or enough())
    return {name: count for name, count in counts.items() if count and name != "files"}


def expired(workshop: Workshop, bounds: Bounds | None = None) -> dict[str, int]:
    return {name: count for name, count in garbage.expire(workshop.services, bounds or enough()).items() if count}


def with_ages(workshop: Workshop, **ages: float) -> None:
    """Changes what is kept for how long."""
    workshop.services.settings = kept(workshop.services.settings, **ages)
