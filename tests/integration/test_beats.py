"""Beat: ticks that nobody takes do not pile up, and two beats do no more than one."""

from __future__ import annotations

from pathlib import Path

import redis
from celery import Celery
from workshop import Workshop, with_work

from pipeline import Settings
from pipeline.broker import celery_settings
from tasks.maintenance import DUTIES, reconcile, run_duty
from workers.clock import MOST_TICKS, BoundedScheduler
from workers.schedule import beat_schedule

WINDOW = 8


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
        reconcile(workshop.services, 500)

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
