"""Enqueueing: once for a key, in the application's own transaction, cut off and resumed, cancelled in the middle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.orm import Session
from workshop import Workshop

from pipeline import Document, Settings
from pipeline.duties import Bounds
from pipeline.errors import IdempotencyConflict, InvalidRequest, UnknownCollection, UnknownJob
from pipeline.ledger import jobs, staging
from pipeline.sources import Rejected
from tasks.maintenance import reconcile


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    """Two documents a group."""
    small = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"group_documents": 2})})
    made = Workshop(small)
    yield made
    made.close()


def test_the_same_request_under_the_same_key_is_the_same_job(workshop: Workshop) -> None:
    first = workshop.put({"a": "words"}, idempotency_key="k")
    second = workshop.put({"a": "words"}, idempotency_key="k")
    workshop.work()
    third = workshop.put({"a": "words"}, idempotency_key="k")
    elsewhere = workshop.put({"a": "words"}, idempotency_key="k", tenant="other")

    assert first.job_id == second.job_id == third.job_id != elsewhere.job_id
    assert (third.state, third.documents["total"], third.documents["indexed"]) == ("succeeded", 1, 1)
    assert workshop.versions("a").count("published") == 1


@pytest.mark.parametrize(
    "other",
    [
        {"documents": {"a": "other words"}},
        {"priority": "high"},
        {"collection": "elsewhere"},
        {"metadata": {"lang": "en"}},
    ],
)
def test_another_request_under_the_same_key_is_refused(workshop: Workshop, other: dict[str, Any]) -> None:
    job = workshop.put({"a": "words"}, idempotency_key="k")

    with pytest.raises(IdempotencyConflict, match=f"'k' was used by job {job.job_id}"):
        workshop.put(**{"documents": {"a": "words"}, **other, "idempotency_key": "k"})


class CutOff(Exception):
    """The enqueuer's end."""


def _stream(*texts: str, cut: bool = False) -> Iterator[Document]:
    for number, text in enumerate(texts):
        yield Document(f"d{number}", text)
    if cut:
        raise CutOff


def test_an_enqueuer_that_was_cut_off_goes_on_under_its_key_and_counts_nothing_twice(workshop: Workshop) -> None:
    # Given an unchanged document, and an ingest of five that broke off after two groups, the first of them indexed
    workshop.index({"d0": "zero"})
    with pytest.raises(CutOff):
        workshop.put(_stream("zero", "one", "two", "three", cut=True), idempotency_key="k")
    workshop.work()
    (cut,) = workshop.client.jobs(limit=1)
    assert (cut.state, cut.documents["total"], cut.documents["indexed"]) == ("running", 4, 3)

    # When it is made again, whole
    job = workshop.put(_stream("zero", "one", "two", "three", "four"), idempotency_key="k")
    workshop.work()

    # Then it is the same job, with each document once
    done = workshop.client.job(job.job_id)
    assert done.job_id == cut.job_id
    assert done.state == "succeeded"
    assert {name: done.documents[name] for name in ("total", "indexed", "unchanged", "failed")} == {
        "total": 5,
        "indexed": 4,
        "unchanged": 1,
        "failed": 0,
    }
    assert workshop.embedded() == ["zero", "one", "two", "three", "four"]
    assert len(workshop.texts()) == 5


def test_what_could_not_be_read_is_counted_once_by_an_enqueuer_that_goes_on(workshop: Workshop) -> None:
    def stream(*, cut: bool) -> Iterator[Document | Rejected]:
        yield Document("d0", "zero")
        yield Rejected("d1", "cannot be read")
        yield Document("d2", "   ")
        yield Document("d3", "three")
        if cut:
            raise CutOff
        yield Document("d4", "four")

    with pytest.raises(CutOff):
        workshop.put(stream(cut=True), idempotency_key="k")
    workshop.work()
    job = workshop.index(stream(cut=False), idempotency_key="k")

    assert job.state == "partial"
    assert {name: job.documents[name] for name in ("total", "indexed", "failed")} == {
        "total": 5,
        "indexed": 3,
        "failed": 2,
    }
    assert sorted(error["uri"] for error in job.errors) == ["d1", "d2"]
    assert workshop.embedded() == ["zero", "three", "four"]


def test_a_deletion_that_was_cut_off_goes_on_under_its_key_and_counts_nothing_twice(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a deletion of five that broke off after two, which are deleted by now
    names = [f"d{number}" for number in range(5)]
    workshop.index({name: f"about {name}" for name in names})
    stage = staging.stage

    def stage_one_group(*arguments: Any, **named: Any) -> None:
        monkeypatch.setattr(staging, "stage", _cut_off)
        stage(*arguments, **named)

    monkeypatch.setattr(staging, "stage", stage_one_group)
    with pytest.raises(CutOff):
        workshop.client.delete(names, collection="notes", idempotency_key="k")
    monkeypatch.undo()
    workshop.work()
    assert sorted(workshop.texts()) == ["d2", "d3", "d4"]

    done = workshop.remove(names, idempotency_key="k")

    assert {name: done.documents[name] for name in ("total", "deleted", "unchanged")} == {
        "total": 5,
        "deleted": 5,
        "unchanged": 0,
    }
    assert (done.state, workshop.texts()) == ("succeeded", {})


def _cut_off(*_: Any, **__: Any) -> None:
    raise CutOff


def test_a_job_whose_enqueuer_went_silent_ends_partial_and_goes_on_under_its_key(workshop: Workshop) -> None:
    with pytest.raises(CutOff):
        workshop.put(_stream("zero", "one", cut=True), idempotency_key="k")
    workshop.work()
    workshop.sql("UPDATE jobs SET seen_at = now() - interval '1 hour'")

    counts = reconcile(workshop.services, Bounds(100, 20.0))

    assert (counts["silent_jobs"], counts["finished_jobs"]) == (1, 1)
    (silent,) = workshop.client.jobs(limit=1)
    assert (silent.state, silent.documents["indexed"]) == ("partial", 2)
    assert silent.error is not None
    assert "same key" in silent.error
    job = workshop.put(_stream("zero", "one", "two"), idempotency_key="k")
    workshop.work()
    done = workshop.client.job(job.job_id)
    assert (done.job_id, done.state, done.error) == (silent.job_id, "succeeded", None)
    assert (done.documents["total"], done.documents["indexed"]) == (3, 3)


def test_an_enqueuer_that_was_only_slow_finds_its_job_open_again(workshop: Workshop) -> None:
    def slow() -> Iterator[Document]:
        yield from _stream("zero", "one")
        workshop.work()
        workshop.sql("UPDATE jobs SET seen_at = now() - interval '1 hour'")
        assert reconcile(workshop.services, Bounds(100, 20.0))["silent_jobs"] == 1
        assert workshop.client.jobs(limit=1)[0].state == "partial"
        yield Document("d2", "two")

    job = workshop.put(slow())
    workshop.work()

    done = workshop.client.job(job.job_id)
    assert (done.state, done.error, done.documents["indexed"]) == ("succeeded", None, 3)


def test_nothing_is_added_to_a_job_that_is_cancelled_while_it_is_written(workshop: Workshop) -> None:
    def cancelled() -> Iterator[Document]:
        yield from _stream("zero", "one")
        workshop.client.cancel(workshop.client.jobs(limit=1)[0].job_id)
        yield from (Document("d2", "two"), Document("d3", "three"))

    with pytest.raises(InvalidRequest, match="was cancelled while it was written"):
        workshop.put(cancelled())
    workshop.work()

    (job,) = workshop.client.jobs(limit=1)
    assert (job.state, job.documents["total"], job.documents["cancelled"]) == ("cancelled", 2, 2)
    assert workshop.texts() == {}
    assert workshop.value("SELECT count(*) FROM versions WHERE state IN ('staged', 'open')") == 0
    assert workshop.value("SELECT count(*) FROM staged") == 0


def test_a_group_committed_while_its_job_is_being_cancelled_is_cancelled_too(workshop: Workshop) -> None:
    """The group is written, and not yet committed, when `cancel` looks for what there is to cancel."""
    job = workshop.put(_stream("zero"))
    workshop.sql("UPDATE jobs SET sealed_at = NULL")

    with workshop.services.ledger.transaction() as connection:
        found = jobs.get(connection, job.job_id)
        staging.stage(connection, found, [staging.Wanted("late", "ingest", b"late")], b"", staging.Limits(9, 999))
        canceller = threading.Thread(target=workshop.client.cancel, args=(job.job_id,))
        canceller.start()
        canceller.join(0.5)
        assert canceller.is_alive(), "it waits for the job's row"
    canceller.join(60)

    assert workshop.versions("late") == ["cancelled"]
    assert workshop.client.job(job.job_id).state == "cancelled"
    assert workshop.ready() == []


@contextmanager
def _psycopg(url: str) -> Iterator[psycopg.Connection[Any]]:
    connection = psycopg.connect(url)
    yield connection
    connection.close()


@contextmanager
def _engine_connection(url: str) -> Iterator[sqlalchemy.Connection]:
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextmanager
def _session(url: str) -> Iterator[Session]:
    with _engine_connection(url) as connection, Session(connection.engine) as session:
        yield session


OPENERS = pytest.mark.parametrize("opened", [_psycopg, _engine_connection, _session])


@OPENERS
def test_a_job_in_the_applications_transaction_exists_once_that_commits(
    workshop: Workshop, postgres_url: str, opened: Callable[[str], Any]
) -> None:
    with opened(postgres_url) as connection:
        job = workshop.put(_stream("zero", "one", "two"), connection=connection, metadata={"lang": "en"})
        with pytest.raises(UnknownJob):
            workshop.client.job(job.job_id)
        assert workshop.ready() == []
        connection.commit()

    assert (job.state, job.documents["total"]) == ("queued", 3)
    assert reconcile(workshop.services, Bounds(100, 20.0))["sent"] == 2
    workshop.work()
    assert workshop.client.job(job.job_id).state == "succeeded"
    assert len(workshop.texts(filters={"lang": "en"})) == 3


@OPENERS
def test_a_job_in_the_applications_transaction_is_gone_when_that_is_rolled_back(
    workshop: Workshop, postgres_url: str, opened: Callable[[str], Any]
) -> None:
    workshop.index({"d0": "before"})
    with opened(postgres_url) as connection:
        job = workshop.put(_stream("zero", "one", "two"), connection=connection, idempotency_key="k")
        workshop.client.delete(["d0"], collection="notes", connection=connection)
        connection.rollback()

    with pytest.raises(UnknownJob, match=str(job.job_id)):
        workshop.client.job(job.job_id)
    assert workshop.ready() == []
    assert workshop.texts() == {"d0": ["before"]}
    assert workshop.value("SELECT count(*) FROM versions") == 1
    assert workshop.put(_stream("zero", "one", "two"), idempotency_key="k").job_id != job.job_id


def test_the_applications_own_writes_and_its_row_factory_are_left_alone(workshop: Workshop, postgres_url: str) -> None:
    with _psycopg(postgres_url) as connection:
        connection.execute("CREATE TABLE orders (n int)")
        connection.execute("INSERT INTO orders VALUES (7)")
        workshop.put({"a": "words"}, connection=connection)
        assert connection.execute("SELECT n FROM orders").fetchall() == [(7,)]
        connection.commit()

    assert workshop.value("SELECT n FROM orders") == 7


def test_a_connection_that_cannot_carry_a_job_is_refused(
    workshop: Workshop, postgres_url: str, postgres_server: Any
) -> None:
    with pytest.raises(InvalidRequest, match="cannot carry a job"):
        workshop.put({"a": "words"}, connection=object())
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        with pytest.raises(InvalidRequest, match="in autocommit"):
            workshop.put({"a": "words"}, connection=connection)
        with connection.transaction():
            job = workshop.put({"a": "words"}, connection=connection)
    assert workshop.client.job(job.job_id).documents["total"] == 1
    with psycopg.connect(postgres_server.url) as connection, pytest.raises(InvalidRequest, match="has no ledger"):
        workshop.put({"a": "words"}, connection=connection)


def test_what_cannot_be_asked_for_is_refused_in_words(workshop: Workshop) -> None:
    with pytest.raises(InvalidRequest, match="priority 'urgent' is none of high, normal, low"):
        workshop.put({"a": "words"}, priority="urgent")
    with pytest.raises(InvalidRequest, match="provider 'elsewhere'"):
        workshop.put({"a": "words"}, provider="elsewhere")
    with pytest.raises(UnknownCollection, match="'nowhere'"):
        workshop.client.delete(["a"], collection="nowhere")
    with pytest.raises(InvalidRequest, match="by uri or by filter"):
        workshop.client.delete(collection="notes")
    with pytest.raises(UnknownJob, match="'seven' is not the id of a job"):
        workshop.client.job("seven")
    with pytest.raises(UnknownJob, match=str(UUID(int=7))):
        workshop.client.cancel(UUID(int=7))
    with pytest.raises(InvalidRequest, match="name of a collection"):
        workshop.put({"a": "words"}, collection="a/b")
    assert workshop.value("SELECT count(*) FROM jobs") == 0


class Table:
    """A source of an application's own, which knows nothing of what the ledger can hold."""

    scope = None
    complete = True
    unreadable = ()

    def __iter__(self) -> Iterator[Document]:
        yield Document("good", "words")
        yield Document("nul", "words", metadata={"lang": "e\0n"})
        yield Document("half\ud800", "words")
        yield Document("also good", "words")


def test_what_the_ledger_cannot_hold_is_rejected_whichever_source_it_comes_from(workshop: Workshop) -> None:
    job = workshop.index(Table())

    assert (job.state, job.documents["indexed"], job.documents["failed"]) == ("partial", 2, 2)
    told = {error["uri"]: error["error"] for error in job.errors}
    assert told.keys() == {"nul", "inline:2"}
    assert "NUL character" in told["nul"]
    assert workshop.texts() == {"also good": ["words"], "good": ["words"]}
