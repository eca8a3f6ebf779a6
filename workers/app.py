"""The Celery application: what `celery -A workers.app` runs."""

from __future__ import annotations

from celery import Celery

from pipeline.broker import celery_settings
from pipeline.errors import InvalidSettings
from pipeline.settings import Settings, load_settings
from workers import channel, deaths, lifecycle, recycling
from workers.logs import Logging
from workers.queues import WeightedTurns
from workers.schedule import beat_schedule


def make_app(settings: Settings) -> Celery:
    """The application over the Redis of the settings. Raises InvalidSettings where there is none."""
    if not settings.redis.url.get_secret_value():
        raise InvalidSettings("MILLRACE_REDIS__URL is not set, and no stack runs; `millrace up` starts one")
    modules = ("prepare", "embed", "sync", "openai_batch", "duties")
    app = Celery("millrace", include=[f"tasks.{name}" for name in modules])
    app.conf.update(celery_settings(settings.redis))
    app.conf.broker_transport_options = {
        **app.conf.broker_transport_options,
        # By name: Flower asks workers for their configuration, as JSON.
        "queue_order_strategy": f"{WeightedTurns.__module__}:{WeightedTurns.__qualname__}",
        # A worker waits for messages on a blocked connection: its patience is longer than a sender's.
        "socket_timeout": 10,
    }
    # No time limits: what takes long and gets on is left alone, and what does not is interrupted by the vigil.
    app.conf.update(
        task_acks_late=True,
        task_acks_on_failure_or_timeout=True,
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_proc_alive_timeout=120,
        worker_max_tasks_per_child=settings.worker.max_tasks_per_child,
        worker_max_memory_per_child=settings.memory.hard_mb * 1024,  # KiB; see recycling.py
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_limit=10,
        beat_schedule=beat_schedule(),
        beat_scheduler="workers.clock:BoundedScheduler",
        beat_max_loop_interval=3,
    )
    return app


channel.install()
recycling.install()
_settings = load_settings()
app = make_app(_settings)
Logging(_settings.logs).connect()
lifecycle.connect()
deaths.connect()
