"""What embeddings cost: spent and saved, and how much may be."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.client.connection import DEFAULT_COLLECTION, Connected
from pipeline.errors import InvalidRequest
from pipeline.estimates import Estimate, Reading, Wish, estimate
from pipeline.ledger import budgets, jobs, usage
from pipeline.ledger.budgets import Budget
from pipeline.ledger.engine import Connection, clock
from pipeline.ledger.estimating import read_only
from pipeline.ledger.usage import BY, By, CostReport, Wanted
from pipeline.providers import Asked, NeedBy, check_cost, deadline, expect_collection, expect_future
from pipeline.sources import Rows, Source, check_metadata
from pipeline.sources.base import Item
from pipeline.sources.given import Ingestible, open_given
from pipeline.sync import Listing, open_to_sync
from pipeline.watch import parse_job_id

_MOST_ROWS = 1000


class Costs(Connected):
    """Spending and budgets; months and days are those of UTC, by the ledger's clock."""

    def cost(
        self,
        *,
        job_id: uuid.UUID | str | None = None,
        tenant: str | None = None,
        collection: str | None = None,
        month: str | None = None,
        by: By = "day",
        limit: int = _MOST_ROWS,
    ) -> CostReport:
        """What was spent and saved, by day (or tenant, collection, job, provider, model, month), and the budgets.

        month: such as `2026-11`; by default this one, and of a job all of its time. tenant: by default all of them.
        limit: rows, at most. Raises UnknownJob, InvalidRequest.
        """
        if by not in BY:
            raise InvalidRequest(f"{by!r} is none of {', '.join(BY)}")
        job = None if job_id is None else parse_job_id(job_id)
        since = None if month is None else usage.parse_month(month)
        with self._services.ledger.transaction() as own:
            if since is None and job is None:
                since = usage.this_month(own)
            wanted = Wanted(job, tenant, collection, since)
            found = usage.grouped(own, wanted, by, limit)
            if job is not None and not found:
                jobs.get(own, job)  # usage is kept when a job is gone
            return CostReport(
                wanted, usage.total(own, wanted), usage.reserved(own, wanted), by, found, self._budgets_of(own, job)
            )

    def budgets(self) -> list[Budget]:
        """The budgets of this month: that of all first, then of tenants that spent something or have one of their own,
        by name."""
        with self._services.ledger.transaction() as own:
            return budgets.listing(own, self.settings.cost)

    def set_budget(
        self,
        usd: float,
        *,
        tenant: str | None = None,
        job_id: uuid.UUID | str | None = None,
        reason: str | None = None,
    ) -> Budget:
        """What may be spent in this and every following month by all together, by one tenant, or by one job as a whole,
        in place of what the settings (or the job's `max_cost`) say. Returns the budget as it is then.

        usd: 0: nothing may be spent; infinity: no limit. What is paused for it goes on when it is resumed.
        Raises InvalidRequest, UnknownJob.
        """
        limit, job = budgets.check_limit(usd), _only_one(tenant, job_id)
        with self._services.ledger.transaction() as own:
            if job is not None:
                budgets.set_job_budget(own, job, limit)
            else:
                budgets.set_budget(own, tenant or budgets.ALL, limit, reason)
            return self._budget(own, tenant, job)

    def clear_budget(self, *, tenant: str | None = None, job_id: uuid.UUID | str | None = None) -> Budget:
        """What the settings say counts again. Returns the budget as it is then. Raises InvalidRequest, UnknownJob."""
        job = _only_one(tenant, job_id)
        with self._services.ledger.transaction() as own:
            if job is not None:
                budgets.set_job_budget(own, job, None)
            else:
                budgets.clear_budget(own, tenant or budgets.ALL)
            return self._budget(own, tenant, job)

    def over_budget(self) -> list[str]:
        """What budgets hold up now: a line for each that is used up, and for each job that one has paused."""
        with self._services.ledger.transaction() as own:
            return budgets.exhausted(own, self.settings.cost)

    def estimate(
        self,
        source: Ingestible,
        *,
        sync: bool = False,
        collection: str = DEFAULT_COLLECTION,
        provider: str | None = None,
        need_by: NeedBy | None = None,
        max_cost: float | None = None,
        model: str | None = None,
        dimensions: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        rows: Rows | None = None,
        on_progress: Callable[[int, int], None] = lambda documents, chunks: None,
    ) -> Estimate:
        """What `ingest` (or `sync`) of the same would cost and how long it would take, by provider. Nothing is
        enqueued, written or spent; a collection that is missing is not made; no key is needed.

        The documents are read, extracted and cut here. on_progress: documents and chunks that were counted so far.
        Raises InvalidRequest, CollectionMismatch, SourceRefused, ModelUnavailable, LedgerUnavailable.
        """
        if metadata is not None:
            check_metadata(metadata, "the metadata of this ingest")
        needed = deadline(need_by)
        stream: Iterable[Item]
        scope = None
        if sync:
            if not isinstance(source, str | Path | Source):
                raise InvalidRequest("what is synchronised is a path, a URL or a Source")
            listed = open_to_sync(source, self.settings.sources, include=include, exclude=exclude, rows=rows)
            stream, scope = Listing(listed), listed.scope or ""
        else:
            stream, _ = open_given(source, self.settings.sources, include=include, exclude=exclude, rows=rows)
        services = self._services
        with read_only(services.ledger.transaction) as own:
            now = clock(own)
            expect_future(need_by, needed, now)
            wanted, embeds, exists = expect_collection(services, own, collection, Asked(provider, model, dimensions))
        recipe = services.recipe(services.embedder(wanted.model), wanted.sparse)
        left = (needed - now).total_seconds() if isinstance(needed, datetime) else needed
        wish = Wish(
            wanted,
            exists,
            tenant or self.tenant,
            embeds,
            recipe,
            metadata or {},
            seconds_left=left,
            max_cost=check_cost(max_cost),
            scope=scope,
            recipe_also=services.recipes_before(wanted),
        )
        reading = Reading(self.settings.memory, self.settings.sources, self.settings.redis)
        return estimate(services.tools, reading, wish, stream, on_progress)

    def _budgets_of(self, own: Connection, job_id: uuid.UUID | None) -> list[Budget]:
        found = budgets.listing(own, self.settings.cost)
        of_job = budgets.of_jobs(own, [job_id], self.settings.cost) if job_id is not None else {}
        return [*of_job.values(), *found]

    def _budget(self, own: Connection, tenant: str | None, job: uuid.UUID | None) -> Budget:
        if job is not None:
            return budgets.of_jobs(own, [job], self.settings.cost)[job]
        return budgets.of_month(own, {tenant or budgets.ALL}, self.settings.cost)[tenant or budgets.ALL]


def _only_one(tenant: str | None, job_id: uuid.UUID | str | None) -> uuid.UUID | None:
    """The job whose budget is meant, if it is one's."""
    if tenant is not None and job_id is not None:
        raise InvalidRequest("a budget is of all, of a tenant or of a job: name one of the two, not both")
    return None if job_id is None else parse_job_id(job_id)
