"""The figures of all processes, summed in Redis: what `millrace stats` shows without a Prometheus.

A report is what one process measured since its last one. A script in Redis adds it up in one step: numbers of
occurrences and sketches of values, in slots of a minute (kept for an hour) and of ten (kept for a day), of two hashes
each. The clock is Redis' own: processes on hosts whose clocks differ share it, and a reader needs no agreement with
them. A report that had to wait for Redis says how long, and goes to the slots of its time.

What is exact: numbers, sums, least and greatest. A report whose answer was lost is sent again under its number, and
added once: the script keeps the number of the last report of each process for an hour. What is not: percentiles
(RELATIVE_ERROR); what a killed process had not reported yet is lost, and so is what Redis loses.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.errors import BrokerUnavailable, InvalidRequest
from pipeline.monitoring.slots import ADD, COARSE, FINE, MOST_MINUTES, RESET
from pipeline.monitoring.window import SlowOperation, Window
from pipeline.observe import Measured, Series, Sketch
from pipeline.observe.sketch import bucket_of
from pipeline.settings import RedisSettings, mask_url

# Reports that wait while Redis is away: of a minute each, so that all of an hour is kept. Older ones are dropped.
MOST_WAITING = 60
# Series of one slot, of all processes together, beyond which new ones are left out.
MOST_COUNTS = 2_000
MOST_SKETCHES = 300
# Slow operations that are remembered, of all processes together.
MOST_SLOW = 100
# Greater values are all counted in the bucket of this one: there are 1,400 buckets at most.
_GREATEST = bucket_of(1e15)
# Commands of a reader that are answered together: Redis serves others in between.
_READ_AT_ONCE = 500


@dataclass(slots=True)
class _Report:
    """What is owed to Redis: of one minute of this process."""

    number: int
    began: float  # time.monotonic()
    measured: Measured
    tried: bool = False  # it may have been added: nothing more can be put into it


class ClusterStats:
    """Thread-safe; opened at its first use, and again in a forked process. close() ends the connection."""

    _redis: redis.Redis | None

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._base = f"{settings.prefix}stats:"
        self._begin()

    def add(self, measured: Measured) -> None:
        """Adds what this process measured since the last call; `measured` is this object's from then on.

        Raises BrokerUnavailable where Redis is away; it is kept nevertheless (an hour's at most), and goes with what is
        added later. Nobody else may keep it, or it would be counted twice.
        """
        self._own()
        with self._lock:
            self._owe(measured)
            while self._reports:
                self._reports[0].tried = True
                self._send(self._reports[0])
                self._reports.popleft()

    @property
    def waiting(self) -> int:
        """Reports that Redis has not taken yet."""
        return len(self._reports)

    def read(self, minutes: float) -> Window:
        """The sums of the last minutes, up to MOST_MINUTES: of slots of a minute up to an hour, of ten beyond.

        Raises BrokerUnavailable; InvalidRequest of minutes that are none.
        """
        if not 0 < minutes <= MOST_MINUTES:
            raise InvalidRequest(f"figures are kept for {MOST_MINUTES // 60} h: minutes must be 1 to {MOST_MINUTES}.")
        resolution = FINE if minutes * 60 <= FINE.kept else COARSE
        clock, reset = self._ask([("TIME",), ("GET", f"{self._base}reset")])
        until = clock[0] + clock[1] / 1e6
        first, last = int((until - minutes * 60) // resolution.slot), int(until // resolution.slot)
        since = max(first * resolution.slot, float(reset or 0))
        slots = [f"{self._base}{resolution.name}:{slot}" for slot in range(first, last + 1)]
        named, *held = self._ask(
            [
                ("ZRANGEBYSCORE", f"{self._base}processes", since, "+inf"),
                *(("HGETALL", f"{slot}:{kind}") for slot in slots for kind in ("counts", "sketches")),
            ]
        )
        counts: dict[Series, float] = {}
        sketches: dict[Series, Sketch] = {}
        for member, number in (item for slot in held[0::2] for item in slot.items()):
            counts[_series(member)] = counts.get(_series(member), 0.0) + float(number)
        for member, sketch in (item for slot in held[1::2] for item in slot.items()):
            sketches.setdefault(_series(member), Sketch()).merge(_sketch(sketch))
        return Window(
            since=datetime.fromtimestamp(since, UTC),
            until=datetime.fromtimestamp(until, UTC),
            processes=tuple(sorted(name.decode() for name in named)),
            counts=counts,
            sketches=sketches,
        )

    def slowest(self, limit: int = 20) -> list[SlowOperation]:
        """The slowest of the last MOST_SLOW slow operations of all processes, the slowest first."""
        (held,) = self._ask([("LRANGE", f"{self._base}slow", 0, -1)])
        found = [_slow(json.loads(slow)) for slow in held]
        return sorted(found, key=lambda slow: slow.seconds, reverse=True)[:limit]

    def reset(self) -> None:
        """Begins anew, for everybody, in one step.

        What was measured before it and is reported within seconds of it still comes in; what waited for Redis does not.
        Raises BrokerUnavailable.
        """
        resolutions = json.dumps([(each.name, each.slot, each.kept) for each in (FINE, COARSE)])
        self._ask([("EVAL", RESET, 1, self._base, resolutions)])

    def close(self) -> None:
        self._own()
        with self._opening:
            if self._redis is not None:
                self._redis.close()
            self._redis = None

    # -- one process -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._lock = threading.Lock()  # of what is owed; held while it is sent
        self._opening = threading.Lock()
        self._redis = None
        self._host = socket.gethostname()
        self._process = f"{self._host}#{os.getpid()}.{secrets.token_hex(4)}"
        self._reports: deque[_Report] = deque()
        self._number = 0
        self._pid = os.getpid()

    def _own(self) -> None:
        """A forked process counts for itself: what its parent owes is its parent's, and so are its connection and the
        locks that a thread of it may have held."""
        if self._pid != os.getpid():
            self._begin()

    def _owe(self, measured: Measured) -> None:
        if not measured:
            return
        now = time.monotonic()
        last = self._reports[-1] if self._reports else None
        if last is not None and not last.tried and now - last.began < FINE.slot:
            last.measured.merge(measured)
            return
        self._number += 1
        self._reports.append(_Report(self._number, now, measured))
        while len(self._reports) > MOST_WAITING:
            self._reports.popleft()

    def _send(self, report: _Report) -> None:
        content = {
            "age": max(0.0, time.monotonic() - report.began),
            "kept": COARSE.kept,
            "resolutions": [(each.name, each.slot, each.kept) for each in (FINE, COARSE)],
            "most_counts": MOST_COUNTS,
            "most_sketches": MOST_SKETCHES,
            "most_slow": MOST_SLOW,
            **_content(report.measured, self._host),
        }
        try:
            client = self._client()
            # By its hash; Redis is sent the script itself where it does not know it, as after a flush of its scripts.
            client.register_script(ADD)(
                keys=[self._base], args=[self._process, report.number, json.dumps(content)], client=client
            )
        except (redis.RedisError, OSError) as error:
            raise self._away(error) from error

    # -- Redis -------------------------------------------------------------------------------------------------------

    def _ask(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Raises BrokerUnavailable."""
        answers: list[Any] = []
        try:
            client = self._client()
            for begin in range(0, len(commands), _READ_AT_ONCE):
                pipeline = client.pipeline(transaction=False)
                for command in commands[begin : begin + _READ_AT_ONCE]:
                    pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
                answers += pipeline.execute()
        except (redis.RedisError, OSError) as error:
            raise self._away(error) from error
        return answers

    def _client(self) -> redis.Redis:
        self._own()
        with self._opening:
            if self._redis is None:
                if not (url := self._settings.url.get_secret_value()):
                    raise BrokerUnavailable(
                        "No stack is running here and no MILLRACE_REDIS__URL is set. Start one with `millrace up`."
                    )
                self._redis = redis.Redis.from_url(
                    url,
                    socket_timeout=self._settings.timeout,
                    socket_connect_timeout=min(3.0, self._settings.timeout),
                    # Once, at once: a connection that has lain idle may have been closed by the other end.
                    retry=Retry(NoBackoff(), 1),
                )
            return self._redis

    def _away(self, error: Exception) -> BrokerUnavailable:
        where = mask_url(self._settings.url.get_secret_value())
        verb = "refused" if isinstance(error, redis.ResponseError) else "did not answer"
        return BrokerUnavailable(f"Redis at {where} {verb}: {str(error).rstrip('.')}. It holds the figures of all.")


def _content(measured: Measured, host: str) -> dict[str, Any]:
    """As the script takes it. A value that is no finite number cannot be added up, and is left out."""
    return {
        "counts": [
            (_member(series), repr(number)) for series, number in measured.counts.items() if math.isfinite(number)
        ],
        "sketches": [
            (
                _member(series),
                repr(sketch.total),
                repr(sketch.least),
                repr(sketch.greatest),
                _bounded(sketch.buckets),
            )
            for series, sketch in measured.sketches.items()
            if sketch.count and math.isfinite(sketch.total)
        ],
        "slow": [json.dumps({**asdict(slow), "context": dict(slow.context), "host": host}) for slow in measured.slow],
    }


def _bounded(buckets: Mapping[int, int]) -> dict[int, int]:
    bounded: dict[int, int] = {}
    for bucket, count in buckets.items():
        bounded[min(bucket, _GREATEST)] = bounded.get(min(bucket, _GREATEST), 0) + count
    return bounded


def _member(series: Series) -> str:
    name, labels = series
    return json.dumps([name, *labels], separators=(",", ":"), ensure_ascii=False)


def _series(member: bytes) -> Series:
    name, *labels = json.loads(member)
    return name, tuple(labels)


def _sketch(held: bytes) -> Sketch:
    """As the script made it."""
    found = json.loads(held)
    buckets = {int(bucket): int(number) for bucket, number in found["buckets"].items()}
    return Sketch(
        count=sum(buckets.values()),
        total=float(found["total"]),
        least=float(found["least"]),
        greatest=float(found["greatest"]),
        buckets=buckets,
    )


def _slow(found: Mapping[str, Any]) -> SlowOperation:
    return SlowOperation(**{**found, "at": datetime.fromtimestamp(found["at"], UTC)})
