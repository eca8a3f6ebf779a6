"""Health on real servers: each thing that goes wrong is found, costs its points, and names its remedy."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from alert_scene import MIB, WORKER, alerting_workshop, dead_letter, live, pause, record
from workshop import COLLECTION, Workshop

from pipeline import Settings
from pipeline.assembly import Services
from pipeline.health import health
from pipeline.ledger import circuits, duties
from pipeline.ledger import storage as ledger_storage
from pipeline.monitoring.checks import CHECKS
from pipeline.monitoring.cluster import ClusterStats
from pipeline.observe.measured import Measured
from tasks.duties import DUTIES


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = alerting_workshop(settings)
    made.index({"a": "about a"})
    live(made)
    yield made
    made.close()


def found(workshop: Workshop) -> dict[str, int]:
    """Name -> points of the issues; and the score is what they leave."""
    told = workshop.client.status()["health"]
    assert told["score"] == max(0, 100 - sum(issue["points"] for issue in told["issues"]))
    assert all(issue["remedy"] and issue["message"] for issue in told["issues"])
    points: dict[str, int] = {}
    for issue in told["issues"]:
        points[issue["name"]] = points.get(issue["name"], 0) + issue["points"]
    return points


def full_disk(workshop: Workshop) -> None:
    with workshop.services.ledger.transaction() as connection:
        circuits.tell_full(connection, "Postgres has no room on its disk")


def lost_collection(workshop: Workshop) -> None:
    physical = workshop.value("SELECT physical FROM collections WHERE name = %(name)s", name=COLLECTION)
    workshop.services.vectors.drop_collection(physical)


def dead_worker(workshop: Workshop) -> None:
    workshop.sql("UPDATE workers SET queues = 'high,normal', seen_at = clock_timestamp() WHERE id = %(id)s", id=WORKER)
    workshop.sql("UPDATE workers SET seen_at = clock_timestamp() - interval '30 s' WHERE id LIKE 'express%%'")


def no_beat(workshop: Workshop) -> None:
    workshop.sql("UPDATE services SET seen_at = clock_timestamp() - interval '40 s'")


def register(workshop: Workshop) -> None:
    """All duties have just run."""
    with workshop.services.ledger.transaction() as connection:
        duties.register(connection, [duty.definition for duty in DUTIES])
    workshop.sql("UPDATE duties SET ran_at = clock_timestamp()")


def late_duties(workshop: Workshop) -> None:
    register(workshop)
    workshop.sql("UPDATE workers SET started_at = started_at - interval '1 hour'")
    workshop.sql(
        """UPDATE duties SET ran_at = clock_timestamp() - interval '10 minutes',
                  awaited_since = clock_timestamp() - interval '1 hour' WHERE name = 'contract'"""
    )
    workshop.sql("""UPDATE duties SET failed = true, result = '{"error": "it broke"}' WHERE name = 'memory.report'""")


def disabled_reconcile(workshop: Workshop) -> None:
    register(workshop)
    workshop.sql("UPDATE duties SET enabled = false WHERE name = 'reconcile'")


def backlog(workshop: Workshop) -> None:
    workshop.put({"b": "about b"})
    workshop.sql("UPDATE batches SET created_at = created_at - interval '2 hours' WHERE state = 'ready'")
    workshop.client.set_threshold("queue_size", 0.5)


def failing_schedule(workshop: Workshop) -> None:
    workshop.sql(
        """INSERT INTO schedules (collection, tenant, source, every_seconds, last_error, consecutive_failures)
           VALUES ('notes', 'default', '/tree', 60, 'it is away', 2)"""
    )


def dead_webhook(workshop: Workshop) -> None:
    workshop.sql(
        """INSERT INTO webhook_deliveries (job_id, url, state, ended_at)
           SELECT id, 'https://example.org', 'dead', clock_timestamp() FROM jobs LIMIT 1"""
    )


def large_child(workshop: Workshop) -> None:
    live(workshop, [{"slot": 0, "pid": 7, "rss": 950 * MIB}])


def nearly_full(workshop: Workshop) -> None:
    with workshop.services.ledger.transaction() as connection:
        ledger_storage.add_samples(connection, {"postgres.bytes": 98.0 * MIB, "postgres.room_bytes": 100.0 * MIB})


def slow_and_broken(workshop: Workshop) -> None:
    record(workshop, "search", 2.0, runs=100, errors=20)


def another_model(workshop: Workshop) -> None:
    stats = ClusterStats(workshop.settings.redis)
    stats.add(Measured(counts={("openai_model_changes", ()): 3.0}))
    stats.close()


def wedged(workshop: Workshop) -> None:
    workshop.put({"b": "about b"})
    workshop.claim(workshop.ready()[0].id)
    workshop.sql("UPDATE batches SET wedged_at = clock_timestamp() WHERE state = 'running'")


def provider_fails(cause: str) -> Callable[[Workshop], None]:
    """The circuit to OpenAI is open for this."""

    def provoke(workshop: Workshop) -> None:
        with workshop.services.ledger.transaction() as connection:
            circuits.trip(connection, circuits.OPENAI, "OpenAI says no", cause=cause)

    provoke.__name__ = cause
    return provoke


def remote_batch(workshop: Workshop, **columns: object) -> int:
    """A row of a batch of the Batch API that is well, but for these columns (SQL)."""
    given = {"state": "'submitted'", "next_at": "clock_timestamp() + interval '1 minute'", **columns}
    return int(
        workshop.value(
            f"""INSERT INTO remote_batches (key, spec_hash, inputs, tokens, priority, {", ".join(given)})
                VALUES (gen_random_uuid()::text, 'x', 50000, 500000, 1, {", ".join(map(str, given.values()))})
             RETURNING id"""
        )
    )


def stuck_batches(workshop: Workshop) -> None:
    """One past its end, one that nobody looks after, one that fails at every step; and two that are well."""
    remote_batch(workshop, remote="""jsonb_build_object('expires_at', extract(epoch FROM now())::bigint - 7200)""")
    remote_batch(workshop, next_at="clock_timestamp() - interval '20 minutes'")
    remote_batch(workshop, tries="6", error="'content is not there'")
    remote_batch(workshop, remote="""jsonb_build_object('expires_at', extract(epoch FROM now())::bigint - 60)""")
    remote_batch(workshop, next_at="NULL", closed_at="clock_timestamp()", tries="9")


def doubtful_batches(workshop: Workshop) -> None:
    """One of which another was found, one that was closed an hour ago, one that may exist; and one closed last week."""
    remote_batch(workshop, doubtful="true", others="""'[{"id": "batch_2"}]'""")
    remote_batch(workshop, doubtful="true", next_at="NULL", closed_at="clock_timestamp() - interval '1 hour'")
    remote_batch(workshop, state="'creating'", intent_at="clock_timestamp() - interval '1 hour'")
    remote_batch(workshop, doubtful="true", next_at="NULL", closed_at="clock_timestamp() - interval '7 days'")


def late_job(workshop: Workshop) -> None:
    workshop.put({"b": "about b"})
    workshop.sql("UPDATE jobs SET need_by = clock_timestamp() - interval '2 hours'")


def full_budget(workshop: Workshop) -> None:
    workshop.sql("INSERT INTO budgets (tenant, month_usd) VALUES ('acme', 10), ('', 100), ('free', 0)")
    workshop.sql(
        """INSERT INTO spending (month, tenant, cost, reserved)
           SELECT date_trunc('month', now() AT TIME ZONE 'UTC')::date, * FROM (
             VALUES ('acme', 6.0, 4.0), ('', 60.0, 30.0), ('free', 1.0, 0.0), ('other', 1000.0, 0.0)) AS s"""
    )


PROVOKED: tuple[tuple[Callable[[Workshop], None], dict[str, int]], ...] = (
    (full_disk, {"dependency_resting": 40}),
    (lost_collection, {"collection_lost": 30}),
    (dead_worker, {"no_worker": 25, "no_express": 30, "worker_silent": 10}),
    (no_beat, {"beat_away": 15}),
    (late_duties, {"duty_overdue": 10, "duty_failing": 5}),
    (disabled_reconcile, {"duty_overdue": 30}),
    (backlog, {"queue_size": 5, "queue_age": 5}),
    (dead_letter, {"dead_letters": 5}),
    (failing_schedule, {"schedule_failing": 5}),
    (dead_webhook, {"webhooks_given_up": 5}),
    (large_child, {"memory_usage": 10, "memory_pressure": 5}),
    (nearly_full, {"disk_filling": 30}),
    (slow_and_broken, {"slow_operation": 5, "error_rate": 10}),
    (pause, {"everything_paused": 10}),
    (wedged, {"work_wedged": 10}),
    (provider_fails("KeyRejected"), {"openai_key_rejected": 30}),
    (provider_fails("QuotaExhausted"), {"openai_quota_exhausted": 30}),
    (provider_fails("ProviderUnavailable"), {"openai_away": 20}),
    (provider_fails("ProviderLimited"), {}),
    (another_model, {"openai_model_changed": 5}),
    (stuck_batches, {"remote_batch_stuck": 30}),
    (doubtful_batches, {"remote_batch_doubtful": 15}),
    (late_job, {"job_late": 10}),
    (full_budget, {"budget_exhausted": 10, "budget_near": 2}),
)


@pytest.mark.parametrize(("provoke", "expected"), PROVOKED, ids=lambda given: getattr(given, "__name__", ""))
def test_what_goes_wrong_is_found_and_costs_its_points(
    workshop: Workshop, provoke: Callable[[Workshop], None], expected: dict[str, int]
) -> None:
    assert found(workshop) == {}
    provoke(workshop)
    assert found(workshop) == expected


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def away(workshop: Workshop, section: str, url: str) -> Iterator[Services]:
    """Services of which one server is nowhere."""
    changed = getattr(workshop.settings, section).model_copy(
        update={"url": type(workshop.settings.redis.url)(url), "timeout": 1.0}
    )
    opened = Services(workshop.settings.model_copy(update={section: changed}), embedder=workshop.embedder)
    try:
        yield opened
    finally:
        opened.close()


def test_a_redis_that_is_away_is_found_and_its_figures_are_unknown(workshop: Workshop) -> None:
    with away(workshop, "redis", f"redis://127.0.0.1:{free_port()}/0") as services:
        told = health(services)["health"]
    assert [issue["name"] for issue in told["issues"]] == ["redis_away"]
    assert (told["score"], told["unknown"]) == (
        60,
        ["duty_overdue", "error_rate", "openai_model_changed", "slow_operation"],
    )


def test_a_qdrant_that_is_away_is_found_and_lost_collections_are_unknown(workshop: Workshop) -> None:
    with away(workshop, "qdrant", f"grpc://127.0.0.1:{free_port()}") as services:
        told = health(services)["health"]
    assert [issue["name"] for issue in told["issues"]] == ["qdrant_away"]
    assert (told["score"], told["unknown"]) == (60, ["collection_lost"])


def test_where_postgres_is_away_the_score_is_zero_and_nothing_else_is_known(workshop: Workshop) -> None:
    changes = {"connect_timeout": 1.0}
    postgres = workshop.settings.postgres.model_copy(
        update={**changes, "url": type(workshop.settings.redis.url)(f"postgresql://x@127.0.0.1:{free_port()}/x")}
    )
    services = Services(workshop.settings.model_copy(update={"postgres": postgres}))
    told = health(services)
    services.close()
    assert told["health"]["score"] == 0
    assert [issue["name"] for issue in told["health"]["issues"]] == ["postgres_away"]
    assert {"collection_lost", "no_worker", "disk_filling"} <= set(told["health"]["unknown"])
    assert (told["queues"], told["jobs"], told["workers"]) == ({}, {}, [])


def test_a_flower_that_does_not_answer_is_found_where_its_address_is_known(workshop: Workshop) -> None:
    with away(workshop, "flower", f"http://127.0.0.1:{free_port()}") as services:
        told = health(services)["health"]
    assert [(issue["name"], issue["points"]) for issue in told["issues"]] == [("flower_away", 2)]


def test_looking_takes_less_than_a_second(workshop: Workshop) -> None:
    workshop.client.status()
    began = time.process_time()
    workshop.client.status()
    assert time.process_time() - began < 1.0


def test_every_check_is_provoked_here_or_needs_a_server_that_is_away() -> None:
    provoked = {name for _, expected in PROVOKED for name in expected}
    assert {check.name for check in CHECKS} - provoked == {"postgres_away", "redis_away", "qdrant_away", "flower_away"}
