"""Many applications and many workers on the same few documents at once, and what is left when all is quiet."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from ledger_checks import assert_steps_are_legal, faults, watch_steps
from workshop import Workshop, chunked, paragraphs, with_work

from pipeline import Settings
from pipeline.duties import Bounds
from tasks.maintenance import reconcile

SEED = 20_240_607
SECONDS = 6.0
URIS = [f"d{number}" for number in range(6)]
WORDS = ["ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine"]


def _crowd(settings: Settings) -> Settings:
    ingest = settings.ingest.model_copy(update={"embed_chunks": 2, "prepare_documents": 2, "group_documents": 4})
    crowded = chunked(with_work(settings, backoff_seconds=0.01, lease_seconds=1.0, heartbeat_seconds=0.3))
    return crowded.model_copy(update={"ingest": ingest})


def _application(workshop: Workshop, dice: random.Random) -> None:
    """One thing that an application does."""
    chosen = dice.sample(URIS, dice.randint(1, 4))
    priority = dice.choice(["high", "normal", "low"])
    match dice.randrange(6):
        case 0:
            workshop.client.delete(chosen, collection="notes", priority=priority)
        case 1:
            job = workshop.put({uri: paragraphs(*dice.sample(WORDS, 3)) for uri in chosen}, priority=priority)
            time.sleep(dice.random() * 0.1)
            workshop.client.cancel(job.job_id)
        case _:
            workshop.put(
                {uri: paragraphs(*dice.sample(WORDS, dice.randint(1, 5))) for uri in chosen}, priority=priority
            )
    time.sleep(dice.random() * 0.05)


def _worker(workshop: Workshop, dice: random.Random) -> None:
    """Performs some batch, or takes one and dies with it."""
    ready = [batch for batch in workshop.ready() if not batch.wait_seconds]
    if not ready:
        time.sleep(0.02)
        return
    batch = dice.choice(ready[:6])
    if dice.random() < 0.05:
        with workshop.services.ledger.transaction() as connection:
            connection.execute(
                """UPDATE batches SET state = 'running', epoch = epoch + 1, owner = 'gone@here#1/1',
                          lease_until = clock_timestamp() WHERE id = %s AND state = 'ready'""",
                (batch.id,),
            )
        return
    workshop.perform(batch.id)


def _rescue(workshop: Workshop, dice: random.Random) -> None:
    reconcile(workshop.services, Bounds(100, 20.0))
    workshop.contract()
    time.sleep(dice.random() * 0.2)


def test_whatever_meets_whatever_the_index_is_what_was_wanted_last(settings: Settings) -> None:
    # Given three applications, three workers and a rescuer, all on six documents
    crowd = _crowd(settings)
    roles: list[Callable[[Workshop, random.Random], None]] = [*[_application] * 3, *[_worker] * 3, _rescue]
    workshops = [Workshop(crowd) for _ in roles]
    watch_steps(workshops[0])
    workshops[0].index({"beside": paragraphs("beside")})
    until = time.monotonic() + SECONDS
    failures: list[BaseException] = []

    def run(number: int) -> None:
        dice = random.Random(SEED + number)
        try:
            while time.monotonic() < until:
                roles[number](workshops[number], dice)
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(roles))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 60)
    assert failures == []

    # When all is done that there was to do
    workshop = workshops[0]
    deadline = time.monotonic() + 60
    while workshop.value("SELECT count(*) FROM jobs WHERE finished_at IS NULL"):
        assert time.monotonic() < deadline, workshop.sql("SELECT * FROM batches WHERE ended_at IS NULL")
        reconcile(workshop.services, Bounds(100, 20.0))
        workshop.work()

    # Then no row took a step that its state machine has not
    assert len(assert_steps_are_legal(workshop)) > 12

    # And the index is what the ledger says, and that is what was wanted last
    assert workshop.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
    assert faults(workshop) == {}
    assert workshop.value("SELECT count(*) FROM versions WHERE state IN ('staged', 'open')") == 0
    assert workshop.value("SELECT count(*) FROM versions WHERE state = 'failed'") == 0
    assert workshop.value("SELECT count(*) FROM staged") == 0
    rows = workshop.sql(
        """SELECT d.uri, d.published_version AS shown, d.newest_version AS newest,
                  (SELECT max(v.id) FROM versions v WHERE v.document_id = d.id AND v.state = 'published') AS last
             FROM documents d ORDER BY d.uri"""
    )
    for row in rows:
        assert row["shown"] == row["newest"] == row["last"], row
    kinds = {
        row["uri"]: row["kind"]
        for row in workshop.sql("SELECT d.uri, v.kind FROM documents d JOIN versions v ON v.id = d.published_version")
    }
    assert set(workshop.texts()) == {uri for uri, kind in kinds.items() if kind == "ingest"}
    counted = workshop.value(
        """SELECT count(*) FROM jobs WHERE documents_total <> documents_indexed + documents_unchanged
             + documents_deleted + documents_failed + documents_superseded + documents_cancelled"""
    )
    assert counted == 0, "every document of every job is accounted for once"
    embedded = workshop.value("SELECT count(*) FROM embeddings")
    assert workshop.value("SELECT sum(chunks_embedded) FROM jobs") == embedded
    workshop.contract()
    report = workshop.client.audit("notes")
    assert (report.clean, report.leaving, report.arriving) == (True, 0, 0)
    assert workshop.value("SELECT count(*) FROM chunks") == report.expected
    for made in workshops:
        made.close()
