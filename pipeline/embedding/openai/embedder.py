"""The provider `openai`: vectors bought online, of OpenAI or whoever speaks its protocol."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.document import encodable
from pipeline.embedding.base import Embedded, Embedder, ModelRun, ModelSpec, Role, checked
from pipeline.embedding.openai.asking import Server
from pipeline.embedding.openai.besides import Besides
from pipeline.embedding.openai.client import endpoint
from pipeline.embedding.openai.limiter import Limiter
from pipeline.embedding.openai.purchase import Part, Purchase
from pipeline.embedding.openai.requests import Pace
from pipeline.embedding.openai.spec import PROVIDER, limit_scope, served_name
from pipeline.embedding.openai.tokens import count_tokens, counts_exactly
from pipeline.embedding.windows import any_too_long, checked_texts, cut_queries
from pipeline.errors import ModelUnavailable
from pipeline.observe import logger
from pipeline.settings import OpenAISettings, RedisSettings

# A searcher does not wait longer than this for a limit or a server; an ingest does (`patience_seconds`).
_QUERY_PATIENCE_SECONDS = 10.0
# How much a new measurement of the speed counts.
_MEMORY = 0.8
_TELLING_TOKENS = 1000
# Two ways to compute the same model differ in the last digits: cosines of 0.9999 and more.
SAME_COSINE = 0.999
_PROBES = (
    "The gate decides how much water reaches the wheel.",
    "def wait(job, seconds):  # until it is done, or the time is up",
    "Die Mühle mahlt langsam – 磨坊 🌾",
    "Whoever is late waits: " + "the miller opens the gate in the morning, when the first carts come down. " * 8,
)

_log = logger("openai")


class OpenAIEmbedder:
    """Thread-safe; opened at its first use. close() closes its connections."""

    def __init__(
        self,
        settings: OpenAISettings,
        redis: RedisSettings,
        spec: ModelSpec,
        *,
        local: Callable[[], Embedder] | None = None,
        on_besides: Callable[[Besides], None] = lambda _: None,
    ) -> None:
        """spec: a model of the endpoint, or a local one that `openai.same_as` says it has too; then `local` gives that
        one, which counts tokens and is compared with before the first use. on_besides: told, in the calling thread,
        what is paid for and is none of the texts that were asked for; it raises nothing.

        Raises ModelUnavailable where the endpoint does not have the model.
        """
        self.settings = settings
        self.spec = spec
        self._served = served_name(spec, settings)
        if spec.provider != PROVIDER and local is None:
            raise ModelUnavailable(
                f"{spec.name} is not here to be compared with {self._served} of {endpoint(settings)}"
            )
        self._local = local if spec.provider != PROVIDER else None
        self._same = spec.provider == PROVIDER
        self._comparing = threading.Lock()
        self._on_besides = on_besides
        self._speed: float | None = None
        self.limiter = Limiter(redis, settings, limit_scope(spec, settings))
        self.pace = Pace(settings.in_flight, settings.request_inputs, settings.request_tokens, settings.target_seconds)
        self._server = Server(spec, settings, self.limiter, self.pace)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens a second that came lately, with the waits for limits; None before the first."""
        return self._speed

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as a passage: never truncated, never too few (`tokens.counts_exactly`)."""
        return self._count([encodable(text) for text in texts], "passage")

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        """The vectors of the texts: float32[n, dim], L2-normalised, in order; `tokens` of each as billed.

        A query over the model's limit is cut into windows, as the local embedder does it; a passage is refused.
        Raises InvalidRequest, InvalidVectors, ProviderUnavailable and its kinds, ModelUnavailable, CollectionMismatch.
        """
        plain = checked_texts(texts)
        counts = self._count(plain, role)
        if not self._any_too_long(counts, role):
            return self._collected(plain, counts, role, on_progress)
        limit, name = self.spec.max_tokens, self._served
        windows = cut_queries(plain, counts, limit, name, lambda pieces: self._count(pieces, "query"))
        found = self._collected(windows.texts, windows.weights, role, None)
        if on_progress is not None:
            on_progress(len(texts))
        return Embedded(windows.merged(found.vectors, self.spec), found.runs, windows.summed(found.tokens))

    def buy(
        self,
        texts: Sequence[str],
        role: Role,
        on_part: Callable[[Part], None],
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        """Embeds the texts, and hands over each answer as it comes, in this thread, before anything is asked again.

        No text may be over the model's limit. on_progress is told at least twice a second how many texts are done, and
        may raise to end it. Raises as `embed`, when all that was under way has been handed over; the error has
        `unanswered`, the positions of texts that were sent, did not come, and may be paid for; where it is single texts
        that failed, `given_up` has them: position -> why.
        """
        plain = checked_texts(texts)
        counts = self._count(plain, role)
        self._any_too_long(counts, "passage")
        self._purchase(plain, counts, role, on_part, on_progress)

    def close(self) -> None:
        self._server.close()

    # -- counting ----------------------------------------------------------------------------------------------------

    def _count(self, texts: Sequence[str], role: Role) -> list[int]:
        """Tokens of what is sent for these texts."""
        if self._local is None:
            return count_tokens([self.spec.prefix(role) + text for text in texts], self.settings, self._served)
        if role == "passage":
            return self._local().count_tokens(texts)
        # It counts the prefix of a passage besides: a few tokens too many, never too few.
        return self._local().count_tokens([self.spec.query_prefix + text for text in texts])

    def _any_too_long(self, counts: Sequence[int], role: Role) -> bool:
        exact = self._local is not None or counts_exactly(self.settings, self._served)
        return any_too_long(counts, self.spec.max_tokens, role, self._served, exact=exact)

    # -- buying ------------------------------------------------------------------------------------------------------

    def _collected(
        self, texts: Sequence[str], counts: Sequence[int], role: Role, on_progress: Callable[[int], None] | None
    ) -> Embedded:
        vectors = np.empty((len(texts), self.spec.dimensions), np.float32)
        tokens = [0] * len(texts)
        runs: list[ModelRun] = []

        def take(part: Part) -> None:
            vectors[list(part.positions)] = part.vectors
            for position, number in zip(part.positions, part.tokens, strict=True):
                tokens[position] = number
            runs.append(ModelRun(len(part.positions), sum(part.tokens), part.seconds))
            if on_progress is not None:
                on_progress(sum(run.texts for run in runs))

        self._purchase(texts, counts, role, take, None)
        return Embedded(checked(vectors, len(texts), self.spec), tuple(runs), tuple(tokens))

    def _purchase(
        self,
        texts: Sequence[str],
        counts: Sequence[int],
        role: Role,
        on_part: Callable[[Part], None],
        on_progress: Callable[[int], None] | None,
    ) -> None:
        if not texts:
            return
        self.be_same(on_progress)
        query = role == "query"
        settings = self.settings
        if query:
            patience = min(_QUERY_PATIENCE_SECONDS, settings.patience_seconds)
            settings = settings.model_copy(update={"patience_seconds": patience})
        began, done = time.monotonic(), 0

        def take(part: Part) -> None:
            nonlocal done
            done += sum(part.tokens)
            on_part(part)

        sent = [self.spec.prefix(role) + text for text in texts]
        try:
            self._run(Purchase(self._server, settings, sent, counts, query, take, on_progress))
        finally:
            if not query:
                self._measured(done, time.monotonic() - began)

    def _run(self, purchase: Purchase) -> None:
        """Tells also what it has asked for beside its texts."""
        try:
            purchase.run()
        finally:
            for besides in purchase.besides:
                self._on_besides(besides)

    def _measured(self, tokens: int, seconds: float) -> None:
        if tokens >= _TELLING_TOKENS and seconds > 0:
            speed = tokens / seconds
            self._speed = speed if self._speed is None else _MEMORY * self._speed + (1 - _MEMORY) * speed

    # -- a model that is served here and there -----------------------------------------------------------------------

    def be_same(self, on_progress: Callable[[int], None] | None = None) -> None:
        """Before the first use of a local model by its name there: both give a few texts the same vectors.

        Raises ModelUnavailable where they do not, or where the local one is not here to compare: work waits, and no
        document is blamed for a setting.
        """
        if self._same:
            return
        with self._comparing:
            if self._same:
                return
            assert self._local is not None
            plain = [text for text, count in zip(_PROBES, self._count(_PROBES, "passage"), strict=True)
                     if count <= self.spec.max_tokens]  # fmt: skip
            here = self._local().embed(plain, "passage").vectors
            there = np.zeros_like(here)

            sent = [self.spec.passage_prefix + text for text in plain]
            counts = self._count(plain, "passage")

            def take(part: Part) -> None:
                there[list(part.positions)] = part.vectors
                doubted = [part.doubted * number for number in (len(part.tokens), sum(part.tokens))]
                self._on_besides(Besides(len(part.tokens), sum(part.tokens), part.requests, *doubted))

            try:
                self._run(Purchase(self._server, self.settings, sent, counts, False, take, on_progress))
            except Exception as error:
                lost = [counts[position] for position in getattr(error, "unanswered", ())]
                self._on_besides(Besides(doubtful_texts=len(lost), doubtful_tokens=sum(lost)))
                raise
            least = float((here * there).sum(axis=1).min())
            if least < SAME_COSINE:
                raise ModelUnavailable(
                    f"{self._served} of {endpoint(self.settings)} is not {self.spec.name}: the vectors of a text are "
                    f"{least:.4f} alike, and not {SAME_COSINE}. Take it out of MILLRACE_OPENAI__SAME_AS."
                )
            _log.info("%s of %s is %s (%.5f alike)", self._served, endpoint(self.settings), self.spec.name, least)
            self._same = True
