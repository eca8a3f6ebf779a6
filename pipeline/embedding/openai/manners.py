"""How a server wants to be asked: whether it takes `dimensions`, and whether its base64 can be read.

OpenAI's own is known. Of any other the first answer tells: a few texts are asked for in the manner that would be best,
and in a plainer one where that is refused. A probe is work that was to be done anyway; nothing is paid for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.embedding.base import ModelSpec
from pipeline.embedding.openai.answers import Answer
from pipeline.embedding.openai.client import Failure, endpoint
from pipeline.embedding.openai.spec import NATIVE_DIMENSIONS, PROVIDER, is_openai, served_name
from pipeline.errors import InvalidRequest, InvalidVectors
from pipeline.observe import logger
from pipeline.settings import OpenAISettings

# Texts of the first request to a server that is not known yet.
PROBE_TEXTS = 16

_log = logger("openai")


@dataclass(frozen=True, slots=True)
class Manner:
    """base64: ask for vectors in that form, a third of the size. dimensions: to ask for; None: say nothing of them."""

    base64: bool
    dimensions: int | None

    def parameters(self) -> dict[str, Any]:
        given: dict[str, Any] = {"encoding_format": "base64" if self.base64 else "float"}
        if self.dimensions is not None:
            given["dimensions"] = self.dimensions
        return given


def candidates(spec: ModelSpec, settings: OpenAISettings) -> list[Manner]:
    """The manners to try, the best one first; a single one where there is nothing to find out."""
    native = NATIVE_DIMENSIONS.get(served_name(spec, settings))
    chosen = spec.provider == PROVIDER and native != spec.dimensions
    wanted = spec.dimensions if chosen else None
    if is_openai(settings):
        return [Manner(True, wanted)]
    # Of a model that is not OpenAI's it is not known whether the dimensions are its own: servers refuse to be told.
    sizes = [wanted, None] if chosen and native is None else [wanted]
    return [Manner(base64, size) for size in sizes for base64 in (True, False)]


class Manners:
    """What is known of the server, in this process. Thread-safe."""

    def __init__(self, spec: ModelSpec, settings: OpenAISettings) -> None:
        self._candidates = candidates(spec, settings)
        self._where = endpoint(settings)
        self._lock = threading.Lock()
        self._found = self._candidates[0] if len(self._candidates) == 1 else None

    @property
    def found(self) -> Manner | None:
        """How to ask; None before the first answer."""
        return self._found

    def ask(self, send: Callable[[Manner, bool], Answer]) -> Answer:
        """The answer of `send(manner, doubtful)`, in the manner that is known, or that is found out by it.

        While it is found out, by one thread, the others wait. Raises the Failure that `send` raises; where every manner
        is refused, or brings vectors of another size, that of the plainest one.
        """
        if self._found is not None:
            return send(self._found, False)
        with self._lock:
            if self._found is None:
                return self._find(send)
        return send(self._found, False)

    def _find(self, send: Callable[[Manner, bool], Answer]) -> Answer:
        refused: Failure | None = None
        for manner in self._candidates:
            try:
                answer = send(manner, True)
            except Failure as failure:
                if not isinstance(failure.error, InvalidRequest | InvalidVectors):
                    raise
                refused = failure
                continue
            self._found = Manner(manner.base64 and answer.as_base64, manner.dimensions)
            _log.info(
                "%s is asked for %s%s",
                self._where,
                "base64" if self._found.base64 else "numbers",
                "" if manner.dimensions is None else f" of {manner.dimensions} dimensions",
            )
            return answer
        assert refused is not None
        raise refused
