"""Two of everything, at the same moment: enqueuers, versions, workers, control workers, and another schema."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from alembic import command
from paused_stories import SeamedEmbedder, SeamedStore, Story, with_seams
from workshop import Workshop, chunked, paragraph, paragraphs, with_work

from pipeline import Settings
from pipeline.duties import Bounds
from pipeline.errors import LedgerUnavailable, SchemaMismatch
from pipeline.ledger import migrate
from pipeline.status import JobStatus
from tasks import base
from tasks.duties import DUTIES
from tasks.maintenance import reconcile

DOCUMENTS = {f"d{number}": paragraphs("ash", f"only{number}") for number in range(12)}
ROUNDS = 6


@pytest.fixture
def crowd(settings: Settings) -> Iterator[list[Workshop]]:
    """Three processes' worth of services on the same servers; small groups and batches, quick attempts."""
    ingest = settings.ingest.model_copy(update={"embed_chunks": 2, "prepare_documents": 2, "group_documents": 3})
    small = chunked(with_work(settings, backoff_seconds=0.01)).model_copy(update={"ingest": ingest})
    made = [Workshop(small) for _ in range(3)]
    yield made
    for workshop in made:
        workshop.close()


def at_once(*things: Callable[[], Any]) -> list[Any]:
    """What each came to; all begin at the same moment."""
    start = threading.Barrier(len(things))
    answers: list[Any] = [None] * len(things)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            start.wait(60)
            answers[number] = things[number]()
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(things))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
    assert errors == []
    return answers


def assert_all_is_well(workshop: Workshop) -> None:
    """Nothing is left to do, and the index is what the ledger says."""
    workshop.work()
    reconcile(workshop.services, Bounds(100, 20.0))
    assert workshop.value("SELECT count(*) FROM jobs WHERE finished_at IS NULL") == 0
    assert workshop.value("SELECT count(*) FROM versions WHERE state IN ('staged', 'open')") == 0
    assert workshop.value("SELECT count(*) FROM staged") == 0
    workshop.contract()
    report = workshop.client.audit("notes")
    assert (report.clean, report.leaving, report.arriving) == (True, 0, 0), report
    assert workshop.value("SELECT count(*) FROM chunks") == report.expected


def test_two_identical_ingests_at_once_under_one_key_are_one_job_that_counts_every_document_once(
    crowd: list[Workshop],
) -> None:
    first, second, worker = crowd
    for number in range(ROUNDS):
        documents = {f"{uri}-{number}": text for uri, text in DOCUMENTS.items()}
        jobs: list[JobStatus] = at_once(
            lambda: first.put(documents, idempotency_key=f"key-{number}"),  # noqa: B023 - done within the round
            lambda: second.put(documents, idempotency_key=f"key-{number}"),  # noqa: B023
        )

        assert jobs[0].job_id == jobs[1].job_id
        worker.work()
        done = worker.client.job(jobs[0].job_id)
        assert done.state == "succeeded"
        assert (done.documents["total"], done.documents["indexed"]) == (12, 12), done.documents
    assert len(worker.texts(limit=1000)) == 12 * ROUNDS
    assert_all_is_well(worker)


def test_two_identical_ingests_at_once_without_a_key_are_two_jobs_and_every_document_is_there_once(
    crowd: list[Workshop],
) -> None:
    first, second, worker = crowd

    jobs: list[JobStatus] = at_once(lambda: first.put(DOCUMENTS), lambda: second.put(DOCUMENTS))
    worker.work()

    assert jobs[0].job_id != jobs[1].job_id
    for job in jobs:
        done = worker.client.job(job.job_id)
        assert done.state == "succeeded"
        assert sum(done.documents[name] for name in ("indexed", "unchanged", "superseded")) == 12
    assert worker.texts() == {uri: sorted([paragraph("ash"), paragraph(f"only{uri[1:]}")]) for uri in DOCUMENTS}
    assert worker.value("SELECT count(*) FROM embeddings") == len({paragraph("ash"), *DOCUMENTS.values()})
    assert_all_is_well(worker)


def test_of_a_document_that_comes_in_two_jobs_at_once_the_version_that_was_numbered_last_wins(
    crowd: list[Workshop],
) -> None:
    first, second, worker = crowd
    for number in range(ROUNDS):
        priorities = ("high", "low") if number % 2 else ("normal", "normal")

        at_once(
            lambda: first.put({"a": paragraphs("one", f"first{number}")}, priority=priorities[0]),  # noqa: B023
            lambda: second.put({"a": paragraphs("one", f"second{number}")}, priority=priorities[1]),  # noqa: B023
            worker.work,
        )
        worker.work()

        (row,) = worker.sql(
            """SELECT d.published_version AS shown, (SELECT max(id) FROM versions v WHERE v.document_id = d.id) AS last,
                      d.newest_version AS newest FROM documents d WHERE d.uri = 'a'"""
        )
        assert row["shown"] == row["newest"] == row["last"]
        assert len(worker.texts()["a"]) == 2
    assert_all_is_well(worker)


def test_when_an_update_meets_a_delete_the_one_that_was_numbered_last_holds(crowd: list[Workshop]) -> None:
    first, second, worker = crowd
    worker.index({"a": paragraphs("one")})
    for number in range(ROUNDS):
        at_once(
            lambda: first.put({"a": paragraphs("one", f"new{number}")}),  # noqa: B023
            lambda: second.client.delete(["a"], collection="notes"),
            worker.work,
        )
        worker.work()

        (row,) = worker.sql(
            """SELECT v.kind, v.state, d.published_version FROM documents d JOIN versions v ON v.id = (
                    SELECT max(id) FROM versions WHERE document_id = d.id) WHERE d.uri = 'a'"""
        )
        assert row["state"] in ("published", "unchanged")
        expected = {"a": sorted([paragraph("one"), paragraph(f"new{number}")])} if row["kind"] == "ingest" else {}
        assert worker.texts() == expected
    assert_all_is_well(worker)


def test_three_workers_with_the_same_messages_do_each_batch_once(crowd: list[Workshop]) -> None:
    first, second, third = crowd
    first.put(DOCUMENTS)
    outcomes: list[list[base.Outcome]] = []
    while messages := [batch.id for batch in first.ready()]:
        outcomes += at_once(
            *(lambda w=w: [w.perform(id, alone=True) for id in messages] for w in (first, second, third))
        )

    done = [outcome for answers in outcomes for outcome in answers if isinstance(outcome, base.Done)]
    others = [outcome for answers in outcomes for outcome in answers if not isinstance(outcome, base.Done)]
    assert len(done) == first.value("SELECT count(*) FROM batches")
    assert all(isinstance(outcome, base.Skipped) for outcome in others)
    assert first.value("SELECT max(epoch) FROM batches") == 1
    assert len(first.texts()) == 12
    assert_all_is_well(first)


def test_control_workers_that_run_every_duty_at_the_same_time_disturb_neither_each_other_nor_the_work(
    crowd: list[Workshop],
) -> None:
    """Beside the claim of a duty: as if its lease had run out under each of them."""
    worker = crowd[2]
    quick = [with_work(w.settings, contract_seconds=0.001, recontract_seconds=0.002) for w in crowd[:2]]
    control = [Workshop(settings) for settings in quick]
    stop = threading.Event()

    def duties(workshop: Workshop) -> int:
        rounds = 0
        while not stop.is_set() or rounds < 3:
            for duty in DUTIES:
                duty.run(workshop.services, Bounds(duty.limit, duty.budget_seconds))
            rounds += 1
        return rounds

    def work() -> None:
        for number in range(4):
            worker.put({uri: paragraphs("ash", f"{uri}x{number}") for uri in DOCUMENTS})
            worker.sql("UPDATE batches SET lease_until = clock_timestamp() WHERE state = 'running'")
            if number % 2:
                worker.client.delete(["d1", "d2"], collection="notes")
            worker.work()
        stop.set()

    rounds = at_once(lambda: duties(control[0]), lambda: duties(control[1]), work)

    assert min(rounds[:2]) > 2
    assert len(worker.texts()) == 10
    assert worker.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
    assert_all_is_well(worker)
    for workshop in control:
        workshop.close()


@pytest.mark.parametrize("seam", ["embed", "upsert", "upserted"])
def test_an_old_version_that_is_slow_takes_nothing_from_a_newer_one_that_is_fast(settings: Settings, seam: str) -> None:
    # Given a version with low priority whose worker stands still in the middle
    store = SeamedStore()
    workshop = Workshop(chunked(settings), SeamedEmbedder(), vectors=store)
    with_seams(workshop.services)
    workshop.index({"a": paragraphs("one")})
    old = workshop.put({"a": paragraphs("one", "old")}, priority="low")
    workshop.prepare()
    (batch,) = workshop.ready("embed")
    slow = Story("slow", lambda: workshop.perform(batch.id))
    while slow.seam != seam:
        slow.advance()

    # When a newer one with high priority overtakes it
    workshop.index({"a": paragraphs("one", "new")}, priority="high")
    assert workshop.texts() == {"a": [paragraph("new"), paragraph("one")]}

    # Then the old one changes nothing when it goes on
    assert isinstance(slow.finish(), base.Skipped | base.Done)
    assert workshop.texts() == {"a": [paragraph("new"), paragraph("one")]}
    assert workshop.client.job(old.job_id).documents["superseded"] == 1
    assert workshop.versions("a") == ["published", "superseded", "published"]
    assert_all_is_well(workshop)
    workshop.close()


def _migrate(workshop: Workshop, revision: str) -> None:
    url = workshop.settings.postgres.url.get_secret_value()
    with migrate._connect(url) as connection:
        step = command.upgrade if revision == migrate.head() else command.downgrade
        step(migrate._config(connection), revision)
        connection.commit()


def test_a_newer_worker_on_an_older_schema_says_what_to_do_and_goes_on_after_the_migration(
    crowd: list[Workshop],
) -> None:
    worker = crowd[0]
    job = worker.put(DOCUMENTS)
    batch = worker.ready()[0]
    _migrate(worker, "0005")

    with pytest.raises(SchemaMismatch, match="millrace migrate"):
        worker.perform(batch.id)
    with pytest.raises(SchemaMismatch, match="millrace migrate"):
        worker.put({"more": "words"})
    _migrate(worker, migrate.head())
    worker.work()

    assert worker.client.job(job.job_id).documents["indexed"] == 12
    assert worker.value("SELECT sum(attempts + losses) FROM batches") == 0
    assert_all_is_well(worker)


def test_what_a_worker_of_the_schema_before_writes_is_taken_up_after_the_migration(crowd: list[Workshop]) -> None:
    """The statements of version 0005, on the schema of today: a worker that was not restarted yet."""
    worker = crowd[0]
    worker.put({"a": paragraphs("one")})
    (batch,) = worker.ready()
    _old_claim(worker, batch.id)
    worker.sql(
        """INSERT INTO batches (kind, collection_id, tenant, job_id, priority, provider, size, tokens)
           SELECT kind, collection_id, tenant, job_id, priority, provider, 1, 1 FROM batches WHERE id = %(id)s""",
        id=batch.id,
    )
    worker.sql(
        """INSERT INTO jobs (id, kind, collection_id, tenant, priority, provider, state, recipe)
           SELECT gen_random_uuid(), kind, collection_id, tenant, priority, provider, 'queued', recipe FROM jobs"""
    )
    worker.sql("UPDATE jobs SET sealed_at = now()")
    worker.sql("UPDATE batches SET lease_until = clock_timestamp() - interval '1 ms' WHERE state = 'running'")

    reconcile(worker.services, Bounds(100, 20.0))
    worker.work()

    assert worker.texts() == {"a": [paragraph("one")]}
    assert_all_is_well(worker)


def _old_claim(workshop: Workshop, batch_id: int) -> None:
    workshop.sql(
        """WITH picked AS (
              SELECT b.id FROM batches b JOIN jobs j ON j.id = b.job_id
               WHERE b.id = %(id)s AND b.state = 'ready' AND j.state <> 'paused'
                 AND (b.next_attempt_at IS NULL OR b.next_attempt_at <= clock_timestamp()) FOR NO KEY UPDATE OF b)
           UPDATE batches b
              SET state = 'running', shared = false, owner = 'old@here#1/1', epoch = b.epoch + 1,
                  next_attempt_at = NULL, lease_until = clock_timestamp() + interval '9 s'
             FROM picked p WHERE b.id = p.id""",
        id=batch_id,
    )


def _until_it_is_there(statement: Callable[[], None]) -> None:
    """As a worker does: Postgres may end a transaction that met the migration, and then it is tried again."""
    while True:
        try:
            return statement()
        except LedgerUnavailable:
            continue


def test_a_migration_waits_for_work_under_way_and_work_waits_for_the_migration(crowd: list[Workshop]) -> None:
    # Given an older schema, and a worker of it in the middle of a transaction
    worker, other, _ = crowd
    worker.put({"a": paragraphs("one")})
    (batch,) = worker.ready()
    _migrate(worker, "0005")
    url = worker.settings.postgres.url.get_secret_value()
    with psycopg.connect(url) as connection:
        connection.execute("SELECT * FROM jobs FOR NO KEY UPDATE")
        connection.execute("UPDATE batches SET sent_at = now() WHERE id = %s", (batch.id,))
        migration = threading.Thread(target=migrate.upgrade, args=(url,))  # it gives way to a deadlock, and tries again
        migration.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        while not other.value(waiting):
            assert migration.is_alive()
        old = threading.Thread(target=_until_it_is_there, args=(lambda: _old_claim(other, batch.id),))
        old.start()

        # When that transaction ends
        connection.execute("UPDATE jobs SET seen_at = now()")
    for thread in (migration, old):
        thread.join(60)
        assert not thread.is_alive()

    # Then both were carried out, and the work goes on
    assert migrate.current(url) == migrate.head()
    worker.sql("UPDATE batches SET lease_until = clock_timestamp() - interval '1 ms' WHERE state = 'running'")
    reconcile(worker.services, Bounds(100, 20.0))
    worker.work()
    assert worker.texts() == {"a": [paragraph("one")]}
    assert_all_is_well(worker)
