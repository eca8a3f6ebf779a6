"""A workshop with embedders of several models, in which a re-embedding goes step by step, to any of its phases."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from workshop import COLLECTION, EXTRACTOR, Workshop

from pipeline import Client, Settings
from pipeline.assembly import Services
from pipeline.duties import Bounds
from pipeline.embedding.base import Embedded, Embedder, ModelSpec, Role
from pipeline.errors import ModelUnavailable
from pipeline.ledger.engine import Connection
from pipeline.reembedding import ReembeddingStatus, advance
from pipeline.testing import ConstantEmbedder
from tasks.maintenance import reconcile

# Where a re-embedding can be, in order.
PHASES = ("begun", "walking", "walked", "half", "built", "auditing", "switching", "held", "switched")


class Model(ConstantEmbedder):
    """poison: it fails on every text that has this word. during: called once, while it embeds passages."""

    poison: str | None = None
    during: Callable[[], object] | None = None

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        if role == "passage" and self.poison is not None and any(self.poison in text for text in texts):
            raise RuntimeError(f"cannot embed {self.poison}")
        if role == "passage" and self.during is not None:
            during, self.during = self.during, None
            during()
        return super().embed(texts, role, on_progress)


class ManyModels(Services):
    """The first model is that of the settings; the others are found by name."""

    def __init__(self, settings: Settings, models: Sequence[Model]) -> None:
        super().__init__(settings, embedder=models[0], extractor=EXTRACTOR)
        self._models = {model.spec.name: model for model in models}

    def spec_for(self, provider: str, model: str | None = None, dimensions: int | None = None) -> ModelSpec:
        if model is None:
            return super().spec_for(provider, model, dimensions)
        if model not in self._models:
            raise ModelUnavailable(f"no model {model}")
        return self._models[model].spec

    def embedder(self, model: Mapping[str, Any], provider: str | None = None) -> Embedder:
        return self._models[str(model["name"])]


class Killed(BaseException):
    """As if the process were gone here."""


class TwoModels(Workshop):
    """Of a collection of model `old` that is to get the vectors of `new`, or the other way round."""

    def __init__(self, settings: Settings, new: Model | None = None, old: Model | None = None) -> None:
        self.old = self.embedder = old or Model(8, name="old")
        self.new = new or Model(12, name="new")
        self.services = ManyModels(settings, [self.old, self.new])
        self.client = Client(services=self.services)
        self.settings = settings

    def begin(self, model: str = "new", **options: Any) -> ReembeddingStatus:
        return self.client.reembed(COLLECTION, model, **options)

    def status(self) -> ReembeddingStatus:
        return self.client.reembedding(COLLECTION)

    def step(self, rows: int = 3) -> dict[str, int]:
        """One step of the duty, of so many rows."""
        return advance(self.services, Bounds(rows, 0.0), moment_seconds=0.0)

    def embed_again(self, most: int = 1000) -> int:
        """Performs up to so many batches of re-embeddings, and no other. Returns how many."""
        rows = self.sql(
            "SELECT id FROM batches WHERE state = 'ready' AND reembedding_id IS NOT NULL ORDER BY id LIMIT %(most)s",
            most=most,
        )
        for row in rows:
            self.perform(row["id"], alone=True)
        return len(rows)

    def switch(self) -> ReembeddingStatus:
        """Until the collection has the new vectors; nothing but re-embedding is done."""
        return self._until(lambda found: found.switched)

    def finish(self) -> ReembeddingStatus:
        """Until nothing of it is left to be done, and then everything else."""
        found = self._until(lambda found: found.ended_at is not None)
        self.sql("UPDATE batches SET next_attempt_at = NULL WHERE state = 'ready'")
        self.work()
        return found

    def _until(self, done: Callable[[ReembeddingStatus], bool]) -> ReembeddingStatus:
        for _ in range(300):
            found = self.status()
            if done(found):
                return found
            self.step(100)
            self.embed_again()
        raise AssertionError(f"it does not end: {found}")

    def reach(self, phase: str) -> None:
        """From its beginning to the phase; nothing but re-embedding is done."""
        arrived: Mapping[str, Callable[[], bool]] = {
            "begun": lambda: True,
            "walking": lambda: self.row()["after"] is not None,
            "walked": lambda: self.row()["walked"],
            "half": lambda: self.row()["walked"] and self.embed_again(3) == 3,
            "built": lambda: self.row()["walked"] and not self.embed_again(),
            "auditing": lambda: self.row()["state"] == "auditing",
            "switching": lambda: self.row()["state"] == "switching",
            "held": lambda: self.row()["state"] == "switching",
            "switched": lambda: self.row()["state"] == "switched",
        }
        for _ in range(300):
            if arrived[phase]():
                break
            self.step()
            if PHASES.index(phase) > PHASES.index("half"):
                self.embed_again()
        else:
            raise AssertionError(f"{phase} is not reached: {self.status()}")
        if phase == "held":
            self.sql("UPDATE reembeddings SET held_until = clock_timestamp() + interval '20 s' WHERE ended_at IS NULL")

    def row(self) -> dict[str, Any]:
        return self.sql("SELECT * FROM reembeddings ORDER BY id DESC LIMIT 1")[0]

    def physical(self) -> str:
        return str(self.value("SELECT physical FROM collections WHERE name = %(name)s", name=COLLECTION))

    def model(self) -> str:
        return str(self.value("SELECT model ->> 'name' FROM collections WHERE name = %(name)s", name=COLLECTION))

    def passages(self) -> list[str]:
        """Every passage that was embedded by either model."""
        return [
            text for model in (self.old, self.new) for role, texts in model.calls if role == "passage" for text in texts
        ]

    # -- deaths --------------------------------------------------------------------------------------------------

    def die(self, work: Callable[[], object], chance: random.Random) -> bool:
        """Does the work in a process that may be killed around one of its first transactions. False where it was."""
        left, after = chance.randint(1, 9), chance.random() < 0.5
        ledger = self.services.ledger
        transaction = ledger.transaction

        @contextmanager
        def deadly() -> Iterator[Connection]:
            nonlocal left
            left -= 1
            with transaction() as connection:
                yield connection
                if left == 0 and not after:
                    raise Killed
            if left == 0:
                raise Killed

        ledger.transaction = deadly  # type: ignore[method-assign]
        try:
            work()
        except Killed:
            return False
        finally:
            ledger.transaction = transaction  # type: ignore[method-assign]
        return True

    def bury(self) -> None:
        """What the dead held is free at once, and what waits for its next attempt does not."""
        self.sql("UPDATE batches SET lease_until = clock_timestamp() - interval '1 minute' WHERE state = 'running'")
        reconcile(self.services, Bounds(1000, 10.0))
        self.sql("UPDATE batches SET next_attempt_at = NULL WHERE state = 'ready'")
