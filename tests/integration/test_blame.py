"""Work that keeps failing: nobody beside it suffers, and it is ended with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from workshop import PoisonedEmbedder, Workshop, chunked, paragraph, paragraphs, with_work

from pipeline import Settings, ingest
from pipeline.ledger import batches
from tasks import base
from tasks.maintenance import reconcile


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(chunked(with_work(settings, backoff_seconds=0.01)))
    yield made
    made.close()


def _lose(workshop: Workshop) -> None:
    """Every lease runs out now."""
    workshop.sql("UPDATE batches SET lease_until = clock_timestamp() - interval '1 ms' WHERE state = 'running'")


@pytest.fixture
def poisoned(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(chunked(with_work(settings, backoff_seconds=0.01)), PoisonedEmbedder("poison"))
    yield made
    made.close()


def test_one_bad_document_of_eight_stands_alone_in_the_end_and_the_others_are_indexed(poisoned: Workshop) -> None:
    poisoned.index({"bad": paragraphs("before", "old")})
    before = poisoned.embedded()
    good = {f"good{number}": f"good words {number}" for number in range(7)}

    job = poisoned.index({**good, "bad": paragraphs("before", "poison")})

    assert (job.state, job.documents["indexed"], job.documents["failed"]) == ("partial", 7, 1)
    assert list(job.errors) == [{"uri": "bad", "error": "RuntimeError: cannot embed poison"}]
    assert poisoned.texts()["bad"] == [paragraph("before"), paragraph("old")], "the version before stays"
    assert len(poisoned.texts()) == 8
    assert sorted(poisoned.embedded()) == sorted([*before, *good.values()]), "each once"
    assert poisoned.value("SELECT max(attempts) FROM batches") == 3
    assert poisoned.value("SELECT count(*) FROM batches WHERE ended_at IS NULL") == 0
    poisoned.contract()
    assert poisoned.audit() == {"expected": 9, "present": 9}


def test_one_document_that_breaks_its_preparation_stands_alone_in_the_end(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = ingest._diff

    def fragile(draft: ingest.Draft, *others: Any) -> Any:
        if draft.staged.uri == "bad":
            raise RuntimeError("the comparison broke")
        return compare(draft, *others)

    monkeypatch.setattr(ingest, "_diff", fragile)
    job = workshop.index({**{f"good{number}": f"words {number}" for number in range(7)}, "bad": "poison"})

    assert (job.state, job.documents["indexed"], job.documents["failed"]) == ("partial", 7, 1)
    assert list(job.errors) == [{"uri": "bad", "error": "RuntimeError: the comparison broke"}]
    assert workshop.value("SELECT count(*) FROM staged") == 0


def test_a_deletion_that_breaks_leaves_its_document(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop.index({"a": "about a", "b": "about b"})

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ledger.versions.open_versions", broken)
        job = workshop.remove(["a", "b"])

    assert (job.state, job.documents["failed"]) == ("failed", 2)
    assert len(workshop.texts()) == 2
    assert workshop.remove(["a", "b"]).state == "succeeded"


def test_work_that_is_out_of_attempts_when_its_process_dies_is_given_up_by_reconcile(
    poisoned: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt  # between counting the last attempt and ending the batch

    job = poisoned.put({"bad": "poison"})
    poisoned.prepare()
    (batch,) = poisoned.ready("embed")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ledger.blame.give_up", dies)
        for _ in range(2):
            assert isinstance(poisoned.perform(batch.id), base.Failed)
            poisoned.sql("UPDATE batches SET next_attempt_at = clock_timestamp()")
        with pytest.raises(KeyboardInterrupt):
            poisoned.perform(batch.id)
    assert reconcile(poisoned.services, 100)["given_up"] == 0
    _lose(poisoned)

    assert reconcile(poisoned.services, 100)["given_up"] == 1
    assert poisoned.client.job(job.job_id).state == "failed"


def test_work_on_which_ten_workers_were_lost_is_split_and_one_alone_is_given_up(workshop: Workshop) -> None:
    job = workshop.put({"a": "one", "b": "two"})
    for _ in range(10):
        workshop.claim(workshop.ready()[0].id)
        _lose(workshop)
        assert reconcile(workshop.services, 100)["expired"] == 1
    rows = workshop.sql("SELECT state, size, losses FROM batches ORDER BY id")
    assert [(row["state"], row["size"], row["losses"]) for row in rows] == [("dead", 2, 10)] + [("ready", 1, 0)] * 2

    alone = workshop.ready()[0].id
    for _ in range(10):
        workshop.claim(alone)
        _lose(workshop)
        reconcile(workshop.services, 100)
    workshop.work()

    done = workshop.client.job(job.job_id)
    assert (done.state, done.documents["indexed"], done.documents["failed"]) == ("partial", 1, 1)
    assert list(done.errors) == [{"uri": "a", "error": "its worker was lost"}]


def test_of_batches_that_failed_together_nobody_is_blamed_and_each_runs_alone(poisoned: Workshop) -> None:
    good = poisoned.put({"good": "good words"}).job_id
    bad = poisoned.put({"bad": "poison"}).job_id
    poisoned.prepare()
    first, second = poisoned.ready("embed")

    assert isinstance(poisoned.perform(first.id), base.Failed), "the two are claimed together"

    rows = poisoned.sql("SELECT state, attempts, losses, alone FROM batches WHERE kind = 'embed' ORDER BY id")
    assert rows == [{"state": "ready", "attempts": 0, "losses": 0, "alone": True}] * 2
    assert poisoned.perform(first.id) == base.Done(1), "alone"
    assert isinstance(poisoned.perform(second.id), base.Failed)
    assert poisoned.value("SELECT attempts FROM batches WHERE id = %(id)s", id=second.id) == 1
    poisoned.work()
    assert poisoned.client.job(good).state == "succeeded"
    assert poisoned.client.job(bad).state == "failed"


def test_of_batches_whose_process_died_together_nobody_is_blamed_and_each_runs_alone(workshop: Workshop) -> None:
    workshop.put({"one": "first words"})
    workshop.put({"two": "second words"})
    workshop.prepare()
    first, _ = workshop.ready("embed")
    with workshop.services.ledger.transaction() as connection:
        claim = batches.claim(connection, first.id, "worker@host#1/2", 9.0)
        assert claim is not None
        assert len(batches.coalesce(connection, claim, "worker@host#1/2", 9.0, 1000)) == 1
    _lose(workshop)

    assert reconcile(workshop.services, 100)["expired"] == 2

    rows = workshop.sql("SELECT state, attempts, losses, alone FROM batches WHERE kind = 'embed' ORDER BY id")
    assert rows == [{"state": "ready", "attempts": 0, "losses": 0, "alone": True}] * 2
    workshop.work()
    assert set(workshop.texts()) == {"one", "two"}
