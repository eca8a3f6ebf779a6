"""Who holds a batch, for how long, and what becomes of it when that goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from command_line import eventually
from workshop import Workshop, chunked, paragraph, paragraphs, with_work

from pipeline import Settings, ingest
from pipeline.duties import Bounds
from pipeline.embedding.base import Embedded, Role
from pipeline.errors import LeaseLost, LedgerUnavailable, VectorsUnavailable
from pipeline.ledger import batches, fleet
from pipeline.testing import ConstantEmbedder
from tasks import base
from tasks.maintenance import reconcile

WORKER = "general@here#1"


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    """One chunk a batch, attempts in quick succession."""
    single = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"embed_chunks": 1})})
    made = Workshop(chunked(with_work(single, backoff_seconds=0.01)))
    yield made
    made.close()


def _lose(workshop: Workshop) -> None:
    """Every lease runs out now."""
    workshop.sql("UPDATE batches SET lease_until = clock_timestamp() - interval '1 ms' WHERE state = 'running'")


def _report(workshop: Workshop, age_seconds: float) -> None:
    """A sign of life of WORKER, so long before the leases ran out."""
    with workshop.services.ledger.transaction() as connection:
        fleet.report(connection, WORKER, "here", 1, "high,normal,low", 2)
        connection.execute(
            """UPDATE workers SET seen_at = (SELECT max(lease_until) FROM batches WHERE state = 'running')
                                            - make_interval(secs => %s)""",
            (age_seconds,),
        )


def _embed_batch(workshop: Workshop, *names: str) -> int:
    """The (first) embed batch of a document "a" with these paragraphs."""
    workshop.put({"a": paragraphs(*names)})
    workshop.prepare()
    return workshop.ready("embed")[0].id


def _ledger(workshop: Workshop) -> dict[str, Any]:
    """Everything that the ledger says."""
    tables = ("documents", "versions", "chunks", "batches", "jobs", "collections", "staged", "embeddings")
    return {table: sorted(map(str, workshop.sql(f"SELECT * FROM {table}"))) for table in tables}


def test_of_many_that_claim_a_batch_at_once_one_gets_it(settings: Settings) -> None:
    wide = settings.model_copy(update={"postgres": settings.postgres.model_copy(update={"pool_size": 4})})
    workshop = Workshop(wide)
    workshop.put({"a": "words"})
    (batch,) = workshop.ready()
    start = threading.Barrier(4)
    found: list[batches.Claim | None] = []

    def claim(number: int) -> None:
        with workshop.services.ledger.transaction() as connection:
            start.wait(60)
            found.append(batches.claim(connection, batch.id, f"{WORKER}/{number}", 9.0))

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(found) == 4
    (held,) = [claim for claim in found if claim is not None]
    assert (held.id, held.epoch, held.size, held.attempts) == (batch.id, 1, 1, 0)
    assert isinstance(workshop.perform(batch.id), base.Skipped)
    workshop.close()


def test_a_message_that_comes_while_its_batch_is_looked_at_and_not_taken_is_not_wasted(workshop: Workshop) -> None:
    """Coalescing locks more candidates than fit into its budget; those are still to be had, and at once."""
    workshop.put({"a": paragraphs("one", "two", "three")})
    workshop.prepare()
    first, _, third = (batch.id for batch in workshop.ready("embed"))
    other = Workshop(workshop.settings)
    taken: list[base.Outcome] = []
    with workshop.services.ledger.transaction() as connection:
        claim = batches.claim(connection, first, f"{WORKER}/1", 9.0)
        assert claim is not None
        assert len(batches.coalesce(connection, claim, f"{WORKER}/1", 9.0, 2 * claim.tokens)) == 1
        thread = threading.Thread(target=lambda: taken.append(other.perform(third)))
        thread.start()
        thread.join(0.3)
        assert taken == []
    thread.join(60)

    assert taken == [base.Done(1)]
    other.close()


@pytest.mark.parametrize(
    ("age", "attempts", "losses"),
    [
        pytest.param(0.0, 1, 0, id="the worker lives: its child died, or hangs"),
        pytest.param(3.5, 1, 0, id="the worker was seen a moment ago, as always"),
        pytest.param(6.5, 0, 1, id="the worker has missed two reports: it died with its claims"),
        pytest.param(None, 0, 1, id="the worker left, or was never seen"),
    ],
)
def test_a_lease_that_runs_out_is_an_attempt_where_the_worker_lives_and_else_a_loss(
    workshop: Workshop, age: float | None, attempts: int, losses: int
) -> None:
    batch = _embed_batch(workshop, "one")
    held = workshop.claim(batch, f"{WORKER}/7")
    _lose(workshop)
    if age is not None:
        _report(workshop, age)

    assert reconcile(workshop.services, Bounds(100, 20.0))["expired"] == 1

    (row,) = workshop.sql("SELECT state, epoch, attempts, losses, error FROM batches WHERE id = %(id)s", id=batch)
    assert (row["state"], row["attempts"], row["losses"]) == ("ready", attempts, losses)
    assert row["epoch"] > held.epoch
    assert row["error"] == ("its worker was lost" if losses else "its process died or stopped making progress")
    assert workshop.work() == [base.Done(1)]
    assert workshop.texts() == {"a": [paragraph("one")]}


def test_a_writer_that_was_paused_and_comes_back_changes_nothing(workshop: Workshop) -> None:
    # Given a claim of each kind whose lease ran out, and whose work another has done by now
    workshop.put({"a": paragraphs("one", "two")})
    (prepare,) = workshop.ready()
    paused = [workshop.claim(prepare.id)]
    _lose(workshop)
    reconcile(workshop.services, Bounds(100, 20.0))
    workshop.prepare()
    paused += [workshop.claim(batch.id) for batch in workshop.ready("embed")]
    _lose(workshop)
    reconcile(workshop.services, Bounds(100, 20.0))
    workshop.work()
    before = _ledger(workshop)

    # When each of them goes on
    with pytest.raises(LeaseLost, match="was taken over"):
        ingest.prepare(workshop.services.tools, paused[0], lambda: None)
    for claims in (paused[1:], paused[1:2], paused[2:]):
        with pytest.raises(LeaseLost, match="was taken over"):
            ingest.embed(workshop.services.tools, claims, lambda: None)
    with workshop.services.ledger.transaction() as connection:
        assert batches.heartbeat(connection, paused, 9.0) == set()
        assert batches.fail(connection, paused, "late", workshop.settings.work) == []
        batches.release(connection, paused, 0.0, "late")

    # Then the ledger is as it was, and so is the index
    assert _ledger(workshop) == before
    assert workshop.audit() == {"expected": 2, "present": 2}


class Interrupted(ConstantEmbedder):
    """Runs `meanwhile` once, in the middle of its first embedding of passages."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self._meanwhile: list[Callable[[], object]] = [meanwhile]

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        while role == "passage" and self._meanwhile:
            self._meanwhile.pop()()
        return super().embed(texts, role, on_progress)


def test_a_writer_that_is_paused_while_it_embeds_stores_nothing(settings: Settings) -> None:
    other = Workshop(settings)

    def take_over() -> None:
        _lose(other)
        reconcile(other.services, Bounds(100, 20.0))
        other.work()

    workshop = Workshop(settings, Interrupted(take_over))
    workshop.put({"a": "words"})
    workshop.prepare()
    (batch,) = workshop.ready("embed")

    outcome = workshop.perform(batch.id)

    assert isinstance(outcome, base.Skipped)
    assert "taken over" in outcome.reason
    (job,) = workshop.client.jobs()
    assert (job.state, job.chunks["embedded"], job.chunks["indexed"]) == ("succeeded", 1, 1)
    assert workshop.value("SELECT attempts + losses FROM batches WHERE id = %(id)s", id=batch.id) == 1
    workshop.close()
    other.close()


def test_points_that_a_paused_writer_puts_back_go_with_the_second_sweep(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a writer that is paused just before it upserts, until its work is cancelled and swept
    job = workshop.put({"a": paragraphs("one"), "b": paragraphs("two")})
    workshop.prepare()
    upsert = workshop.services.vectors.upsert

    def paused(*given: Any) -> None:
        workshop.client.cancel(job.job_id)
        assert ingest.contract(workshop.services.tools, 0.0, 900.0, 100) == 2
        upsert(*given)

    monkeypatch.setattr(workshop.services.vectors, "upsert", paused)
    assert isinstance(workshop.perform(workshop.ready("embed")[0].id), base.Skipped)

    # Then its points are there, are shown to nobody, and go a quarter of an hour later
    assert workshop.audit() == {"stale": 2}
    assert workshop.texts() == {}
    assert ingest.contract(workshop.services.tools, 0.0, 900.0, 100) == 0
    assert ingest.contract(workshop.services.tools, 0.0, 0.0, 100) == 2
    assert workshop.audit() == {}
    assert workshop.value("SELECT count(*) FROM chunks") == 0


class SlowEmbedder(ConstantEmbedder):
    """Gets on with passages, again and again, until it is told that this is enough."""

    def __init__(self) -> None:
        super().__init__()
        self.enough = threading.Event()

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        while role == "passage" and not self.enough.wait(0.05):
            if on_progress is not None:
                on_progress(0)
        return super().embed(texts, role, on_progress)


def test_heartbeats_keep_a_claim_whose_work_takes_longer_than_its_lease(settings: Settings) -> None:
    # Given work that goes on and on
    quick, embedder = with_work(settings, lease_seconds=120.0, heartbeat_seconds=0.1), SlowEmbedder()
    workshop = Workshop(quick, embedder)
    workshop.put({"a": "words"})
    workshop.prepare()
    (batch,) = workshop.ready("embed")
    outcomes: list[base.Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(workshop.perform(batch.id)))

    thread.start()
    onlooker = Workshop(quick)
    left = """SELECT extract(epoch FROM lease_until - clock_timestamp())::float8 FROM batches WHERE id = %(id)s"""
    eventually(lambda: (onlooker.value(left, id=batch.id) or 0.0) > 60)

    # When its lease gets near its end, again and again, then it has a whole one again
    for _ in range(3):
        onlooker.sql(
            "UPDATE batches SET lease_until = clock_timestamp() + interval '30 s' WHERE id = %(id)s", id=batch.id
        )
        eventually(lambda: onlooker.value(left, id=batch.id) > 60)
        assert reconcile(onlooker.services, Bounds(100, 20.0))["expired"] == 0
    embedder.enough.set()
    thread.join(60)

    assert outcomes == [base.Done(1)]
    assert workshop.value("SELECT epoch FROM batches WHERE id = %(id)s", id=batch.id) == 1
    workshop.close()
    onlooker.close()


def test_a_claim_whose_work_makes_no_progress_is_let_go_and_its_result_is_dropped(settings: Settings) -> None:
    quick = with_work(settings, lease_seconds=0.4, heartbeat_seconds=0.1, stall_seconds=0.2)
    hangs, ends = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        assert ends.wait(120)

    workshop, other = Workshop(quick, Interrupted(hang)), Workshop(quick)
    workshop.put({"a": "words"})
    workshop.prepare()
    (batch,) = workshop.ready("embed")
    outcomes: list[base.Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(workshop.perform(batch.id)))
    thread.start()
    assert hangs.wait(60)

    eventually(lambda: reconcile(other.services, Bounds(100, 20.0))["expired"])
    other.work()
    ends.set()
    thread.join(60)

    assert isinstance(outcomes[0], base.Skipped)
    assert other.texts() == {"a": ["words"]}
    assert workshop.client.jobs()[0].chunks["embedded"] == 1
    workshop.close()
    other.close()


def test_an_outage_of_the_index_is_nobodys_fault_and_nothing_is_embedded_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = _embed_batch(workshop, "one")
    monkeypatch.setattr(base, "_OUTAGE_REST_SECONDS", 600.0)  # it rests until the test says so

    def away(*_: object) -> None:
        raise VectorsUnavailable("Qdrant is away")

    for _ in range(5):
        with monkeypatch.context() as patch:
            patch.setattr(workshop.services.vectors, "upsert", away)
            assert workshop.perform(batch) == base.Waiting("Qdrant is away")
        (row,) = workshop.sql(
            """SELECT state, attempts, losses, sent_at, error, next_attempt_at > clock_timestamp() AS rests
                 FROM batches WHERE id = %(id)s""",
            id=batch,
        )
        assert row == {"state": "ready", "attempts": 0, "losses": 0, "sent_at": None, "rests": True} | {
            "error": "Qdrant is away"
        }
        assert isinstance(workshop.perform(batch), base.Skipped), "it rests"
        workshop.sql("UPDATE batches SET next_attempt_at = clock_timestamp()")
        assert isinstance(workshop.perform(batch), base.Skipped), "all work that needs the index waits"
        workshop.sql("UPDATE circuits SET probe_batch = %(id)s", id=batch)

    assert workshop.perform(batch) == base.Done(1)
    assert workshop.embedded() == [paragraph("one")]
    assert workshop.value("SELECT error FROM batches WHERE id = %(id)s", id=batch) is None


def test_a_process_with_a_single_connection_does_the_work(settings: Settings) -> None:
    workshop = Workshop(
        settings.model_copy(
            update={"postgres": settings.postgres.model_copy(update={"pool_size": 1, "connect_timeout": 30.0})}
        )
    )

    assert workshop.index({"a": "words"}).state == "succeeded"
    workshop.close()


def test_work_whose_ledger_goes_away_waits_and_blames_nobody(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = _embed_batch(workshop, "one")

    def away(*_: object) -> None:
        raise LedgerUnavailable("Postgres is away")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ledger.embeddings.store", away)
        assert workshop.perform(batch) == base.Waiting("Postgres is away")

    assert workshop.value("SELECT attempts + losses FROM batches WHERE id = %(id)s", id=batch) == 0
    workshop.work()
    assert workshop.texts() == {"a": [paragraph("one")]}


def test_who_finds_its_coalesced_claims_half_lost_hands_the_rest_back_without_blame(settings: Settings) -> None:
    """Two jobs share a claim's work; one is cancelled while it is embedded."""
    onlooker = Workshop(settings)
    workshop = Workshop(settings, Interrupted(lambda: onlooker.client.cancel(jobs["one"])))
    jobs = {name: workshop.put({name: f"about {name}"}).job_id for name in ("one", "two")}
    workshop.prepare()
    first, second = workshop.ready("embed")

    assert isinstance(workshop.perform(first.id), base.Skipped)

    rows = workshop.sql("SELECT id, state, attempts, losses FROM batches WHERE kind = 'embed' ORDER BY id")
    assert [(row["state"], row["attempts"] + row["losses"]) for row in rows] == [("cancelled", 0), ("ready", 0)]
    assert workshop.perform(second.id) == base.Done(1)
    assert workshop.texts() == {"two": ["about two"]}
    workshop.close()
    onlooker.close()
