"""The broker: queue names, routes, and sending ids. The only Celery import in the pipeline.

A message carries the id of a row and nothing else; losing one costs seconds, never a document.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

import redis
from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError as KombuError

from pipeline.circuits import Admission, Circuit
from pipeline.errors import BrokerUnavailable
from pipeline.observe import count, logger, operation
from pipeline.settings import RedisSettings, mask_url

WORK_QUEUES = ("high", "normal", "low")
CONTROL_QUEUE = "control"

# kind of batch -> name of the task that does it: explicit and stable, messages outlive deployments.
TASKS: Mapping[str, str] = {"prepare": "prepare.batch", "embed": "embed.batch", "delete": "delete.batch"}
# A run of a schedule; its message carries the schedule's id.
SYNC_TASK = "sync.run"
# What there is to do for a remote batch of the Batch API; its message carries the id of its row.
REMOTE_TASK = "openai.batch"

# After a failed send, no further one is tried for so long: `reconcile` sends what stayed behind.
_RESTS = (1.0, 2.0, 4.0)
# Whether it is back is asked with little patience: an enqueuer waits for it between two groups of documents.
_PROBE_SECONDS = 1.0

# Between the moment in which a worker takes a message and its claim in the ledger pass milliseconds.
_TAKING_SECONDS = 5.0

_log = logger("broker")


def celery_settings(settings: RedisSettings) -> dict[str, Any]:
    """The Celery configuration that producers and workers share."""
    return {
        "broker_url": settings.url.get_secret_value(),
        "task_serializer": "json",
        "event_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_backend": None,
        "task_ignore_result": True,
        "task_default_queue": "normal",
        "task_create_missing_queues": False,
        "task_queues": [
            Queue(name, routing_key=name)  # type: ignore[no-untyped-call]
            for name in (*WORK_QUEUES, CONTROL_QUEUE)
        ],
        "task_publish_retry": False,
        "task_send_sent_event": False,
        "broker_connection_timeout": settings.timeout,
        "broker_pool_limit": 2,
        "broker_pool_acquire_timeout": settings.timeout,
        "broker_transport_options": {
            "visibility_timeout": 900,
            "unacked_restore_interval": 30,
            "unacked_restore_throttle": 1,
            "unacked_restore_limit": 1000,
            "priority_steps": [0],
            "socket_timeout": settings.timeout,
            "socket_connect_timeout": min(3.0, settings.timeout),
            "socket_keepalive": True,
            "health_check_interval": 15,
            "global_keyprefix": settings.prefix,
        },
        "timezone": "UTC",
        "enable_utc": True,
    }


def _row_id(message: Mapping[str, Any], tasks: Collection[str]) -> int | None:
    """The id that a message of these tasks carries, as kombu lays it into Redis; None for another one."""
    try:
        if message["headers"]["task"] not in tasks:
            return None
        (arguments, _, _) = json.loads(base64.b64decode(message["body"]))
    except (KeyError, TypeError, ValueError):
        return None
    return arguments[0] if arguments and isinstance(arguments[0], int) else None


class Broker:
    """Sends messages and counts them. Opened lazily in the process that uses it."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._app: Celery | None = None
        self._redis: redis.Redis | None = None
        self._pid = 0
        self._circuit = Circuit(_RESTS)

    @property
    def where(self) -> str:
        return mask_url(self._settings.url.get_secret_value())

    def send(self, messages: Iterable[tuple[str, int, str]]) -> int:
        """Sends (task name, id, queue) one by one. Returns how many; raises BrokerUnavailable where Redis is away.

        What was not sent when it raises is the caller's to take back.
        """
        sent: Counter[str] = Counter()
        self._enter()
        try:
            with operation("broker.send"):
                self._send(messages, sent)
        finally:
            for queue, number in sent.items():
                count("broker_messages", number, queue)
        return sent.total()

    def _send(self, messages: Iterable[tuple[str, int, str]], sent: Counter[str]) -> None:
        try:
            app = self._celery()
            with app.producer_pool.acquire(block=True, timeout=self._settings.timeout) as producer:
                for task, row_id, queue in messages:
                    app.send_task(task, args=[row_id], queue=queue, producer=producer, ignore_result=True)
                    sent[queue] += 1
        except (KombuError, redis.RedisError, OSError) as error:
            raise self._away(error) from error

    def tick(self, ticks: Iterable[tuple[str, float]], most: int) -> int:
        """Asks for duties: (task name, seconds after which it is worthless). Returns how many were sent.

        most: messages that the control queue may hold; what is more is left out. Raises BrokerUnavailable.
        """
        sent = 0
        self._enter()
        try:
            waiting = self._client().llen(f"{self._settings.prefix}{CONTROL_QUEUE}")
            app = self._celery()
            with app.producer_pool.acquire(block=True, timeout=self._settings.timeout) as producer:
                for task, seconds in ticks:
                    if waiting + sent >= most:
                        break
                    app.send_task(task, queue=CONTROL_QUEUE, expires=seconds, producer=producer, ignore_result=True)
                    sent += 1
        except (KombuError, redis.RedisError, OSError) as error:
            raise self._away(error) from error
        return sent

    def depths(self) -> dict[str, int]:
        """Queue name -> messages waiting in Redis. Raises BrokerUnavailable."""
        names = (*WORK_QUEUES, CONTROL_QUEUE)
        self._enter()
        try:
            pipeline = self._client().pipeline(transaction=False)
            for name in names:
                pipeline.llen(f"{self._settings.prefix}{name}")
            return dict(zip(names, pipeline.execute(), strict=True))
        except (redis.RedisError, OSError) as error:
            raise self._away(error) from error

    def queued(self, queue: str) -> set[int]:
        """The ids of the batches whose messages wait in this queue. Raises BrokerUnavailable."""
        self._enter()
        try:
            # redis-py's types cover its asyncio client too, which this is not
            waiting = cast(list[bytes], self._client().lrange(f"{self._settings.prefix}{queue}", 0, -1))
        except (redis.RedisError, OSError) as error:
            raise self._away(error) from error
        found = (_row_id(json.loads(message), TASKS.values()) for message in waiting)
        return {row_id for row_id in found if row_id is not None}

    def carried(self, tasks: Collection[str] = tuple(TASKS.values())) -> set[int]:
        """The ids in all messages of these tasks that wait in the work queues, or that a worker has just taken.

        A worker claims what it takes at once. A message that was taken a while ago and never acknowledged died with its
        worker, or belongs to a batch that is claimed; Redis would keep it for the whole visibility timeout.
        Raises BrokerUnavailable.
        """
        self._enter()
        try:
            pipeline = self._client().pipeline(transaction=False)
            # In this order: a message on its way from a queue to a worker is then seen twice, never missed.
            for name in WORK_QUEUES:
                pipeline.lrange(f"{self._settings.prefix}{name}", 0, -1)
            pipeline.zrangebyscore(f"{self._settings.prefix}unacked_index", time.time() - _TAKING_SECONDS, "+inf")
            pipeline.hgetall(f"{self._settings.prefix}unacked")
            *waiting, fresh, taken = pipeline.execute()
        except (redis.RedisError, OSError) as error:
            raise self._away(error) from error
        messages = [json.loads(message) for queue in waiting for message in queue]
        messages += [json.loads(taken[tag])[0] for tag in fresh if tag in taken]
        return {row_id for message in messages if (row_id := _row_id(message, tasks)) is not None}

    def close(self) -> None:
        if self._app is not None:
            self._app.close()
            self._app = None
        if self._redis is not None:
            self._redis.close()
            self._redis = None

    def _leave_parents_connections(self) -> None:
        # A forked process must neither use nor close the sockets it inherited.
        if self._pid != os.getpid():
            self._app, self._redis, self._pid = None, None, os.getpid()

    def _celery(self) -> Celery:
        self._leave_parents_connections()
        if self._app is None:
            self._require_url()
            self._app = Celery("millrace.client", set_as_current=False)
            self._app.conf.update(celery_settings(self._settings))
        return self._app

    def _client(self) -> redis.Redis:
        self._leave_parents_connections()
        if self._redis is None:
            self._require_url()
            self._redis = redis.Redis.from_url(
                self._settings.url.get_secret_value(),
                socket_timeout=self._settings.timeout,
                socket_connect_timeout=min(3.0, self._settings.timeout),
            )
        return self._redis

    def _require_url(self) -> None:
        if not self._settings.url.get_secret_value():
            raise BrokerUnavailable(
                "No stack is running here and no MILLRACE_REDIS__URL is set. Start one with `millrace up`."
            )

    def _enter(self) -> None:
        """Raises BrokerUnavailable, at once, where Redis did not answer a moment ago; asks it where it is time to."""
        admission = self._circuit.admit()
        if admission is Admission.REST:
            raise BrokerUnavailable(
                f"Redis at {self.where}, a moment ago, {self._circuit.why}; it is asked again soon."
            )
        if admission is Admission.PROBE:
            try:
                self._require_url()
                with redis.Redis.from_url(
                    self._settings.url.get_secret_value(),
                    socket_timeout=min(_PROBE_SECONDS, self._settings.timeout),
                    socket_connect_timeout=min(_PROBE_SECONDS, self._settings.timeout),
                ) as probe:
                    probe.ping()
            except (redis.RedisError, OSError) as error:
                raise self._away(error) from error
            finally:
                self._circuit.released()
            self._circuit.succeeded()

    def _away(self, error: Exception) -> BrokerUnavailable:
        # OOM, MISCONF (its disk is full), LOADING, READONLY: it is there, and takes nothing. kombu wraps it.
        refused = isinstance(error.__cause__ or error, redis.ResponseError)
        why = f"{'refused' if refused else 'did not answer'}: {str(error).rstrip('.')}"
        self._circuit.failed(why)
        _log.warning("redis at %s %s", self.where, why)
        return BrokerUnavailable(f"Redis at {self.where} {why}. Jobs are safe in Postgres and go on when it is back.")
