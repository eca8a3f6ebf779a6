"""One request for the vectors of a few texts: its turn under the limits, the call, its answer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.embedding.base import ModelSpec
from pipeline.embedding.openai import answers, client
from pipeline.embedding.openai.answers import Answer, ErrorBody
from pipeline.embedding.openai.client import Failure, endpoint, open_client
from pipeline.embedding.openai.limiter import Limiter
from pipeline.embedding.openai.manners import Manner, Manners
from pipeline.embedding.openai.names import answered_names
from pipeline.embedding.openai.requests import Pace, share_out
from pipeline.embedding.openai.spec import served_name
from pipeline.errors import InvalidVectors, MillraceError, ProviderLimited, ProviderUnavailable
from pipeline.observe import count, operation
from pipeline.settings import OpenAISettings

if TYPE_CHECKING:
    import openai

# Where a server refuses for now and does not say for how long: seconds after the first time, doubled each time.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_STOP_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Question:
    """texts: as they are sent, prefixes included; tokens: of each, as counted here. query: goes before what is none."""

    texts: Sequence[str]
    tokens: Sequence[int]
    query: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """vectors: float32[n, dim]; rows of `bad` (row -> why) are nothing. tokens: of each text, as billed.

    seconds: of the call alone. requests: that it took. lost: how many of them may have been paid for besides.
    """

    vectors: NDArray[np.float32]
    tokens: Sequence[int]
    seconds: float
    requests: int
    lost: int
    bad: Mapping[int, str] = field(default_factory=dict)


class Server:
    """The server, as one process asks it. Thread-safe; opened at its first use, and again in a forked process."""

    _client: openai.OpenAI | None

    def __init__(self, spec: ModelSpec, settings: OpenAISettings, limiter: Limiter, pace: Pace) -> None:
        self.limiter = limiter
        self.pace = pace
        self.manners = Manners(spec, settings)
        self._spec = spec
        self._settings = settings
        # Of all that is bought here at once; queries are few, and wait for nothing here.
        self._room = threading.BoundedSemaphore(settings.in_flight)
        self._served = served_name(spec, settings)
        self._begin()

    @property
    def where(self) -> str:
        return endpoint(self._settings)

    def ask(self, question: Question, deadline: Callable[[], float], stop: threading.Event) -> Reply:
        """Waits for its turn, asks, and takes in what the answer says of the limits.

        deadline: of time.monotonic(), asked again while it waits. Raises Failure.
        """
        with nullcontext() if question.query else self._place(stop):
            return self._ask(question, deadline, stop)

    def close(self) -> None:
        if self._pid == os.getpid():
            with self._lock:
                if self._client is not None:
                    self._client.close()
                self._client = None
            self.limiter.close()

    # ----------------------------------------------------------------------------------------------------------------

    def _ask(self, question: Question, deadline: Callable[[], float], stop: threading.Event) -> Reply:
        tried = _Tried()

        def send(manner: Manner, doubtful: bool) -> Answer:
            self._take_turn(question, deadline, stop)
            tried.requests += 1
            try:
                return self._send(question, manner, doubtful, tried)
            except Failure as failure:
                tried.lost += failure.lost
                raise

        try:
            answer = self.manners.ask(send)
        except Failure as failure:
            failure.lost = tried.lost > 0
            raise
        tokens = answer.tokens if answer.tokens is not None else sum(question.tokens)
        if not question.query:
            self.pace.answered(sum(question.tokens), tried.seconds)
        self._refused = 0
        return Reply(
            answer.vectors,
            share_out(tokens, question.tokens),
            tried.seconds,
            tried.requests,
            tried.lost,
            answer.bad,
        )

    @contextmanager
    def _place(self, stop: threading.Event) -> Iterator[None]:
        """One of the `in_flight` places of this process."""
        while not self._room.acquire(timeout=_STOP_SECONDS):
            if stop.is_set():
                raise Failure(ProviderLimited("the request was called off while it waited for its turn"))
        try:
            yield
        finally:
            self._room.release()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._client = None
        self._refused = 0  # 429s in a row

    def _opened(self) -> openai.OpenAI:
        if self._pid != os.getpid():  # sockets of the parent are not ours
            self._begin()
        with self._lock:
            if self._client is None:
                try:
                    self._client = open_client(self._settings)
                except MillraceError as error:
                    raise Failure(error) from None
            return self._client

    def _take_turn(self, question: Question, deadline: Callable[[], float], stop: threading.Event) -> None:
        while True:
            until = deadline()
            try:
                self.limiter.acquire(1, sum(question.tokens), query=question.query, deadline=until, stop=stop)
            except ProviderLimited as error:
                if stop.is_set() or deadline() <= until:
                    raise Failure(error) from None
                continue  # others of this work came through meanwhile: it waits on
            return

    def _send(self, question: Question, manner: Manner, doubtful: bool, tried: _Tried) -> Answer:
        failure: Failure | None = None
        # The operation is told the error as it is in our words.
        with suppress(MillraceError), operation("openai.request"):
            try:
                return self._call(question, manner, doubtful, tried)
            except Failure as found:
                failure = found
                raise found.error from None
        assert failure is not None
        count("openai_requests", 1, "limited" if isinstance(failure.error, ProviderLimited) else "failed")
        raise failure

    def _call(self, question: Question, manner: Manner, doubtful: bool, tried: _Tried) -> Answer:
        charged, number = sum(question.tokens), len(question.texts)
        what = f"embedding {number} texts with {self._served} at {self.where}"
        opened = self._opened()
        began = time.monotonic()
        try:
            response = opened.embeddings.with_raw_response.create(
                input=list(question.texts), model=self._served, **manner.parameters()
            )
            tried.seconds = time.monotonic() - began
            answer = self._read(response.content, number, doubtful, what)
        except Exception as error:  # noqa: BLE001 - each becomes one of ours, or is raised as it is
            failure = error if isinstance(error, Failure) else client.translate(error, what)
            self._heed(failure, getattr(getattr(error, "response", None), "headers", {}))
            raise failure from None
        used = answer.tokens if answer.tokens is not None else charged
        self.limiter.learn(response.headers, used - charged)
        answered_names.heard(self.where, self._served, "online", answer.model)
        count("openai_requests", 1, "answered")
        return answer

    def _read(self, body: bytes, number: int, doubtful: bool, what: str) -> Answer:
        try:
            return answers.read(body, number, self._spec.dimensions, self._served, doubt_base64=doubtful)
        except ErrorBody as told:
            raise client.told(told.error, what) from None
        except InvalidVectors as error:
            raise Failure(error, lost=True, status=200) from None
        except ValueError as error:
            garbage = ProviderUnavailable(f"{what}: answered with something that is no answer: {error}")
            raise Failure(garbage, lost=True, status=200) from None

    def _heed(self, failure: Failure, headers: Mapping[str, Any]) -> None:
        """What a failure says about the pace: for this process, and where the server refuses, for the cluster."""
        if isinstance(failure.error, ProviderLimited):
            self._refused += 1
            pause = failure.error.seconds
            if pause is None:
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._refused - 1))
            self.limiter.pause(pause)
            self.limiter.learn(headers)
            self.pace.failed()
        elif isinstance(failure.error, ProviderUnavailable):
            self.pace.failed()


@dataclass(slots=True)
class _Tried:
    requests: int = 0
    lost: int = 0
    seconds: float = 0.0
