"""Work that keeps failing: nobody beside it suffers, and it is ended with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from workshop import PoisonedEmbedder, Workshop, chunked, paragraph, paragraphs, with_work

from pipeline import Settings, ingest
from pipeline.drafts import Draft
from pipeline.duties import Bounds
from pipeline.errors import ModelUnavailable
from pipeline.ledger import batches, blame
from pipeline.testing import ConstantEmbedder
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

    def fragile(draft: Draft, *others: Any) -> Any:
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
    assert reconcile(poisoned.services, Bounds(100, 20.0))["given_up"] == 0
    _lose(poisoned)

    assert reconcile(poisoned.services, Bounds(100, 20.0))["given_up"] == 1
    assert poisoned.client.job(job.job_id).state == "failed"


def test_work_on_which_ten_workers_were_lost_is_split_and_one_alone_is_given_up(workshop: Workshop) -> None:
    job = workshop.put({"a": "one", "b": "two"})
    for _ in range(10):
        workshop.claim(workshop.ready()[0].id)
        _lose(workshop)
        assert reconcile(workshop.services, Bounds(100, 20.0))["expired"] == 1
    rows = workshop.sql("SELECT state, size, losses FROM batches ORDER BY id")
    assert [(row["state"], row["size"], row["losses"]) for row in rows] == [("dead", 2, 10)] + [("ready", 1, 0)] * 2

    alone = workshop.ready()[0].id
    for _ in range(10):
        workshop.claim(alone)
        _lose(workshop)
        reconcile(workshop.services, Bounds(100, 20.0))
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

    assert reconcile(workshop.services, Bounds(100, 20.0))["expired"] == 2

    rows = workshop.sql("SELECT state, attempts, losses, alone FROM batches WHERE kind = 'embed' ORDER BY id")
    assert rows == [{"state": "ready", "attempts": 0, "losses": 0, "alone": True}] * 2
    workshop.work()
    assert set(workshop.texts()) == {"one", "two"}


def _die(workshop: Workshop) -> None:
    """The pool child that holds everything claimed is gone, its worker lives; then reconcile looks."""
    workshop.sql(
        """INSERT INTO workers (id, host, pid, queues, slots, started_at)
           VALUES ('worker@here#1', 'here', 1, 'normal', 1, now() - interval '1 hour')
           ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp()"""
    )
    _lose(workshop)
    reconcile(workshop.services, Bounds(100, 20.0))


def test_a_batch_whose_process_died_is_split_at_once_and_one_alone_has_all_its_attempts(workshop: Workshop) -> None:
    # Given a batch of eight documents, the third of which kills whoever prepares it
    job = workshop.put({f"d{number}": f"words {number}" for number in range(8)})
    bad = workshop.value("SELECT id FROM versions ORDER BY id LIMIT 1 OFFSET 2")

    # When it is claimed by a process that dies of it, again and again
    deaths = []
    while unfinished := workshop.sql(
        "SELECT b.id, b.size FROM batches b JOIN staged s ON s.batch_id = b.id WHERE s.version_id = %(bad)s", bad=bad
    ):
        (batch,) = unfinished
        deaths.append(batch["size"])
        workshop.claim(batch["id"])
        _die(workshop)

    # Then it is halved each time, three times for eight, and tried three times alone
    assert deaths == [8, 4, 2, 1, 1, 1]
    (letter,) = workshop.client.dead_letters()
    assert (letter.uri, letter.attempts, letter.losses) == ("d2", 3, 0)
    halves = workshop.sql("SELECT size, attempts, alone FROM batches WHERE state = 'ready' ORDER BY size")
    assert halves == [
        {"size": 1, "attempts": 0, "alone": True},
        {"size": 2, "attempts": 2, "alone": True},
        {"size": 4, "attempts": 2, "alone": True},
    ], "nobody beside it is claimed in company while it is looked for"
    workshop.work()
    done = workshop.client.job(job.job_id)
    assert (done.state, done.documents["indexed"], done.documents["failed"]) == ("partial", 7, 1)


def test_what_is_left_alone_in_a_batch_is_not_given_up_before_it_was_tried_alone(workshop: Workshop) -> None:
    workshop.put({"a": "about a", "b": "about b"})
    (batch,) = workshop.ready()
    workshop.put({"b": "newer"})  # the batch has one member left
    workshop.claim(batch.id)

    _die(workshop)

    row = workshop.sql("SELECT state, size, attempts FROM batches WHERE id = %(id)s", id=batch.id)
    assert row == [{"state": "ready", "size": 1, "attempts": 1}]
    workshop.work()
    assert workshop.texts() == {"a": ["about a"], "b": ["newer"]}


def test_the_halves_of_a_batch_that_lost_ten_workers_are_one_loss_from_being_split_again(workshop: Workshop) -> None:
    workshop.put({f"d{number}": f"words {number}" for number in range(4)})
    for _ in range(10):
        workshop.claim(workshop.ready()[0].id)
        _lose(workshop)
        reconcile(workshop.services, Bounds(100, 20.0))

    rows = workshop.sql("SELECT size, losses FROM batches WHERE state = 'ready' ORDER BY id")
    assert rows == [{"size": 2, "losses": 9}] * 2
    workshop.claim(workshop.ready()[0].id)
    _lose(workshop)
    reconcile(workshop.services, Bounds(100, 20.0))
    rows = workshop.sql("SELECT size, losses FROM batches WHERE state = 'ready' ORDER BY id")
    assert rows == [{"size": 2, "losses": 9}, {"size": 1, "losses": 0}, {"size": 1, "losses": 0}]
    workshop.work()
    assert len(workshop.texts()) == 4


def test_a_worker_that_cannot_load_the_model_makes_no_dead_letters(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ModelUnavailable("the model is not on this machine")

    job = workshop.put({"a": "about a"})
    workshop.prepare()
    (batch,) = workshop.ready("embed")
    with monkeypatch.context() as patch:
        patch.setattr(ConstantEmbedder, "embed", missing)
        for _ in range(5):
            assert workshop.perform(batch.id, alone=True) == base.Waiting("the model is not on this machine")
            workshop.sql("UPDATE batches SET next_attempt_at = clock_timestamp()")

    assert workshop.sql("SELECT attempts, losses FROM batches WHERE id = %(id)s", id=batch.id) == [
        {"attempts": 0, "losses": 0}
    ]
    workshop.work()
    assert workshop.client.job(job.job_id).state == "succeeded"


def test_of_what_a_process_died_is_told_for_everything_that_it_held(workshop: Workshop) -> None:
    workshop.put({"a": "about a"})
    workshop.put({"b": "about b"})
    first, second = workshop.ready()
    workshop.claim(first.id)
    workshop.claim(second.id, owner="worker@here#1/2")
    with workshop.services.ledger.transaction() as connection:
        blame.note_death(connection, first.id, "signal 11 (SIGSEGV)")

    _die(workshop)

    rows = workshop.sql("SELECT error FROM batches ORDER BY id")
    assert [row["error"] for row in rows] == [
        "its process died: signal 11 (SIGSEGV)",
        "its process died or stopped making progress",
    ]


def test_what_cannot_be_given_up_holds_up_nothing_else(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    give_up = blame.give_up
    workshop.put({"a": "about a"})
    workshop.put({"b": "about b"})
    first, second = workshop.ready()
    for batch in (first, second):
        workshop.sql("UPDATE batches SET losses = 9 WHERE id = %(id)s", id=batch.id)
        workshop.claim(batch.id)

    def broken(connection: Any, claim: Any, *others: Any) -> Any:
        if claim.id == first.id:
            raise ValueError("a fault of ours")
        return give_up(connection, claim, *others)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ledger.blame.give_up", broken)
        _lose(workshop)
        assert reconcile(workshop.services, Bounds(100, 20.0))["given_up"] == 1
    assert [letter.uri for letter in workshop.client.dead_letters()] == ["b"]

    assert reconcile(workshop.services, Bounds(100, 20.0))["given_up"] == 1, "it is found again"
    assert {letter.uri for letter in workshop.client.dead_letters()} == {"a", "b"}
