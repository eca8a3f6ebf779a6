"""Claims of embed batches, and the money that is reserved and spent for them; every sum compared with its parts. And a
workshop whose documents are prepared one by one and paid for."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from paid_embedder import PRICE, PaidEmbedder, paying
from workshop import COLLECTION, Workshop, chunked, paragraph

from pipeline import Settings
from pipeline.ledger import batches, spending
from pipeline.ledger.batches import Claim
from pipeline.ledger.spending import Used
from pipeline.settings import CostSettings

MODEL = "text-embedding-3-small"
NO_LIMITS = CostSettings()


class Killed(Exception):
    """The process ended here."""


@dataclass
class Till:
    """Claims of embed batches, and what may be spent for them."""

    workshop: Workshop
    settings: CostSettings = NO_LIMITS
    claims: list[Claim] = field(default_factory=list)

    def open(self, number: int, tenant: str | None = None, **job: Any) -> uuid.UUID:
        """Claims the embed batches of a new job, a document each."""
        name = f"{tenant}-{len(self.claims)}"
        put = self.workshop.put({f"{name}-{n}": f"text {name} {n}" for n in range(number)}, tenant=tenant)
        for column, value in job.items():
            self.workshop.sql(f"UPDATE jobs SET {column} = %(value)s WHERE id = %(id)s", value=value, id=put.job_id)
        self.workshop.prepare()
        mine = self.workshop.sql(
            "SELECT id FROM batches WHERE job_id = %(id)s AND kind = 'embed' ORDER BY id", id=put.job_id
        )
        self.claims += [self.workshop.claim(row["id"]) for row in mine]
        assert len(mine) == number
        return put.job_id

    def reserve(self, costs: dict[Claim, float], *, held: bool = False) -> list[spending.Refused]:
        """held: the claims' rows are locked first, as who shares them with others has to."""
        with self.workshop.services.ledger.transaction() as connection:
            if held:
                batches.hold(connection, list(costs))
            return spending.reserve(connection, costs, self.settings)

    def record(self, entries: Sequence[Used], settled: Sequence[int] = (), *, killed: bool = False) -> None:
        """killed: before it commits."""
        with self.workshop.services.ledger.transaction() as connection:
            spending.record(connection, entries, settled)
            if killed:
                raise Killed

    def sweep(self) -> int:
        with self.workshop.services.ledger.transaction() as connection:
            return spending.sweep(connection, 100)

    def used(self, claim: Claim, cost: float, **figures: Any) -> Used:
        given = {"texts": 1, "tokens": 10, "cost": cost, "requests": 1, "batch_id": claim.id, **figures}
        return Used(claim.job_id, claim.tenant, COLLECTION, "openai", MODEL, **given)

    def total(self, tenant: str = "") -> dict[str, float]:
        """What is spent, doubtful and reserved, of a tenant or (by default) of all."""
        (row,) = self.workshop.sql(
            """SELECT coalesce(sum(cost), 0) AS spent, coalesce(sum(doubtful), 0) AS doubtful,
                      coalesce(sum(reserved), 0) AS reserved FROM spending WHERE tenant = %(tenant)s""",
            tenant=tenant,
        )
        return row

    def check(self) -> None:
        """Every sum is the sum of its parts."""
        row = self.workshop.sql(
            """SELECT (SELECT coalesce(sum(cost), 0) FROM usage) AS usage,
                      (SELECT coalesce(sum(doubtful_cost), 0) FROM usage) AS usage_doubtful,
                      (SELECT coalesce(sum(cost), 0) FROM reservations) AS reservations,
                      (SELECT EXISTS (SELECT 1 FROM usage WHERE job_id IS NULL)
                           OR EXISTS (SELECT 1 FROM reservations WHERE job_id IS NULL)) AS alone,
                      (SELECT coalesce(sum(cost), 0) FROM jobs) AS jobs,
                      (SELECT coalesce(sum(cost_doubtful), 0) FROM jobs) AS jobs_doubtful,
                      (SELECT coalesce(sum(cost_reserved), 0) FROM jobs) AS jobs_reserved,
                      (SELECT coalesce(sum(cost), 0) FROM spending WHERE tenant <> '') AS tenants,
                      (SELECT coalesce(sum(doubtful), 0) FROM spending WHERE tenant <> '') AS tenants_doubtful,
                      (SELECT coalesce(sum(reserved), 0) FROM spending WHERE tenant <> '') AS tenants_reserved"""
        )[0]
        whole = self.total()
        for what, name in {"usage": "spent", "usage_doubtful": "doubtful", "reservations": "reserved"}.items():
            assert row[what] == pytest.approx(whole[name], abs=1e-9), what
        for what in ("jobs", "tenants"):
            if what == "jobs" and row["alone"]:
                continue  # searches are no job's
            assert row[what] == pytest.approx(whole["spent"], abs=1e-9), what
            assert row[f"{what}_doubtful"] == pytest.approx(whole["doubtful"], abs=1e-9), what
            assert row[f"{what}_reserved"] == pytest.approx(whole["reserved"], abs=1e-9), what


@pytest.fixture
def provider(settings: Settings) -> PaidEmbedder:
    """Who is paid by `workshop`."""
    return PaidEmbedder(paying(settings).openai)


@pytest.fixture
def workshop(settings: Settings, provider: PaidEmbedder) -> Iterator[Workshop]:
    """On the three servers; it pays `provider` for each paragraph."""
    ingest = settings.ingest.model_copy(update={"prepare_documents": 1})
    paid = chunked(paying(settings)).model_copy(update={"ingest": ingest})
    made = Workshop(paid, paid=provider)
    yield made
    made.close()


@pytest.fixture
def price(provider: PaidEmbedder) -> Callable[..., float]:
    """What paragraphs of these names cost online."""
    return lambda *names: sum(provider.count_tokens([paragraph(name) for name in names])) * PRICE.online / 1e6
