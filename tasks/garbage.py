"""Duties that collect what nobody needs any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps

from pipeline import garbage
from pipeline.assembly import Services
from pipeline.duties import Bounds
from pipeline.garbage import Garbage
from tasks.duty import Counts, Duty


def _given(opened: Services) -> Garbage:
    settings = opened.settings
    return Garbage(opened.tools, settings.garbage, settings.work.recontract_seconds, settings.home / "models")


def _of(run: Callable[[Garbage, Bounds], Mapping[str, int]]) -> Callable[[Services, Bounds], Counts]:
    @wraps(run)
    def with_services(opened: Services, bounds: Bounds) -> Counts:
        return run(_given(opened), bounds)

    return with_services


collect = _of(garbage.collect)
expire = _of(garbage.expire)

DUTIES = (
    Duty("gc.data", 3600.0, 500, collect, budget_seconds=20.0, dry_runs=True),
    Duty("cache.expire", 300.0, 500, expire, budget_seconds=10.0, dry_runs=True),
)
