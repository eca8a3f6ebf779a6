"""Under which name a server answers: another one than before may mean that it has another model under its name now.

OpenAI answers with the model's name, with or without a version; others with an alias or a path. So what the name is
says nothing; only that it changes does. It is told, and nothing is refused: vectors of another size are anyway.
"""

from __future__ import annotations

from typing import Literal

from pipeline.embedding.openai.client import scrubbed
from pipeline.observe import count, logger

# The Batch API of a server may call it otherwise than its online one.
Way = Literal["online", "batch"]

# A server that answers with a new name each time is told of so often.
_MOST_TOLD = 10

_log = logger("openai")


class AnsweredNames:
    """What each server called a model in its first answer to this process. Thread-safe, and needs no lock."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str, Way], str] = {}
        self._told: dict[tuple[str, str, Way], set[str]] = {}

    def heard(self, endpoint: str, model: str, way: Way, name: object) -> bool:
        """model: as it was asked for; name: what the answer says, whatever it is. Whether it was told as a change."""
        if not isinstance(name, str) or not name.strip():
            return False
        key = (endpoint, model, way)
        first = self._first.setdefault(key, name)
        told = self._told.setdefault(key, set())
        if name == first or name in told or len(told) >= _MOST_TOLD:
            return False
        told.add(name)
        count("openai_model_changes", 1)
        _log.warning(
            "%s answers for %s as %s, and did as %s before: if it has another model now, its vectors cannot be "
            "compared with those that are stored (docs/providers.md)",
            endpoint,
            model,
            scrubbed(name),
            scrubbed(first),
        )
        return True


answered_names = AnsweredNames()
