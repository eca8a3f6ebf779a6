"""One open shard of the engine, counted by its readers."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import qdrant_edge as edge


class Shard:
    """A directory and the engine on it. Never closed under a reader: `close` waits until the last one is out."""

    def __init__(self, directory: Path, engine: edge.EdgeShard) -> None:
        self.directory = directory
        self.engine = engine
        self._readers = 0
        self._changed = threading.Condition()

    @classmethod
    def create(cls, directory: Path, config: edge.EdgeConfig) -> Shard:
        directory.mkdir(parents=True)
        return cls(directory, edge.EdgeShard.create(str(directory), config))

    @classmethod
    def load(cls, directory: Path) -> Shard:
        """Open a shard, replaying its log. Raises the engine's errors, or its panic where it cannot be loaded."""
        return cls(directory, edge.EdgeShard.load(str(directory)))

    def enter(self) -> None:
        with self._changed:
            self._readers += 1

    def leave(self) -> None:
        with self._changed:
            self._readers -= 1
            self._changed.notify_all()

    @contextmanager
    def reading(self) -> Iterator[edge.EdgeShard]:
        """The engine, for as long as the caller has entered this shard already."""
        try:
            yield self.engine
        finally:
            self.leave()

    def close(self) -> None:
        """Wait for the readers, then flush and close. New readers must have been sent elsewhere before."""
        with self._changed:
            self._changed.wait_for(lambda: self._readers == 0)
        self.engine.close()

    def remove(self) -> None:
        self.close()
        shutil.rmtree(self.directory, ignore_errors=True)
