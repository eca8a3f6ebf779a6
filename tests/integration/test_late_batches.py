"""A batch that would be late, through the whole: the real service and the stand-in server, and what it has billed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from openai_server import OpenAIServer
from remote_scene import batch_settings
from workshop import Workshop, chunked, paragraph, paragraphs

from pipeline import Settings
from pipeline.duties import Bounds
from pipeline.settings import CostSettings, Price
from tasks.openai_batch import perform, poll

MODEL = "text-embedding-3-small"
PATIENCE_SECONDS = 60.0
LATE, OTHER = ("one", "two", "three", "four"), ("five", "six", "seven", "eight")


@pytest.fixture
def workshop(settings: Settings, openai_server: OpenAIServer) -> Iterator[Workshop]:
    openai_server.control.timing(in_progress=None)
    given = batch_settings(settings, openai_server, poll_seconds=0.01, poll_most_seconds=0.01)
    # A dollar a token, or half of one
    cost = CostSettings(prices={MODEL: Price(online=1e6, batch=5e5)})
    openai = given.openai.model_copy(update={"dimensions": 16})
    made = Workshop(chunked(given.model_copy(update={"cost": cost, "openai": openai})))
    yield made
    made.close()


def look(workshop: Workshop) -> dict[str, int]:
    """One run of the duty, and whatever is to be done for remote batches after it."""
    counts = dict(poll(workshop.services, Bounds(100, 10.0)))
    workshop.sql("UPDATE remote_batches SET next_at = clock_timestamp() WHERE next_at IS NOT NULL")
    for row in workshop.sql("SELECT id FROM remote_batches WHERE next_at IS NOT NULL ORDER BY id"):
        perform(workshop.services, row["id"])
    return counts


def look_until(workshop: Workshop, query: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not workshop.value(query):
        assert time.monotonic() < deadline, workshop.sql("SELECT id, state, status, error FROM remote_batches")
        look(workshop)


def at_the_server(workshop: Workshop, server: OpenAIServer, **late: Any) -> tuple[UUID, UUID]:
    """Two jobs whose texts share one batch, half of which the server has finished."""
    first = workshop.put({"late": paragraphs(*LATE)}, provider="openai_batch", need_by="2d", **late).job_id
    other = workshop.put({"other": paragraphs(*OTHER)}, provider="openai_batch").job_id
    workshop.work()
    look_until(workshop, "SELECT count(*) = 1 FROM remote_batches WHERE status = 'in_progress'")
    (batch,) = server.control.batches()
    assert batch["request_counts"]["total"] == 8
    server.control.change(batch["id"], done=0.5)
    workshop.sql("UPDATE jobs SET need_by = clock_timestamp() + interval '10 minutes' WHERE id = %(job)s", job=first)
    return first, other


def test_what_is_finished_is_used_the_rest_goes_online_and_nothing_is_paid_twice(
    workshop: Workshop, openai_server: OpenAIServer
) -> None:
    late, other = at_the_server(workshop, openai_server)

    # When the duty looks, then the batch is cancelled, and the late job is done without another one
    assert look(workshop)["moved_online"] == 1
    look_until(workshop, "SELECT count(*) = 1 FROM remote_batches WHERE state = 'closed'")
    look(workshop)
    workshop.work()
    done = workshop.client.job(late)
    assert (done.state, done.chunks["indexed"]) == ("succeeded", 4)
    assert done.route is not None
    assert done.route.provider == "openai"
    assert "the rest (" in done.route.reason

    # And what the other job lacks was packed anew
    assert workshop.client.job(other).state == "running"
    look_until(workshop, "SELECT count(*) = 1 FROM remote_batches WHERE status = 'in_progress' AND closed_at IS NULL")
    openai_server.control.finish()
    look_until(workshop, "SELECT count(*) = 2 FROM remote_batches WHERE state = 'closed'")
    workshop.work()
    assert workshop.client.job(other).state == "succeeded"

    # And every text was paid for once: four when the first batch was cancelled, and what was left of each job's
    assert {openai_server.control.billed(paragraph(name)) for name in (*LATE, *OTHER)} == {1}
    bill = openai_server.control.billing()
    assert sum(entry.times for entry in bill) == 8
    tokens = sum(entry.tokens for entry in bill)
    (used,) = workshop.sql("SELECT sum(tokens)::int AS tokens, sum(doubtful_texts)::int AS doubtful FROM usage")
    assert used == {"tokens": tokens, "doubtful": 0}
    assert workshop.value("SELECT count(*) FROM purchases") == 0
    assert workshop.value("SELECT count(*) FROM reservations") == 0


def test_where_online_is_too_dear_the_batch_is_waited_for(workshop: Workshop, openai_server: OpenAIServer) -> None:
    late, _ = at_the_server(workshop, openai_server, max_cost=20.0)

    assert look(workshop)["late"] == 1

    status = workshop.client.job(late)
    assert status.route is not None
    assert status.route.reason.startswith("it will be late: online the rest would cost $")
    openai_server.control.finish()
    look_until(workshop, "SELECT count(*) = 1 FROM remote_batches WHERE state = 'closed'")
    workshop.work()
    assert workshop.client.job(late).state == "succeeded"
    assert {entry.by_batch for entry in openai_server.control.billing()} == {1}
