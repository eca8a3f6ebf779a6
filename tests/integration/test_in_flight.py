"""Versions of one document that meet: who waits, who gives way, and that nothing of the loser stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from workshop import Workshop, chunked, paragraph, paragraphs

from pipeline import Settings


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    """One chunk a batch: a version can be half embedded."""
    single = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"embed_chunks": 1})})
    made = Workshop(chunked(single))
    yield made
    made.close()


def _nothing_is_left_over(workshop: Workshop) -> bool:
    """Whether, once contracted, the index holds what is published and nothing else."""
    workshop.contract()
    report = workshop.client.audit("notes")
    return (
        report.clean
        and report.leaving == report.arriving == 0
        and workshop.value("SELECT count(*) FROM staged") == 0
        and workshop.value("SELECT count(*) FROM chunks") == report.expected
        and workshop.value("SELECT count(*) FROM batches WHERE ended_at IS NULL") == 0
        and workshop.value("SELECT count(*) FROM jobs WHERE finished_at IS NULL") == 0
    )


def test_the_old_content_again_while_the_new_one_is_under_way_waits_and_wins(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs("one", "two")})
    second = workshop.put({"a": paragraphs("one", "new")})
    workshop.prepare()
    third = workshop.put({"a": paragraphs("one", "two")})
    workshop.prepare()

    assert workshop.versions("a") == ["published", "open", "staged"]
    workshop.work()

    assert workshop.versions("a") == ["published", "published", "published"]
    assert workshop.texts() == {"a": [paragraph("one"), paragraph("two")]}
    assert sorted(workshop.embedded()) == sorted(paragraph(name) for name in ("one", "two", "new"))
    assert [workshop.client.job(job.job_id).state for job in (second, third)] == ["succeeded", "succeeded"]
    assert _nothing_is_left_over(workshop)


def test_the_old_content_again_before_the_new_one_is_begun_changes_nothing(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs("one")})
    second = workshop.put({"a": paragraphs("new")})
    third = workshop.index({"a": paragraphs("one")})

    assert workshop.versions("a") == ["published", "superseded", "unchanged"]
    assert workshop.embedded() == [paragraph("one")]
    assert workshop.client.job(second.job_id).documents["superseded"] == 1
    assert workshop.client.job(second.job_id).state == "succeeded"
    assert (third.documents["unchanged"], third.state) == (1, "succeeded")
    assert _nothing_is_left_over(workshop)


def test_of_three_that_come_while_one_is_under_way_only_the_newest_is_done(workshop: Workshop) -> None:
    workshop.put({"a": paragraphs("one")})
    workshop.prepare()
    for name in ("two", "three", "four"):
        workshop.put({"a": paragraphs(name)})
    workshop.work()

    assert workshop.versions("a") == ["published", "superseded", "superseded", "published"]
    assert workshop.embedded() == [paragraph("one"), paragraph("four")]
    assert workshop.texts() == {"a": [paragraph("four")]}
    assert _nothing_is_left_over(workshop)


def test_a_delete_waits_for_the_update_that_is_under_way(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs("one")})
    workshop.put({"a": paragraphs("one", "two")})
    workshop.prepare()
    job = workshop.client.delete(["a"], collection="notes")
    workshop.prepare()
    assert workshop.texts() == {"a": [paragraph("one")]}

    workshop.work()

    assert workshop.texts() == {}
    assert workshop.client.job(job.job_id).documents["deleted"] == 1
    assert workshop.versions("a") == ["published"] * 3
    assert _nothing_is_left_over(workshop)
    assert workshop.value("SELECT count(*) FROM chunks") == 0


def test_a_second_delete_does_not_count_on_the_first_which_may_be_cancelled(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs("one"), "b": paragraphs("two")})
    first = workshop.client.delete(["a", "b"], collection="notes")
    second = workshop.client.delete(["a"], collection="notes")
    assert workshop.client.job(second.job_id).state != "succeeded", "the document is there still"
    workshop.client.cancel(first.job_id)

    workshop.work()

    assert workshop.texts() == {"b": [paragraph("two")]}
    assert workshop.client.job(second.job_id).documents["deleted"] == 1
    assert _nothing_is_left_over(workshop)


def test_a_delete_that_takes_the_place_of_an_update_after_a_delete_finds_nothing_to_do(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs("one")})
    workshop.remove(["a"])
    update = workshop.put({"a": paragraphs("two")})

    again = workshop.remove(["a"])

    assert workshop.client.job(update.job_id).documents["superseded"] == 1
    assert (again.state, again.documents["unchanged"], again.documents["deleted"]) == ("succeeded", 1, 0)
    assert workshop.texts() == {}
    assert _nothing_is_left_over(workshop)


def test_an_update_after_a_delete_that_is_not_begun_takes_its_place(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs("one")})
    deletion = workshop.client.delete(["a"], collection="notes")

    workshop.index({"a": paragraphs("one", "two")})

    assert workshop.texts() == {"a": [paragraph("one"), paragraph("two")]}
    assert workshop.client.job(deletion.job_id).documents["superseded"] == 1
    assert _nothing_is_left_over(workshop)


def test_a_document_comes_back_after_its_deletion_and_is_not_embedded_again(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs("one", "two")})
    assert workshop.remove(["a"]).documents["deleted"] == 1
    workshop.contract()

    job = workshop.index({"a": paragraphs("one", "two")})

    assert job.chunks == {"total": 2, "embedded": 0, "reused": 2, "indexed": 2}
    assert workshop.texts() == {"a": [paragraph("one"), paragraph("two")]}
    assert len(workshop.embedded()) == 2
    assert _nothing_is_left_over(workshop)


def test_a_higher_priority_takes_the_place_of_a_lower_one_that_is_half_done(workshop: Workshop) -> None:
    # Given an update with low priority of which one of two new chunks is in the index
    workshop.index({"a": paragraphs("one", "two")})
    low = workshop.put({"a": paragraphs("one", "low", "half")}, priority="low")
    workshop.prepare()
    workshop.perform(workshop.ready("embed")[0].id, alone=True)
    assert workshop.audit() == {"expected": 2, "present": 2, "arriving": 1}

    # When another comes with high priority
    high = workshop.put({"a": paragraphs("one", "high")}, priority="high")
    workshop.prepare()
    assert workshop.versions("a") == ["published", "superseded", "open"]
    assert workshop.texts() == {"a": [paragraph("one"), paragraph("two")]}
    workshop.work()

    # Then it alone is published, and nothing of the other stays
    assert workshop.texts() == {"a": [paragraph("high"), paragraph("one")]}
    assert workshop.client.job(low.job_id).documents["superseded"] == 1
    assert workshop.client.job(low.job_id).state == "succeeded"
    assert workshop.client.job(high.job_id).chunks == {"total": 2, "embedded": 1, "reused": 1, "indexed": 2}
    assert _nothing_is_left_over(workshop)


def test_a_version_of_a_paused_job_gives_way(workshop: Workshop) -> None:
    paused = workshop.put({"a": paragraphs("paused")}, priority="high")
    workshop.prepare()
    workshop.sql("UPDATE jobs SET state = 'paused' WHERE id = %(id)s", id=paused.job_id)

    workshop.put({"a": paragraphs("other")}, priority="low")
    workshop.prepare()
    assert workshop.versions("a") == ["superseded", "open"]
    (batch,) = workshop.sql("SELECT min(id) AS id FROM batches WHERE kind = 'embed' AND priority = 2")
    workshop.perform(batch["id"])

    assert workshop.texts() == {"a": [paragraph("other")]}
    assert workshop.client.job(paused.job_id).state == "succeeded"


def test_a_lower_priority_waits_for_a_higher_one_that_is_under_way(workshop: Workshop) -> None:
    workshop.put({"a": paragraphs("high")}, priority="high")
    workshop.prepare()
    workshop.put({"a": paragraphs("low")}, priority="low")
    workshop.prepare()

    assert workshop.versions("a") == ["open", "staged"]
    workshop.work()
    assert workshop.versions("a") == ["published", "published"]
    assert workshop.texts() == {"a": [paragraph("low")]}


def test_cancelling_stops_what_is_half_done_and_leaves_what_was_there(workshop: Workshop) -> None:
    # Given an update and a new document, half in the index
    workshop.index({"a": paragraphs("one", "two")})
    job = workshop.put({"a": paragraphs("one", "new", "newer"), "b": paragraphs("other")})
    workshop.prepare()
    workshop.perform(workshop.ready("embed")[0].id, alone=True)

    cancelled = workshop.client.cancel(job.job_id)
    workshop.work()

    assert (cancelled.state, cancelled.documents["cancelled"], cancelled.documents["indexed"]) == ("cancelled", 2, 0)
    assert workshop.texts() == {"a": [paragraph("one"), paragraph("two")]}
    assert _nothing_is_left_over(workshop)
    again = workshop.index({"a": paragraphs("one", "new", "newer"), "b": paragraphs("other")})
    assert again.state == "succeeded"
    assert workshop.texts()["b"] == [paragraph("other")]
    assert len(workshop.embedded()) == len(set(workshop.embedded())) == 5


def test_what_is_published_stays_when_its_job_is_cancelled_and_a_finished_job_stays_as_it_is(
    workshop: Workshop,
) -> None:
    job = workshop.put({"a": paragraphs("one"), "b": paragraphs("two")})
    workshop.prepare()
    workshop.perform(workshop.ready("embed")[0].id)  # takes the other batch along
    assert workshop.client.job(job.job_id).state == "succeeded"

    assert workshop.client.cancel(job.job_id).state == "succeeded"
    assert workshop.texts() == {"a": [paragraph("one")], "b": [paragraph("two")]}


def test_work_that_is_running_when_its_job_is_cancelled_changes_nothing_any_more(workshop: Workshop) -> None:
    job = workshop.put({"a": paragraphs("one")})
    workshop.prepare()
    (batch,) = workshop.ready("embed")
    upsert = workshop.services.vectors.upsert

    def cancel_first(*arguments: object, **named: object) -> None:
        workshop.client.cancel(job.job_id)
        upsert(*arguments, **named)  # type: ignore[arg-type]

    workshop.services.vectors.upsert = cancel_first  # type: ignore[method-assign]
    workshop.perform(batch.id)

    assert workshop.versions("a") == ["cancelled"]
    assert workshop.texts() == {}
    assert workshop.audit() == {"leaving": 1}
    assert _nothing_is_left_over(workshop)


def test_waiting_versions_of_a_cancelled_job_go_and_those_behind_it_come(workshop: Workshop) -> None:
    first = workshop.put({"a": paragraphs("one")})
    workshop.prepare()
    second = workshop.put({"a": paragraphs("two")})
    workshop.prepare()

    workshop.client.cancel(first.job_id)
    workshop.work()

    assert workshop.versions("a") == ["cancelled", "published"]
    assert workshop.client.job(second.job_id).state == "succeeded"
    assert workshop.embedded() == [paragraph("two")]
    assert _nothing_is_left_over(workshop)
