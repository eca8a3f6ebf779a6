"""Beat: ticks that nobody takes do not pile up, and two beats do no more than one."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from services import enter
from workshop import Workshop, with_work

from pipeline import Settings
from pipeline.broker import celery_settings
from pipeline.duties import Bounds
from pipeline.ledger.engine import Ledger
from pipeline.settings import load_settings
from tasks.duties import DUTIES, run_duty
from tasks.maintenance import reconcile
from workers.clock import BoundedScheduler, LedgerWatch, Timing
from workers.embedded.part import Part, Running, run_alone
from workers.programs import beat_argv, program_environment
from workers.schedule import MOST_TICKS, beat_schedule

WINDOW = 8
PATIENCE_SECONDS = 60.0


def _beat(settings: Settings, directory: Path) -> BoundedScheduler:
    app = Celery("beat", set_as_current=False)
    app.conf.update(celery_settings(settings.redis))
    app.conf.update(beat_schedule=beat_schedule())
    return BoundedScheduler(app, schedule_filename=str(directory), lazy=False)


def _tick(beat: BoundedScheduler) -> None:
    for entry in beat.schedule.values():
        if entry.task.startswith("duty."):
            beat.apply_entry(entry, producer=beat.producer)


def test_while_no_worker_takes_ticks_there_are_so_many_and_no_more_however_many_beats(
    settings: Settings, queues: redis.Redis, tmp_path: Path
) -> None:
    beats = [_beat(settings, tmp_path / name) for name in ("one", "two")]

    for _ in range(2 * MOST_TICKS):
        for beat in beats:
            _tick(beat)

    assert queues.llen("millrace:control") == MOST_TICKS
    # And when somebody takes them, ticks come again
    queues.delete("millrace:control")
    _tick(beats[0])
    assert queues.llen("millrace:control") == len(DUTIES)
    for beat in beats:
        beat.close()


def test_while_no_worker_lives_the_work_queues_stay_at_their_window(settings: Settings, queues: redis.Redis) -> None:
    """An hour: everything is due to be sent again sixty times, and nothing is, since it is still there."""
    ingest = settings.ingest.model_copy(update={"prepare_documents": 1})
    workshop = Workshop(with_work(settings.model_copy(update={"ingest": ingest}), window=WINDOW))
    workshop.put({f"d{number}": f"about {number}" for number in range(3 * WINDOW)})
    assert queues.llen("millrace:normal") == WINDOW

    for _ in range(60):
        workshop.sql("UPDATE batches SET sent_at = sent_at - interval '61 seconds'")
        reconcile(workshop.services, Bounds(500, 20.0))

    assert queues.llen("millrace:normal") == WINDOW
    workshop.close()


def test_two_beats_and_two_workers_run_a_duty_once_an_interval(settings: Settings, queues: redis.Redis) -> None:
    workers = [Workshop(settings) for _ in range(2)]
    (duty,) = [duty for duty in DUTIES if duty.name == "reconcile"]

    ran = [run_duty(worker.services, duty) for _ in range(3) for worker in workers]

    assert sum(counts is not None for counts in ran) == 1
    workers[0].sql("UPDATE duties SET due_at = clock_timestamp()")
    ran = [run_duty(worker.services, duty) for _ in range(3) for worker in workers]
    assert sum(counts is not None for counts in ran) == 1
    for worker in workers:
        worker.close()


def _until(what: str, is_so: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:.0f} s: {what}"
        time.sleep(0.05)
    return found


def test_what_the_ledger_says_changes_entries_in_place(settings: Settings, queues: redis.Redis, tmp_path: Path) -> None:
    beat = _beat(settings, tmp_path / "schedule")
    timings = {duty.task: Timing(duty.interval_seconds, 5.0) for duty in DUTIES}
    beat.follow(timings)
    beat.tick()
    before = {name: entry.last_run_at for name, entry in beat.schedule.items()}

    # Nothing new: Celery's order is kept
    beat.follow({name: Timing(timing.interval_seconds, -900.0) for name, timing in timings.items()})
    assert {name: entry.last_run_at for name, entry in beat.schedule.items()} == before
    assert beat.schedules_equal(beat.old_schedulers, beat.schedule)

    # A longer and a shorter interval keep when the duty last ran
    changed = timings | {"duty.sync": Timing(600.0, 5.0), "duty.contract": Timing(0.5, 5.0)}
    beat.follow(changed)
    assert not beat.schedules_equal(beat.old_schedulers, beat.schedule)
    for name, seconds in (("duty.sync", 600.0), ("duty.contract", 0.5)):
        entry = beat.schedule[name]
        assert (entry.schedule.run_every.total_seconds(), entry.last_run_at) == (seconds, before[name])
        assert entry.options["expires"] == max(2.0, seconds)

    # What is disabled goes; what is enabled again last ran when the ledger says so
    beat.follow({name: timing for name, timing in timings.items() if name != "duty.contract"})
    assert "duty.contract" not in beat.schedule
    beat.follow(timings | {"duty.contract": Timing(60.0, -30.0)})
    assert beat.schedule["duty.contract"].is_due().is_due
    beat.close()


def test_what_was_due_while_no_beat_lived_is_sent_at_once_and_the_rest_when_it_is_due(
    settings: Settings, queues: redis.Redis, tmp_path: Path
) -> None:
    beat = _beat(settings, tmp_path / "schedule")
    beat.tick()
    due = {
        "duty.contract": Timing(60.0, -1.0),
        "duty.webhooks": Timing(5.0, 0.0),
        "duty.gc.data": Timing(3600.0, 200.0),
    }

    beat.follow({duty.task: Timing(duty.interval_seconds, 300.0) for duty in DUTIES} | due)
    queues.delete("millrace:control")
    while beat.tick() == 0:
        pass

    assert sorted(tick["task"] for tick in _take(queues)) == ["duty.contract", "duty.webhooks"]
    assert 100.0 < beat.schedule["duty.gc.data"].is_due().next < 200.1
    beat.close()


def test_while_postgres_is_away_beat_keeps_what_it_knew(
    settings: Settings, queues: redis.Redis, tmp_path: Path
) -> None:
    workshop = Workshop(settings)
    beat = _beat(settings, tmp_path / "schedule")
    beat.watch = watch = LedgerWatch(Ledger(settings.postgres), 0.05)
    watch.start()
    _until("the duties are read", lambda: watch.timings)
    workshop.client.change_duty("contract", every="2m")
    _until("the interval is read", lambda: watch.timings and watch.timings["duty.contract"].interval_seconds == 120)
    (known,) = workshop.client.beats()
    assert (known.pid, known.alive, known.memory["pid"]) == (os.getpid(), True, os.getpid())

    # When the ledger cannot be read any more
    workshop.sql("ALTER TABLE duties RENAME TO duties_away")
    looked = workshop.value("SELECT max(seen_at) FROM services")
    time.sleep(0.2)
    assert workshop.value("SELECT max(seen_at) FROM services") == looked, "it is away for beat"

    beat.tick()
    assert beat.schedule["duty.contract"].schedule.run_every.total_seconds() == 120
    assert len(beat.schedule) >= len(DUTIES)

    # And when it is back, even with nothing in it, beat follows it, and takes its row with it in the end
    workshop.sql("ALTER TABLE duties_away RENAME TO duties")
    workshop.sql("DELETE FROM duties")
    _until("the duties are written down again", lambda: len(workshop.client.duties()) == len(DUTIES))
    workshop.client.change_duty("contract", reset=True)
    _until("the interval is read", lambda: watch.timings and watch.timings["duty.contract"].interval_seconds == 60)
    beat.close()
    assert workshop.client.beats() == []
    workshop.close()


@pytest.fixture
def beats(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Running]]:
    """Two real ones, as `millrace beat` starts them."""
    enter(settings, monkeypatch)
    environment = program_environment(load_settings(home=settings.home))
    with ExitStack() as running:
        started = []
        for name in ("one", "two"):
            directory = tmp_path / name
            directory.mkdir()
            pid = directory / "beat.pid"
            part = Part("beat", tuple(beat_argv(directory)), directory, environment, ready=pid.exists)
            started.append(running.enter_context(run_alone(part, tmp_path / f"{name}.log")))
        yield started


def _take(queues: redis.Redis) -> list[dict[str, Any]]:
    """The ticks that were sent since the last call: task, expires."""
    messages = [json.loads(message) for message in queues.lrange("millrace:control", 0, -1)]
    queues.delete("millrace:control")
    for message in messages:
        assert json.loads(base64.b64decode(message["body"]))[0] == []
    return [message["headers"] for message in messages]


def test_real_beats_follow_what_is_set_without_a_restart_and_are_shown(
    settings: Settings, queues: redis.Redis, beats: list[Running]
) -> None:
    workshop = Workshop(settings)
    # Both are shown, with what they take
    _until("both have reported", lambda: len(workshop.client.beats()) == 2)
    assert {beat.pid for beat in workshop.client.beats()} == {beat.pid for beat in beats}
    assert all(beat.memory["rss"] > 2**20 for beat in workshop.client.beats())

    # An interval of a minute becomes one of a second: soon it is sent again and again
    _take(queues)
    workshop.client.change_duty("contract", every="1s")
    sent = 0

    def sent_thrice() -> bool:
        nonlocal sent
        sent += [tick["task"] for tick in _take(queues)].count("duty.contract")
        return sent >= 3

    _until("three ticks", sent_thrice)

    # Disabled, it is not sent any more: there comes a time in which others are sent again and again, and it is not
    workshop.client.change_duty("contract", enabled=False)

    def others_alone() -> bool:
        _until("some ticks", lambda: int(queues.llen("millrace:control")) >= 6)
        return "duty.contract" not in {tick["task"] for tick in _take(queues)}

    _until("only others are sent", others_alone)

    # One that is told to stop takes its row with it; one that is killed falls silent
    os.kill(beats[0].pid, signal.SIGTERM)
    _until("it is gone", lambda: [beat.pid for beat in workshop.client.beats()] == [beats[1].pid])
    beats[1].kill()
    workshop.sql("UPDATE services SET seen_at = clock_timestamp() - interval '16 seconds'")
    assert [beat.alive for beat in workshop.client.beats()] == [False]
    workshop.close()
