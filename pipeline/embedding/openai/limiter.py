"""One limit for the whole cluster: requests and tokens are let through together, by one script in Redis.

While Redis is away each process goes by a meter of its own, with `openai.local_share` of the limits; when it is back,
it is asked again, and whoever comes back begins without a burst, since Redis does not know what went out meanwhile.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.circuits import Admission, Circuit
from pipeline.embedding.openai.headers import read_rates
from pipeline.embedding.openai.meter import Limits, Meter
from pipeline.embedding.openai.script import TAKE, TELL
from pipeline.embedding.openai.spec import normalised_url
from pipeline.errors import ProviderLimited
from pipeline.observe import logger, operation
from pipeline.settings import OpenAISettings, RedisSettings, mask_url

# Before the first answer says more: what the lowest paid tier of OpenAI may do, or less.
FIRST_REQUESTS = 500
FIRST_TOKENS = 1_000_000

# Redis is next door; who waits longer for it than this goes by its own share meanwhile.
_REDIS_SECONDS = 1.0
# Seconds until Redis is asked again after the first failure, the second in a row, ...
_RESTS = (0.5, 1.0, 2.0)
# Longer waits are asked about again in between: somebody may have learned more.
_LONGEST_SLEEP = 5.0
# So that processes that were told the same moment do not ask in the same millisecond.
_JITTER = 0.02
_STOP_SECONDS = 0.2

_log = logger("openai.limiter")


@dataclass(frozen=True, slots=True)
class Grant:
    """A request may go. at: Redis' clock when it was granted, in seconds; None where Redis was away."""

    at: float | None
    waited: float


@dataclass(frozen=True, slots=True)
class Standing:
    """How the limits stand. paused: seconds until anybody may ask again; shared: whether Redis said so."""

    limits: Limits
    paused: float
    shared: bool


class Limiter:
    """Thread-safe; opened at its first use, and again in a forked process. close() ends the connection."""

    _redis: redis.Redis | None
    _paused_until: float

    def __init__(
        self,
        redis_settings: RedisSettings,
        settings: OpenAISettings,
        scope: str,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """scope: what the limits are of (`spec.limit_scope`). clock: instead of Redis' own, in seconds (tests)."""
        self._redis_settings = redis_settings
        self._settings = settings
        self._key = f"{redis_settings.prefix}openai:limits:{scope}"
        self._clock = clock
        self._begin()

    @property
    def limits(self) -> Limits:
        """Of the whole cluster, a minute, as this process last heard."""
        return self._limits

    @property
    def request_tokens(self) -> int:
        """Tokens that one request may have, if it is not a single text: what goes in one burst."""
        limits = self._limits if self._meter is None else self._meter.limits
        return max(1, int(limits.burst_tokens * (1.0 - self._settings.search_share)))

    def acquire(
        self,
        requests: int,
        tokens: int,
        *,
        query: bool,
        deadline: float | None = None,
        stop: threading.Event | None = None,
    ) -> Grant:
        """Waits until the request may go, and charges it. query: it may use the reserve, and passes what waits.

        deadline: of time.monotonic(). Raises ProviderLimited, with the seconds to wait, where it may not go before
        that; and where `stop` is set meanwhile.
        """
        self._own()
        began = time.monotonic()
        if not query:
            # One of a process asks; the others stand behind it.
            self._stand_in_line(deadline, stop)
        try:
            with operation("openai.limit"):
                return Grant(self._wait(requests, tokens, query, deadline, stop), time.monotonic() - began)
        finally:
            if not query:
                self._line.release()

    def learn(self, headers: Mapping[str, str], correction: int = 0) -> None:
        """Takes in what the headers of an answer say. correction: tokens used beyond those charged; fewer: negative."""
        rates = read_rates(headers)
        if not rates and not correction:
            return
        self._tell(correction, 0.0, rates.requests, rates.tokens, rates.requests_left, rates.tokens_left)

    def pause(self, seconds: float) -> None:
        """Nobody in the cluster asks for so many seconds."""
        if seconds <= 0:
            return
        self._own()
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
        self._tell(0, seconds, None, None, None, None)

    def standing(self) -> Standing:
        """The limits and the pause, as Redis has them; as this process knows them, where that is away."""
        self._own()
        reply = self._run(TELL, "0", "0", "0", "0", "", "")
        paused = max(0.0, self._paused_until - time.monotonic())
        if reply is None:
            return Standing(self._limits, paused, shared=False)
        return Standing(self._limits, max(paused, float(reply[0]) / 1000), shared=True)

    def close(self) -> None:
        self._own()
        with self._lock:
            if self._redis is not None:
                self._redis.close()
            self._redis = None

    # -- one process -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        settings = self._settings
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._line = threading.Lock()
        self._redis = None
        self._circuit = Circuit(_RESTS)
        self._limits = Limits(
            settings.requests_per_minute or FIRST_REQUESTS, settings.tokens_per_minute or FIRST_TOKENS
        )
        self._meter: Meter | None = None  # while Redis is away
        self._paused_until = 0.0

    def _own(self) -> None:
        """A forked process has its own connection, and none of the locks that a thread of its parent held."""
        if self._pid != os.getpid():
            self._begin()

    def _stand_in_line(self, deadline: float | None, stop: threading.Event | None) -> None:
        while not self._line.acquire(timeout=_STOP_SECONDS):
            self._check(stop)
            if deadline is not None and time.monotonic() >= deadline:
                raise self._limited(max(0.0, self._paused_until - time.monotonic()) or None)

    def _wait(
        self, requests: int, tokens: int, query: bool, deadline: float | None, stop: threading.Event | None
    ) -> float | None:
        while True:
            self._check(stop)
            wait, at = self._take(requests, tokens, query)
            if wait <= 0.0:
                return at
            if deadline is not None and time.monotonic() + wait > deadline:
                raise self._limited(wait)
            pause = min(wait, _LONGEST_SLEEP) + random.random() * _JITTER  # noqa: S311 - no secret
            if stop is None:
                time.sleep(pause)
            else:
                stop.wait(pause)

    def _check(self, stop: threading.Event | None) -> None:
        if stop is not None and stop.is_set():
            raise ProviderLimited("the request was called off while it waited for its turn")

    def _take(self, requests: int, tokens: int, query: bool) -> tuple[float, float | None]:
        """Seconds to wait (0: granted), and Redis' clock."""
        paused = self._paused_until - time.monotonic()
        if paused > 0:
            return paused, None
        apart = self._meter is not None
        reply = self._run(TAKE, str(requests), str(tokens), "1" if query else "0", "1" if apart else "0")
        if reply is not None:
            return float(reply[0]) / 1000, float(reply[1]) / 1000
        with self._lock:
            return self._own_meter().take(requests, tokens, query=query, now=time.monotonic()), None

    def _tell(
        self,
        correction: int,
        pause: float,
        requests: int | None,
        tokens: int | None,
        requests_left: int | None,
        tokens_left: int | None,
    ) -> None:
        self._own()
        left = ["" if number is None else str(number) for number in (requests_left, tokens_left)]
        reply = self._run(TELL, str(correction), str(pause * 1000), str(requests or 0), str(tokens or 0), *left)
        if reply is not None:
            return
        with self._lock:
            now = time.monotonic()
            self._limits = Limits(
                _learned(self._settings.requests_per_minute, requests, self._limits.requests),
                _learned(self._settings.tokens_per_minute, tokens, self._limits.tokens),
            )
            meter = self._own_meter()
            meter.change(self._limits.scaled(self._settings.local_share), now)
            meter.correct(correction, now)
            meter.pause(pause, now)

    def _own_meter(self) -> Meter:
        if self._meter is None:
            limits = self._limits.scaled(self._settings.local_share)
            self._meter = Meter(limits, self._settings.search_share, time.monotonic())
        return self._meter

    # -- Redis -------------------------------------------------------------------------------------------------------

    def _run(self, script: str, *arguments: str) -> list[Any] | None:
        """What the script answers; None where Redis is away."""
        admission = self._circuit.admit()
        if admission is Admission.REST:
            return None
        settings = self._settings
        common = [
            "" if self._clock is None else repr(self._clock() * 1000),
            str(settings.requests_per_minute or 0),
            str(settings.tokens_per_minute or 0),
            str(FIRST_REQUESTS),
            str(FIRST_TOKENS),
            str(settings.search_share),
        ]
        try:
            client = self._client()
            reply: list[Any] = client.register_script(script)(
                keys=[self._key], args=[*common, *arguments], client=client
            )
        except (redis.RedisError, OSError) as error:
            self._circuit.failed(str(error))
            self._tell_away(error)
            return None
        self._circuit.succeeded()
        with self._lock:
            if self._meter is not None and script is TAKE:
                self._meter = None
                _log.info("redis is back; the limits are shared again")
            self._limits = Limits(float(reply[2]), float(reply[3]))
        return reply

    def _tell_away(self, error: Exception) -> None:
        with self._lock:
            if self._meter is not None:
                return
            self._own_meter()
        _log.warning(
            "redis at %s does not answer (%s): this process goes by %g of the limits by itself",
            mask_url(self._redis_settings.url.get_secret_value()),
            str(error).rstrip("."),
            self._settings.local_share,
        )

    def _client(self) -> redis.Redis:
        with self._lock:
            if self._redis is None:
                if not (url := self._redis_settings.url.get_secret_value()):
                    raise redis.ConnectionError("no MILLRACE_REDIS__URL is set, and no stack is running here")
                seconds = min(_REDIS_SECONDS, self._redis_settings.timeout)
                self._redis = redis.Redis.from_url(
                    url,
                    socket_timeout=seconds,
                    socket_connect_timeout=seconds,
                    retry=Retry(NoBackoff(), 1),
                    decode_responses=True,
                )
            return self._redis

    def _limited(self, seconds: float | None) -> ProviderLimited:
        limits, where = self._limits, normalised_url(self._settings.base_url)
        until = "" if seconds is None else f" for {seconds:.1f} s"
        return ProviderLimited(
            f"{where} takes {limits.requests:,.0f} requests and {limits.tokens:,.0f} tokens a minute, which leaves no "
            f"room{until}. Work goes on by itself; raise the limits of the account to go faster.",
            seconds,
        )


def _learned(set_limit: int | None, said: int | None, known: float) -> float:
    """The limit after an answer: the lower one of what is set and what the server says."""
    return known if said is None else float(min(set_limit or said, said))
