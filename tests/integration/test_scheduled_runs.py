"""Runs of schedules: who has one, and what becomes of one that fails or is cut off."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import eventually
from services import RedisServer
from timetable import (
    Killed,
    at_step,
    claim_run,
    die_after,
    names,
    plant,
    put_schedule,
    run_due,
    shown,
    step_by_step,
    sync_duty,
)
from workshop import COLLECTION, Workshop, with_work

from pipeline import Settings
from pipeline.broker import SYNC_TASK
from pipeline.errors import SourceRefused
from pipeline.ledger import schedules
from tasks import leaving, sync
from tasks.base import Done, Failed, Skipped, Waiting


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = step_by_step(settings)
    yield made
    made.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return plant(tmp_path)


def test_what_is_due_is_sent_once_however_many_beats_tick(workshop: Workshop, tree: Path) -> None:
    put_schedule(workshop, tree)
    assert workshop.services.broker.depths()["normal"] == 1

    assert sync_duty(workshop) == {"expired": 0, "lost_messages": 0, "sent": 0}
    assert sync_duty(workshop)["sent"] == 0
    assert workshop.services.broker.carried((SYNC_TASK,)) == {shown(workshop).id}
    # A schedule's id is not taken for that of a batch.
    assert workshop.services.broker.carried() == set()


def test_of_two_workers_one_runs_a_schedule(workshop: Workshop, tree: Path) -> None:
    put_schedule(workshop, tree)

    assert claim_run(workshop) is not None
    assert claim_run(workshop) is None
    assert shown(workshop).state == "running"


def test_a_message_that_a_flush_lost_is_sent_again(workshop: Workshop, tree: Path, redis_server: RedisServer) -> None:
    put_schedule(workshop, tree)
    redis_server.flush()
    assert sync_duty(workshop) == {"expired": 0, "lost_messages": 0, "sent": 0}  # it may be on its way

    workshop.sql("UPDATE schedules SET sent_at = sent_at - interval '6 seconds'")
    assert sync_duty(workshop) == {"expired": 0, "lost_messages": 1, "sent": 1}
    # One that waits in a queue is not lost, however long it waits.
    workshop.sql("UPDATE schedules SET sent_at = sent_at - interval '1 hour'")
    assert sync_duty(workshop) == {"expired": 0, "lost_messages": 0, "sent": 0}


def test_a_run_that_was_killed_is_finished_by_another_worker_in_the_same_job(
    workshop: Workshop, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a collection that is like a tree, of which something is gone and to which something came
    put_schedule(workshop, tree)
    run_due(workshop)
    (tree / "a.txt").unlink()
    for name in "efgh":
        (tree / f"{name}.txt").write_text(f"about {name}")
    workshop.client.change_schedule(tree, "run")

    # When a worker is killed in the middle of the run
    with monkeypatch.context() as patched:
        die_after(patched, 5, Killed)
        with pytest.raises(Killed):
            sync.perform(workshop.services, shown(workshop).id)
    killed = shown(workshop)
    assert killed.state == "running"

    # Then nobody else has it until its lease has run out, and then another worker goes on with the same job
    assert run_due(workshop) == Skipped("not due, held by another, or removed")
    assert sync_duty(workshop)["expired"] == 0
    workshop.sql("UPDATE schedules SET lease_until = clock_timestamp()")
    assert sync_duty(workshop) == {"expired": 1, "lost_messages": 0, "sent": 1}
    assert run_due(workshop) == Done(1)

    ended = shown(workshop)
    assert ended.last_job == killed.last_job
    assert names(workshop) == ["b.txt", "c.txt", "d.txt", "e.txt", "f.txt", "g.txt", "h.txt"]
    assert ended.last_job is not None
    job = workshop.client.job(ended.last_job)
    assert (job.state, {name: n for name, n in job.documents.items() if n}) == (
        "succeeded",
        {"total": 8, "indexed": 4, "unchanged": 3, "deleted": 1},
    )
    assert (ended.last_error, ended.consecutive_failures) == (None, 0)


def test_what_a_killed_run_had_brought_does_not_make_up_for_what_would_go(
    workshop: Workshop, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a tree of which everything was exchanged
    put_schedule(workshop, tree)
    run_due(workshop)
    for name in "abcd":
        (tree / f"{name}.txt").unlink()
        (tree / f"{name}-new.txt").write_text(f"about the new {name}")
        (tree / f"{name}-newer.txt").write_text(f"about the newer {name}")
    workshop.client.change_schedule(tree, "run")

    # When the run is killed after it brought what is new, and another worker goes on
    with monkeypatch.context() as patched:
        die_after(patched, 8, Killed)
        with pytest.raises(Killed):
            sync.perform(workshop.services, shown(workshop).id)
    workshop.work()
    workshop.sql("UPDATE schedules SET lease_until = clock_timestamp()")
    sync_duty(workshop)

    # Then it refuses to delete all that was there, as the first one would have
    outcome = run_due(workshop)
    assert isinstance(outcome, Failed)
    assert "4 of the 4 documents" in outcome.error
    assert len(names(workshop)) == 12


def test_a_worker_that_leaves_hands_its_run_back_at_once(
    workshop: Workshop, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_schedule(workshop, tree)

    with monkeypatch.context() as patched:
        patched.setattr(sync, "leaving", lambda: True)
        assert isinstance(sync.perform(workshop.services, shown(workshop).id), Waiting)
    assert shown(workshop).state != "running"
    assert not leaving.leaving()

    assert run_due(workshop) == Done(1)
    assert len(names(workshop)) == 4
    assert len(workshop.client.jobs()) == 1


def test_a_run_whose_workers_are_lost_again_and_again_waits_for_the_next_time(
    workshop: Workshop, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_schedule(workshop, tree)
    with monkeypatch.context() as patched:
        die_after(patched, 2, Killed)
        with pytest.raises(Killed):
            sync.perform(workshop.services, shown(workshop).id)
    workshop.sql("UPDATE schedules SET lease_until = clock_timestamp()")
    assert sync_duty(workshop)["expired"] == 1

    for _ in range(schedules.MAX_LOSSES - 1):
        assert claim_run(workshop, lease_seconds=-1.0) is not None
        assert sync_duty(workshop)["expired"] == 1

    lost = shown(workshop)
    assert (lost.state, lost.consecutive_failures) == ("failing", 1)
    assert lost.last_error is not None
    assert "worker was lost" in lost.last_error
    workshop.work()
    assert shown(workshop).job_state == "partial"
    assert claim_run(workshop) is None
    assert any("schedule" in issue["message"] for issue in workshop.client.status()["health"]["issues"])


def test_a_run_that_hangs_lets_its_lease_go_and_says_so(workshop: Workshop, tree: Path) -> None:
    # Given clocks under which a run hangs soon
    settings = with_work(workshop.settings, stall_seconds=0.1, heartbeat_seconds=0.05, lease_seconds=0.2)
    put_schedule(workshop, tree)
    stalled = Workshop(settings)
    told: list[float] = []

    # When its source takes longer over one file than that
    def hang(*_: Any, **__: Any) -> Any:
        eventually(lambda: told)
        raise Killed

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(sync, "open_to_sync", hang)
    with monkeypatch.context(), pytest.raises(Killed):
        sync.perform(stalled.services, shown(workshop).id, lambda: told.append(time.monotonic()))
    monkeypatch.undo()
    stalled.close()

    # Then whoever is to end the process was called, and another worker has the run
    assert len(told) == 1
    time.sleep(0.2)
    assert sync_duty(workshop)["expired"] == 1
    assert run_due(workshop) == Done(1)


def test_a_source_that_fails_is_shown_and_tried_again(workshop: Workshop, tree: Path) -> None:
    put_schedule(workshop, tree)
    run_due(workshop)
    tree.rename(tree.with_name("away"))
    for times in (1, 2):
        workshop.client.change_schedule(tree, "run")
        outcome = run_due(workshop)
        assert isinstance(outcome, Failed)
        assert f"{tree} does not exist" in outcome.error
        failing = shown(workshop)
        assert (failing.state, failing.consecutive_failures, failing.last_error) == ("failing", times, outcome.error)
    assert len(names(workshop)) == 4
    (issue,) = [one for one in workshop.client.status()["health"]["issues"] if str(tree) in one["message"]]
    assert "failed 2 times in a row" in issue["message"]

    tree.with_name("away").rename(tree)
    workshop.client.change_schedule(tree, "run")
    assert run_due(workshop) == Done(1)
    assert (shown(workshop).state, shown(workshop).consecutive_failures) == ("waiting", 0)


def test_a_source_that_breaks_off_ends_its_job_with_what_it_had(
    workshop: Workshop, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_schedule(workshop, tree)
    with monkeypatch.context() as patched:
        die_after(patched, 2, lambda: OSError("the disk is gone"))
        outcome = run_due(workshop)

    assert outcome == Failed("OSError: the disk is gone")
    ended = shown(workshop)
    assert ended.job_state == "partial"
    assert ended.last_job is not None
    assert workshop.client.job(ended.last_job).error == "OSError: the disk is gone"
    assert names(workshop) == ["a.txt", "b.txt"]


def test_more_than_half_is_deleted_only_with_force(workshop: Workshop, tree: Path) -> None:
    put_schedule(workshop, tree)
    run_due(workshop)
    for name in "abc":
        (tree / f"{name}.txt").unlink()
    workshop.client.change_schedule(tree, "run")
    outcome = run_due(workshop)
    assert isinstance(outcome, Failed)
    assert "more than half" in outcome.error
    assert len(names(workshop)) == 4

    put_schedule(workshop, tree, force=True)
    assert run_due(workshop) == Done(1)
    assert names(workshop) == ["d.txt"]


def test_a_schedule_that_is_removed_in_the_middle_of_a_run_deletes_nothing(
    workshop: Workshop, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = with_work(workshop.settings, heartbeat_seconds=0.02)
    put_schedule(workshop, tree)
    run_due(workshop)
    (tree / "a.txt").unlink()
    workshop.client.change_schedule(tree, "run")
    busy = Workshop(settings, workshop.embedder)

    def remove() -> None:
        workshop.client.unschedule(tree)
        # Until its heartbeat has found that out, and has ended
        eventually(lambda: "heartbeat" not in {thread.name for thread in threading.enumerate()})

    with monkeypatch.context() as patched:
        at_step(patched, 4, remove)
        outcome = sync.perform(busy.services, shown(workshop).id)
    busy.close()

    assert isinstance(outcome, Skipped)
    assert len(names(workshop)) == 4
    newest = workshop.client.jobs()[0]
    assert (newest.state, newest.error) == ("partial", "its schedule was removed while its source was listed")


def test_listing_leaves_slots_for_the_work_that_comes_of_it(workshop: Workshop, tmp_path: Path) -> None:
    workshop.sql(
        """INSERT INTO workers (id, host, pid, queues, slots) VALUES ('a', 'here', 1, 'high,low,normal', 4),
             ('express', 'here', 2, 'control,high', 9)"""
    )
    for name in "abcd":
        (tmp_path / name).mkdir()
        put_schedule(workshop, tmp_path / name)

    assert workshop.value("SELECT count(*) FROM schedules WHERE sent_at IS NOT NULL") == 2
    assert sync_duty(workshop)["sent"] == 0
    first = workshop.client.schedules()[0]
    assert sync.perform(workshop.services, first.id) == Done(1)
    # Its slot went to the next one.
    assert workshop.value("SELECT count(*) FROM schedules WHERE sent_at IS NOT NULL") == 2


def test_the_worker_minds_its_own_roots(workshop: Workshop, tree: Path, tmp_path: Path) -> None:
    put_schedule(workshop, tree)
    sources = workshop.settings.sources.model_copy(update={"roots": (tmp_path / "elsewhere",)})
    strict = Workshop(workshop.settings.model_copy(update={"sources": sources}), workshop.embedder)

    outcome = sync.perform(strict.services, shown(workshop).id)
    with pytest.raises(SourceRefused):
        strict.client.schedule(tree, every="1h", collection=COLLECTION)
    strict.close()

    assert isinstance(outcome, Failed)
    assert "outside the allowed roots" in outcome.error
