"""A job that says `auto`: who embeds for it is decided once, when its first documents are cut, and told with why."""

from __future__ import annotations

from typing import Any

import pytest
from bought_rows import COST, OPENAI, shared, workshop
from workshop import Workshop, paragraphs

from pipeline.embedding.base import ModelSpec
from pipeline.embedding.openai.spec import openai_spec
from pipeline.ledger import fleet
from pipeline.routing import Means, route
from pipeline.settings import OpenAIBatchSettings, OpenAISettings
from pipeline.testing import ConstantEmbedder

__all__ = ["shared", "workshop"]

MEANS = Means(OPENAI.model_copy(update={"batch": "on"}), OpenAIBatchSettings(), COST)
SPEC = ConstantEmbedder().spec


def auto(workshop: Workshop, *names: str, documents: int = 1, **columns: Any) -> tuple[Any, int]:
    """A job that says auto, of so many documents, and its prepare batch. columns: of the job, in SQL."""
    job = workshop.put({f"doc {n}": paragraphs(*names) for n in range(documents)}).job_id
    sets = ", ".join(f"{name} = {value}" for name, value in {"provider": "'auto'", **columns}.items())
    workshop.sql(f"UPDATE jobs SET {sets} WHERE id = %(job)s", job=job)
    workshop.sql("UPDATE batches SET provider = 'auto'")
    (batch,) = workshop.sql("SELECT id FROM batches WHERE job_id = %(job)s", job=job)
    return job, batch["id"]


def routed(
    workshop: Workshop,
    batch: int,
    wanted: dict[bytes, int],
    means: Means = MEANS,
    spec: ModelSpec = SPEC,
    speed: float | None = None,
) -> str:
    claim = workshop.claim(batch)
    with workshop.services.ledger.transaction() as connection:
        return route(connection, means, claim, spec, wanted, speed)


def test_the_choice_is_kept_with_its_reason_and_shown_and_made_once(workshop: Workshop) -> None:
    # Given a job of ten tokens that nobody needs soon, and a model that takes an hour here as far as anybody knows
    job, batch = auto(workshop, "one")
    assert workshop.client.job(job).to_json()["route"] is None

    # When it is routed, then it is embedded here, for nothing, and the job says so
    assert routed(workshop, batch, {b"a": 10}) == "local"
    told = workshop.client.job(job).to_json()["route"]
    assert (told["provider"], told["reason"]) == (
        "local",
        "local, free; the Batch API would cost $5.00; online would cost $10.00",
    )
    assert told["at"]

    # And what has changed meanwhile changes nothing for it
    workshop.sql("UPDATE batches SET state = 'ready'")
    workshop.sql("UPDATE jobs SET need_by = clock_timestamp() + interval '1 s'")
    assert routed(workshop, batch, {b"a": 10}) == "local"
    assert workshop.client.job(job).to_json()["route"] == told


def test_a_job_that_names_a_provider_is_not_routed_unless_it_was_moved(workshop: Workshop) -> None:
    job, batch = auto(workshop, "one", provider="'openai_batch'")
    assert routed(workshop, batch, {b"a": 10}) == "openai_batch"
    assert workshop.client.job(job).route is None

    workshop.sql("UPDATE batches SET state = 'ready'")
    workshop.sql("UPDATE jobs SET routed = 'openai', routed_at = now()")
    assert routed(workshop, batch, {b"a": 10}) == "openai"


def test_a_deadline_that_nobody_here_can_meet_is_met_online(workshop: Workshop) -> None:
    _, batch = auto(workshop, "one", need_by="clock_timestamp() + interval '10 minutes'")

    assert routed(workshop, batch, {b"a": 10}) == "openai"


def test_a_job_that_has_no_other_way_is_not_called_late_because_nobody_has_measured_anything(
    workshop: Workshop,
) -> None:
    # Given a model that is nowhere but here, and two jobs that are needed in a minute: a small and an endless one
    here = Means(OpenAISettings(), MEANS.batch, COST)
    _, batch = auto(workshop, "one", need_by="clock_timestamp() + interval '1 minute'")

    assert routed(workshop, batch, {b"a": 10}, here) == "local"
    reason = workshop.value("SELECT route_reason FROM jobs")
    assert reason.startswith("local: the only way for this collection, free, about 1 s (")

    workshop.sql("UPDATE batches SET state = 'ready'")
    workshop.sql("UPDATE jobs SET routed = NULL")
    assert routed(workshop, batch, {b"a": 10_000_000}, here) == "local"
    assert workshop.value("SELECT route_reason FROM jobs").startswith("it will be late: local: the only way")


def test_the_speed_that_was_measured_and_the_workers_that_live_count(workshop: Workshop) -> None:
    # Given 6,000 tokens that are needed in ten minutes; one process embeds five of them in a second
    _, batch = auto(workshop, "one", need_by="clock_timestamp() + interval '10 minutes'")
    assert routed(workshop, batch, {b"a": 6000}, speed=5.0) == "openai"

    # When there are four of them, then it is done in time here
    with workshop.services.ledger.transaction() as connection:
        fleet.report(connection, "general@here#1", "here", 1, "normal", 4, {})
    workshop.sql("UPDATE batches SET state = 'ready'")
    workshop.sql("UPDATE jobs SET routed = NULL")
    assert routed(workshop, batch, {b"a": 6000}, speed=5.0) == "local"


def test_what_is_stored_costs_nothing_and_takes_no_time(workshop: Workshop) -> None:
    workshop.sql("INSERT INTO embeddings (key, vector, tokens) VALUES ('stored', '', 1000)")
    _, batch = auto(workshop, "one", max_cost=10, need_by="clock_timestamp() + interval '10 minutes'")

    assert routed(workshop, batch, {b"stored": 1000, b"new": 10}) == "openai"


def test_the_documents_that_are_still_to_be_cut_are_taken_to_be_like_these(workshop: Workshop) -> None:
    # Given ten tokens in one of three documents
    _, batch = auto(workshop, "one", documents=3, max_cost=29, need_by="clock_timestamp() + interval '2 days'")
    workshop.sql("UPDATE batches SET size = 1")

    # When what all three will cost by the Batch API is within what may be spent, and local is too slow, it is ordered
    assert routed(workshop, batch, {b"a": 10}, speed=0.0001) == "openai_batch"
    assert workshop.value("SELECT route_reason FROM jobs").startswith("the Batch API, $15.00 (2 d left)")


def test_the_budget_of_the_month_counts_too(workshop: Workshop) -> None:
    poor = Means(MEANS.openai, MEANS.batch, COST.model_copy(update={"tenant_month_usd": 6.0}))
    _, batch = auto(workshop, "one", need_by="clock_timestamp() + interval '10 minutes'")

    assert routed(workshop, batch, {b"a": 10}, poor, speed=0.001) == "local"
    reason = workshop.value("SELECT route_reason FROM jobs")
    assert reason.startswith("it will be late: local, free")
    assert reason.endswith("online would cost $10.00, more than may be spent")


def test_what_does_not_fit_into_the_accounts_limit_takes_several_windows(workshop: Workshop) -> None:
    small = Means(MEANS.openai, OpenAIBatchSettings(enqueued_tokens=100), COST)
    _, batch = auto(workshop, "one", need_by="clock_timestamp() + interval '3 days'")

    assert routed(workshop, batch, {b"a": 250}, small, speed=0.0001) == "openai"


@pytest.mark.parametrize(
    ("changes", "provider"),
    [
        ({"batch": "off"}, "openai"),
        ({"api_key": ""}, "local"),
        ({"api_key": "", "base_url": "http://gpu-1:8000/v1"}, "openai_batch"),
        ({"same_as": {}}, "local"),
        ({}, "openai_batch"),
    ],
)
def test_only_what_can_embed_is_chosen(workshop: Workshop, changes: dict[str, Any], provider: str) -> None:
    settings = type(OPENAI)(**{**MEANS.openai.model_dump(), **changes})
    _, batch = auto(workshop, "one", need_by="clock_timestamp() + interval '3 days'")

    assert routed(workshop, batch, {b"a": 10}, Means(settings, MEANS.batch, COST), speed=0.0000001) == provider


def test_a_model_of_openais_without_a_key_is_online_and_waits_for_one(workshop: Workshop) -> None:
    no_key = OpenAISettings()
    _, batch = auto(workshop, "one", need_by="clock_timestamp() + interval '10 minutes'")

    assert routed(workshop, batch, {b"a": 10}, Means(no_key, MEANS.batch, COST), openai_spec(no_key)) == "openai"
