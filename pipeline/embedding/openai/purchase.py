"""Many texts at one server: packed into requests, several under way at once, each answer handed over as it comes.

What arrived is handed over before anything is asked again. What is transient is asked again, later and a little at
random, as long as something came within `patience_seconds`. A request that is refused for one of its texts is halved
until that text stands alone; the others get their vectors, and the text's error is raised at the end.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from pipeline.embedding.openai.asking import Question, Reply, Server
from pipeline.embedding.openai.besides import Besides
from pipeline.embedding.openai.client import Failure, scrubbed
from pipeline.embedding.openai.manners import PROBE_TEXTS
from pipeline.embedding.openai.requests import fitting
from pipeline.errors import (
    EmbeddingFailed,
    InvalidRequest,
    InvalidVectors,
    MillraceError,
    ProviderLimited,
    ProviderUnavailable,
)
from pipeline.observe import logger
from pipeline.settings import OpenAISettings

# So often whoever waits for us hears that we are at it.
_TICK_SECONDS = 0.5
# How long answers that are under way are waited for when the caller gives up: they are paid for.
_LAST_ANSWERS_SECONDS = 5.0
# Before a request is sent again: seconds after its first failure, doubled each time; half of it at random.
_FIRST_REST, _LONGEST_REST = 0.25, 15.0
# Where the server fails on a request so often (500), and not on a text that is sound, the request is halved.
_FAILURES_OF_TEXTS = 3
_SOUND = "The gate decides how much water reaches the wheel."
_SOUND_TOKENS = 64
# However little patience there is, the burst of a limit is waited for.
_LEAST_WAIT_SECONDS = 2.0
# Answers that are none (a wrong number of vectors, NaN) are believed to be the texts' fault after so many of them.
_BAD_ANSWERS = 2
# Texts refused alone, one after the other, while nothing was ever answered: it is not the texts.
_REFUSALS_OF_ALL = 3

_log = logger("openai")


@dataclass(frozen=True, slots=True)
class Part:
    """What one answer brought. positions: of the texts that were asked for, in the order of vectors and tokens.

    vectors: float32[n, dim], L2-normalised. tokens: of each text, as billed. requests: that it took. seconds: of the
    one that was answered. doubted: how many requests for these very texts were lost before, and may be paid for too.
    """

    positions: Sequence[int]
    vectors: NDArray[np.float32]
    tokens: Sequence[int]
    requests: int
    seconds: float = 0.0
    doubted: int = 0


@dataclass(slots=True)
class _Pack:
    """Texts that go together. requests, lost: of them so far; failures: in a row, of the kinds that may be the texts'
    own; due: when it may be sent (again). halved: what it is a half of."""

    positions: tuple[int, ...]
    requests: int = 0
    lost: int = 0
    rests: int = 0
    failures: int = 0
    bad_answers: int = 0
    due: float = 0.0
    halved: _Halved | None = None


@dataclass(slots=True)
class _Halved:
    """A request that was refused as a whole: if both halves are answered, it was its size."""

    inputs: int
    tokens: int
    answered: int = 0


@dataclass(slots=True)
class Purchase:
    """One call. texts: as they are sent; counts: tokens of each. query: goes before what is none.

    run() tells on_part every answer and on_progress, at least every _TICK_SECONDS, how many texts are done, both in the
    calling thread. It raises what ended it, with the positions of texts that may be paid for and did not come as
    `unanswered`; where it ends because of texts that are refused, `given_up` says of each position why. `besides`: what
    it has asked for beside the texts.
    """

    server: Server
    settings: OpenAISettings
    texts: Sequence[str]
    counts: Sequence[int]
    query: bool
    on_part: Callable[[Part], None]
    on_progress: Callable[[int], None] | None = None
    besides: list[Besides] = field(default_factory=list)
    _next: int = 0
    _again: deque[_Pack] = field(default_factory=deque)
    _came: SimpleQueue[tuple[_Pack, Reply | Failure | BaseException]] = field(default_factory=SimpleQueue)
    _under_way: dict[int, _Pack] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _last_good: float = field(default_factory=time.monotonic)
    _answered: bool = False
    _done: int = 0
    _given_up: list[tuple[int, MillraceError]] = field(default_factory=list)
    _unanswered: set[int] = field(default_factory=set)
    _over: MillraceError | None = None

    def run(self) -> None:
        try:
            while self._over is None and (self._next < len(self.texts) or self._again or self._under_way):
                self._send_out()
                self._take_in(self._pause())
                self._tell()
        except Exception as error:
            self._finish(_LAST_ANSWERS_SECONDS, tell=False)
            self._blame(error)
            raise
        if self._under_way:
            self._finish(self.settings.timeout, tell=True)
        if ended := self._over or self._failed_texts():
            self._blame(ended)
            raise ended

    # -- sending -----------------------------------------------------------------------------------------------------

    def _send_out(self) -> None:
        known = self.server.manners.found is not None
        while len(self._under_way) < self._most_under_way() and (pack := self._next_pack(known)):
            self._under_way[id(pack)] = pack
            context = copy_context()
            threading.Thread(target=context.run, args=(self._ask, pack), name="openai", daemon=True).start()

    def _most_under_way(self) -> int:
        return self.server.pace.in_flight if self.server.manners.found is not None else 1

    def _next_pack(self, known: bool) -> _Pack | None:
        now = time.monotonic()
        for _ in range(len(self._again)):
            pack = self._again.popleft()
            if pack.due <= now:
                return pack
            self._again.append(pack)
        if self._next >= len(self.texts):
            return None
        inputs, tokens = self._most(known)
        size = fitting(self.counts[self._next : self._next + inputs], inputs, tokens)
        positions = tuple(range(self._next, self._next + size))
        self._next += size
        return _Pack(positions)

    def _most(self, known: bool) -> tuple[int, int]:
        """Texts and tokens of the next request."""
        server, settings = self.server, self.settings
        limits = server.limiter.limits
        tokens = server.pace.tokens_under(limits.requests, limits.tokens, server.limiter.request_tokens)
        inputs = min(server.pace.inputs, settings.request_inputs)
        return inputs if known else min(inputs, PROBE_TEXTS), min(tokens, settings.request_tokens)

    def _ask(self, pack: _Pack) -> None:
        """In a thread of its own."""
        question = Question(
            [self.texts[position] for position in pack.positions],
            [self.counts[position] for position in pack.positions],
            self.query,
        )
        outcome: Reply | Failure | BaseException
        try:
            outcome = self.server.ask(question, self._turn_deadline, self._stop)
        except Failure as failure:
            outcome = failure
            failure.texts = failure.status == 500 and pack.failures + 1 >= _FAILURES_OF_TEXTS and self._is_well()
        except BaseException as error:  # noqa: BLE001 - it is the calling thread's
            outcome = error
        self._came.put((pack, outcome))

    def _is_well(self) -> bool:
        """Whether the server answers now, where it is asked for nothing difficult."""
        try:
            question = Question([_SOUND], [_SOUND_TOKENS], self.query)
            reply = self.server.ask(question, self._turn_deadline, self._stop)
        except Failure as failure:
            if failure.lost:
                self.besides.append(Besides(doubtful_texts=1, doubtful_tokens=_SOUND_TOKENS))
            return False
        tokens = sum(reply.tokens)
        self.besides.append(Besides(1, tokens, reply.requests, reply.lost, reply.lost * tokens))
        return True

    def _deadline(self) -> float:
        return self._last_good + self.settings.patience_seconds

    def _turn_deadline(self) -> float:
        return self._last_good + max(_LEAST_WAIT_SECONDS, self.settings.patience_seconds)

    def _pause(self) -> float:
        """Seconds until there is something to do, if no answer comes before."""
        if len(self._under_way) >= self._most_under_way():
            return _TICK_SECONDS
        waiting = [pack.due - time.monotonic() for pack in self._again]
        return max(0.0, min([_TICK_SECONDS, *waiting]))

    # -- taking in ---------------------------------------------------------------------------------------------------

    def _take_in(self, seconds: float) -> None:
        """What came within so many seconds: the answers first, then the failures."""
        came = self._arrived(seconds)
        for pack, outcome in came:
            if isinstance(outcome, Reply):
                self._take(pack, outcome)
        for pack, outcome in came:
            if isinstance(outcome, Failure):
                self._weigh(pack, outcome)
            elif not isinstance(outcome, Reply):
                raise outcome

    def _arrived(self, seconds: float) -> list[tuple[_Pack, Reply | Failure | BaseException]]:
        came = []
        try:
            if self._under_way or seconds > 0:
                came.append(self._came.get(timeout=max(seconds, 0.001)))
            while True:
                came.append(self._came.get_nowait())
        except Empty:
            pass
        for pack, _ in came:
            del self._under_way[id(pack)]
        return came

    def _take(self, pack: _Pack, reply: Reply) -> None:
        """Hands an answer over; what is no vector in it is asked for again, alone."""
        self._last_good, self._answered = time.monotonic(), True
        pack.lost += reply.lost
        rows = [row for row in range(len(pack.positions)) if row not in reply.bad]
        if pack.halved and not reply.bad:
            self._learn_size(pack.halved)
        for row, why in reply.bad.items():
            alone = _Pack((pack.positions[row],), requests=0, lost=pack.lost + 1, bad_answers=pack.bad_answers + 1)
            self._unanswered.add(pack.positions[row])
            error = InvalidVectors(f"{self.server.where} returned {why} for text {pack.positions[row]}")
            self._bad_answer(alone, error)
        if not rows:
            return
        positions = [pack.positions[row] for row in rows]
        self._unanswered.difference_update(positions)
        part = Part(
            positions=positions,
            vectors=reply.vectors[rows] if reply.bad else reply.vectors,
            tokens=[reply.tokens[row] for row in rows],
            requests=pack.requests + reply.requests,
            seconds=reply.seconds,
            doubted=pack.lost,
        )
        self._done += len(rows)
        try:
            self.on_part(part)
        except Exception:
            self._unanswered.update(positions)  # paid for, and not stored
            raise

    def _weigh(self, pack: _Pack, failure: Failure) -> None:
        """What a failure means for its texts, and for all of them."""
        error = failure.error
        pack.requests += failure.status is not None or failure.lost
        if failure.lost:
            pack.lost += 1
            self._unanswered.update(pack.positions)
        if failure.whole or (not isinstance(error, ProviderUnavailable | InvalidRequest | InvalidVectors)):
            self._over = self._over or error
        elif isinstance(error, InvalidVectors):
            pack.bad_answers += 1
            self._bad_answer(pack, error)
        elif isinstance(error, InvalidRequest):
            self._halve(pack, error)
        elif type(error) not in {ProviderUnavailable, ProviderLimited}:
            self._over = self._over or error  # the key, the account: asking again changes nothing
        elif failure.texts:
            self._halve(pack, EmbeddingFailed(str(error)))
        else:
            pack.failures += failure.status == 500
            self._again_later(pack, error)

    def _again_later(self, pack: _Pack, error: MillraceError) -> None:
        now = time.monotonic()
        limited = isinstance(error, ProviderLimited)
        wait = (error.seconds or 0.0) if isinstance(error, ProviderLimited) else 0.0
        if self._stop.is_set() or now + wait >= self._deadline():
            self._over = self._over or error
            return
        if not limited:  # for that the limiter waits
            rest = min(_LONGEST_REST, _FIRST_REST * 2**pack.rests)
            pack.rests += 1
            pack.due = now + rest * (0.5 + random.random() / 2)  # noqa: S311 - no secret
            _log.info("%s; asked again in %.1f s", scrubbed(str(error)), pack.due - now)
        self._again.append(pack)

    def _bad_answer(self, pack: _Pack, error: MillraceError) -> None:
        """An answer that is no answer: asked for once more, then given up, each text for itself."""
        if pack.bad_answers < _BAD_ANSWERS:
            self._again.append(pack)
        else:
            self._halve(pack, error)

    def _halve(self, pack: _Pack, error: MillraceError) -> None:
        """The texts of a refused request in two; one that stands alone is given up."""
        positions = pack.positions
        if len(positions) == 1:
            self._given_up.append((positions[0], error))
            if not self._answered and len(self._given_up) >= _REFUSALS_OF_ALL:
                self._over = self._over or error
            return
        # Of a server that has answered nothing yet, one text tells whether it is the texts at all.
        middle = len(positions) // 2 if self._answered or self.server.manners.found else 1
        halves = (positions[:middle], positions[middle:])
        tokens = [sum(self.counts[position] for position in half) for half in halves]
        size = _Halved(len(halves[1]), max(tokens)) if isinstance(error, InvalidRequest) else None
        # What is known of the whole is known of its halves: each is believed at its next failure.
        for half in reversed(halves):
            self._again.appendleft(
                _Pack(
                    half,
                    lost=pack.lost,
                    failures=pack.failures,
                    bad_answers=max(0, pack.bad_answers - 1),
                    halved=size,
                )
            )

    def _learn_size(self, halved: _Halved) -> None:
        halved.answered += 1
        if halved.answered == 2:
            self.server.pace.too_many(halved.inputs, halved.tokens)
            _log.info("%s takes %d texts at once, not more", self.server.where, halved.inputs)

    def _tell(self) -> None:
        if self.on_progress is not None:
            self.on_progress(self._done)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _finish(self, seconds: float, *, tell: bool) -> None:
        """Takes in what is under way, and hands it over; nothing more is asked."""
        self._stop.set()
        deadline = time.monotonic() + seconds
        while self._under_way and (left := deadline - time.monotonic()) > 0:
            for pack, outcome in self._arrived(min(left, _TICK_SECONDS)):
                try:
                    if isinstance(outcome, Reply):
                        self._take(pack, outcome)
                    elif isinstance(outcome, Failure) and outcome.lost:
                        self._unanswered.update(pack.positions)
                except Exception:  # noqa: BLE001 - what ended it is told already
                    _log.exception("an answer for %d texts could not be handed over", len(pack.positions))
            if tell:
                try:
                    self._tell()
                except Exception:  # noqa: BLE001 - as above
                    _log.exception("whoever waits for the last answers has gone")
                    tell, deadline = False, min(deadline, time.monotonic() + _LAST_ANSWERS_SECONDS)
        for pack in self._under_way.values():
            self._unanswered.update(pack.positions)

    def _failed_texts(self) -> MillraceError | None:
        """The error of the first text that was given up, naming it."""
        if not self._given_up:
            return None
        position, error = min(self._given_up, key=lambda found: found[0])
        more = f"; nor could {len(self._given_up) - 1} others" if len(self._given_up) > 1 else ""
        failed = type(error)(f"text {position} could not be embedded: {error}{more}")
        failed.__dict__["given_up"] = {place: str(why) for place, why in self._given_up}
        return failed

    def _blame(self, error: Exception) -> None:
        error.__dict__["unanswered"] = tuple(sorted(self._unanswered))
