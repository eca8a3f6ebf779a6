"""Sources that are synchronised again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline import scheduling
from pipeline.client.connection import DEFAULT_COLLECTION, Connected
from pipeline.ledger import schedules
from pipeline.ledger.schedules import Schedule, SyncOptions
from pipeline.scheduling import ScheduleChange
from pipeline.sources import Rows


class Schedules(Connected):
    """Schedules: made, changed, listed."""

    def schedule(
        self,
        source: str | Path,
        *,
        every: str | float | timedelta,
        collection: str = DEFAULT_COLLECTION,
        priority: str = "normal",
        provider: str | None = None,
        need_by: str | None = None,
        max_cost: float | None = None,
        model: str | None = None,
        dimensions: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        force: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        rows: Rows | None = None,
        correlation_id: str | None = None,
    ) -> Schedule:
        """Synchronises the source now and then again and again, `every` 30s, 15m, 1h, 1d, seconds or timedelta, as
        `sync` does. The same collection, tenant and source again changes the schedule.

        correlation_id: of the jobs of all its runs. provider, max_cost, model, dimensions: as for `ingest`; need_by: of
        each run from its beginning, such as `2h`.

        A worker reads the source: a path must be the same on every machine that has one. Raises InvalidRequest
        (a source that is not there or cannot be synchronised, credentials in a URL), CollectionMismatch, SourceRefused.
        """
        mapping = rows.to_json() if rows is not None else None
        options = SyncOptions(
            include=tuple(include),
            exclude=tuple(exclude),
            rows=mapping,
            metadata=metadata,
            priority=priority,
            provider=provider,
            force=force,
            correlation_id=correlation_id,
            need_by=need_by,
            max_cost=max_cost,
            model=model,
            dimensions=dimensions,
        )
        return scheduling.put(self._services, source, every, options, collection, tenant or self.tenant)

    def schedules(self) -> list[Schedule]:
        """Every schedule, oldest first."""
        with self._services.ledger.transaction() as own:
            return schedules.listing(own)

    def change_schedule(
        self,
        schedule: int | str | Path,
        change: ScheduleChange,
        *,
        collection: str | None = None,
        tenant: str | None = None,
    ) -> Schedule:
        """Pauses, resumes or removes a schedule, by id or source, or runs it now; returns it as it is then, or was.

        Its documents stay when it is removed. Raises InvalidRequest where there is none, or more than one.
        """
        return scheduling.change(self._services, schedule, change, collection, tenant or self.tenant)

    def unschedule(
        self, schedule: int | str | Path, *, collection: str | None = None, tenant: str | None = None
    ) -> Schedule:
        """Removes a schedule, by id or source; its documents stay. Returns it as it was. Raises InvalidRequest."""
        return self.change_schedule(schedule, "remove", collection=collection, tenant=tenant)
