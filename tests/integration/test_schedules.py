"""Schedules: what they take, when they run, and how they are changed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from timetable import names, plant, put_schedule, run_due, shown, step_by_step
from workshop import Workshop

from pipeline import Settings
from pipeline.duties import Bounds
from pipeline.errors import InvalidRequest
from pipeline.intervals import seconds_between
from pipeline.scheduling import source_text
from tasks.base import Done, Skipped
from tasks.garbage import collect


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = step_by_step(settings)
    yield made
    made.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return plant(tmp_path)


def test_a_schedule_runs_at_once_and_again_when_its_time_has_come(workshop: Workshop, tree: Path) -> None:
    # Given a schedule that ran
    made = put_schedule(workshop, tree)
    assert (made.every_seconds, made.state, made.source) == (3600.0, "due", str(tree))
    assert run_due(workshop) == Done(1)
    assert names(workshop) == ["a.txt", "b.txt", "c.txt", "d.txt"]

    # Then it is not due for an hour
    assert run_due(workshop) == Skipped("not due, held by another, or removed")
    ran = shown(workshop)
    assert ran.last_finished is not None
    assert 3500 < (ran.next_due - ran.last_finished).total_seconds() < 3601
    assert (ran.job_state, ran.last_error, ran.consecutive_failures) == ("succeeded", None, 0)

    # When the tree changes and the hour is over
    (tree / "a.txt").unlink()
    (tree / "e.txt").write_text("about e")
    workshop.sql("UPDATE schedules SET next_due = now() - interval '5 hours'")
    assert run_due(workshop) == Done(1)

    # Then the collection is like it, in a job of its own, and the hours that were missed are not made up for
    assert names(workshop) == ["b.txt", "c.txt", "d.txt", "e.txt"]
    again = shown(workshop)
    assert again.last_job != ran.last_job
    assert run_due(workshop) == Done(1)
    assert run_due(workshop) == Skipped("not due, held by another, or removed")


def test_a_run_goes_to_the_queue_of_its_priority_but_never_to_the_worker_that_rescues(
    workshop: Workshop, tree: Path
) -> None:
    for priority in ("high", "low"):
        source = tree.parent / priority
        source.mkdir()
        put_schedule(workshop, source, priority=priority)
        workshop.sql("UPDATE schedules SET sent_at = NULL, owner = NULL, next_due = now() + interval '1 day'")

    depths = workshop.services.broker.depths()
    assert (depths["high"], depths["normal"], depths["low"]) == (0, 1, 1)


def test_options_are_kept_and_the_same_source_again_changes_them(workshop: Workshop, tree: Path) -> None:
    first = put_schedule(
        workshop, tree, metadata={"shelf": 1}, tenant="ann", include=["*.txt"], exclude=["/b*"], priority="low"
    )
    run_due(workshop)
    assert sorted(workshop.texts(tenant="ann", filters={"shelf": 1})) == [f"file://{tree}/{name}.txt" for name in "acd"]
    (job,) = workshop.client.jobs()
    assert (job.tenant, job.priority) == ("ann", "low")

    second = put_schedule(workshop, tree, timedelta(minutes=15), tenant="ann")
    assert second.id == first.id
    assert (second.every_seconds, second.options.metadata, second.options.include) == (900.0, None, ())
    run_due(workshop)
    assert len(workshop.texts(tenant="ann")) == 4

    # Another collection or tenant is another schedule.
    assert put_schedule(workshop, tree).id != first.id
    assert put_schedule(workshop, tree, collection="other").id != first.id
    assert len(workshop.client.schedules()) == 3
    with pytest.raises(InvalidRequest, match="name one by its id"):
        workshop.client.unschedule(tree)
    assert workshop.client.unschedule(tree, collection="other").collection == "other"


def test_a_paused_schedule_runs_when_it_is_asked_to_and_only_then(workshop: Workshop, tree: Path) -> None:
    schedule = put_schedule(workshop, tree)
    assert workshop.client.change_schedule(schedule.id, "pause").state == "paused"
    assert isinstance(run_due(workshop), Skipped)

    workshop.client.change_schedule(schedule.id, "run")
    assert run_due(workshop) == Done(1)
    workshop.sql("UPDATE schedules SET next_due = now()")
    assert isinstance(run_due(workshop), Skipped)

    workshop.client.change_schedule(str(schedule.id), "resume")
    assert run_due(workshop) == Done(1)


def test_jobs_that_changed_nothing_are_dropped_after_a_day(workshop: Workshop, tree: Path) -> None:
    put_schedule(workshop, tree)
    run_due(workshop)
    for _ in range(3):
        workshop.client.change_schedule(tree, "run")
        run_due(workshop)
    assert len(workshop.client.jobs()) == 4
    assert collect(workshop.services, Bounds(100, 20.0))["jobs"] == 0

    workshop.sql("UPDATE jobs SET finished_at = finished_at - interval '25 hours'")
    # The one that indexed something stays, and so does the newest.
    assert collect(workshop.services, Bounds(100, 20.0))["jobs"] == 2
    assert workshop.client.jobs()[0].job_id == shown(workshop).last_job
    assert [job.documents["indexed"] for job in workshop.client.jobs()] == [0, 4]


@pytest.mark.parametrize(
    ("every", "seconds"), [("30s", 30), ("15m", 900), ("1h", 3600), ("1d", 86_400), (" 1.5 h", 5400), (10, 10)]
)
def test_intervals_are_written_as_people_do(every: str | float, seconds: float) -> None:
    assert seconds_between(every) == seconds


@pytest.mark.parametrize("every", ["", "1", "h", "9s", "-1h", "1 fortnight", "367d", 0.5, float("nan"), float("inf")])
def test_an_interval_that_is_none_is_refused(every: str | float) -> None:
    with pytest.raises(InvalidRequest):
        seconds_between(every)


def test_a_schedule_holds_an_absolute_path_and_no_secret(
    workshop: Workshop, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree.parent)
    assert put_schedule(workshop, "tree").source == str(tree)
    assert put_schedule(workshop, f"file://{tree}").source == str(tree)
    assert len(workshop.client.schedules()) == 1
    assert source_text("s3://bucket/prefix") == "s3://bucket/prefix"
    assert source_text("s3://bucket/prefix?region=eu-west-1") == "s3://bucket/prefix?region=eu-west-1"

    for url in (
        "s3://key:secret@bucket/prefix",
        "postgres://reader@db/shop",
        "s3://bucket/prefix?X-Amz-Signature=abc",
        "notes://shelf?a=1&api_key=abc",
    ):
        with pytest.raises(InvalidRequest, match="no credentials"):
            put_schedule(workshop, url)


def test_what_cannot_be_synchronised_is_refused_at_once(workshop: Workshop, tree: Path) -> None:
    for source, message in ((tree / "missing", "does not exist"), (tree / "a.txt", "cannot be synchronised")):
        with pytest.raises(InvalidRequest, match=message):
            put_schedule(workshop, source)
    with pytest.raises(InvalidRequest, match="priority 'urgent'"):
        put_schedule(workshop, tree, priority="urgent")
    with pytest.raises(InvalidRequest, match="provider 'none'"):
        put_schedule(workshop, tree, provider="none")
    with pytest.raises(InvalidRequest, match="a collection"):
        put_schedule(workshop, tree, collection="a/b")
    with pytest.raises(InvalidRequest, match="there is no schedule 17"):
        workshop.client.unschedule(17)
    assert workshop.client.schedules() == []
