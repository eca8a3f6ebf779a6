"""Stories of workers that stop at their seams, where no transaction is open: what a crash, a pause or a slow
dependency can happen between. One thread runs at a time, so a test decides every interleaving, and it is the same
every time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from pipeline.assembly import Services
from pipeline.embedding.base import Embedded, Role
from pipeline.testing import ConstantEmbedder, MemoryVectorStore
from pipeline.tools import Progress
from pipeline.vectors.base import Point

PATIENCE_SECONDS = 60.0


class Killed(BaseException):
    """What ends a story as SIGKILL does: nothing catches it, and nothing is handed back."""


class Story(threading.Thread):
    """Something that a process does. It runs in `advance`, until its next seam or its end, and stands still between."""

    def __init__(self, name: str, tell: Callable[[], Any]) -> None:
        super().__init__(name=name, daemon=True)
        self._tell = tell
        self._go = threading.Event()
        self._stopped = threading.Event()
        self._break: BaseException | None = None
        self.seam = ""  # where it stands; "" before its beginning and after its end
        self.over = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        self._wait()
        try:
            if self._break is None:
                self.result = self._tell()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - raised in the thread of the test
            self.error = error
        self.seam, self.over = "", True
        self._stopped.set()

    def pause(self, seam: str) -> None:
        """Called by the story's own thread: it stands still at this seam until the next `advance`."""
        self.seam = seam
        self._stopped.set()
        self._wait()
        self.seam = ""
        if self._break is not None:
            error, self._break = self._break, None
            raise error

    def advance(self, error: BaseException | None = None) -> None:
        """Runs to the next seam or to the end. error: what is raised at the seam where it stands."""
        if self.over:
            return
        self._break = error
        self._stopped.clear()
        self._go.set()
        assert self._stopped.wait(PATIENCE_SECONDS), f"the story {self.name} neither ends nor reaches a seam"
        if self.error is not None:
            raise self.error

    def finish(self) -> Any:
        """Runs to the end, through all seams. Returns what it came to."""
        while not self.over:
            self.advance()
        return self.result

    def _wait(self) -> None:
        self._go.wait()
        self._go.clear()


def seam(name: str) -> None:
    """A place where a story stands still; for any other thread, nothing."""
    current = threading.current_thread()
    if isinstance(current, Story):
        current.pause(name)


class SeamedEmbedder(ConstantEmbedder):
    """Stops before it embeds passages; fails on those with the word `poison`."""

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        if role == "passage":
            seam("embed")
            if any("poison" in text for text in texts):
                raise RuntimeError("cannot embed poison")
        return super().embed(texts, role, on_progress)


class SeamedStore(MemoryVectorStore):
    """Stops before and after every write, and before a search. `underway` holds what the story was about to write."""

    def __init__(self) -> None:
        super().__init__()
        self.underway: dict[Story, tuple[str, Sequence[Point]]] = {}

    def upsert(self, name: str, points: Sequence[Point], on_progress: Callable[[int], None] | None = None) -> None:
        story = threading.current_thread()
        if isinstance(story, Story):
            self.underway[story] = (name, points)
        seam("upsert")
        super().upsert(name, points, on_progress)
        seam("upserted")

    def delete(self, name: str, ids: Sequence[UUID]) -> None:
        seam("delete")
        super().delete(name, ids)
        seam("deleted")

    def search(self, *given: Any, **named: Any) -> Any:
        seam("search")
        return super().search(*given, **named)

    def arrive(self, name: str, points: Sequence[Point]) -> None:
        """A request that its sender did not live to see answered."""
        super().upsert(name, points)

    def held(self, name: str) -> dict[UUID, Point]:
        """Every point of a collection."""
        found = self._collections.get(name)
        return dict(found.points) if found else {}


def with_seams(services: Services) -> None:
    """Lets the services' extraction stop too: between what `prepare` read and what it writes."""
    extract = services.tools.extract

    def stopping(raws: Sequence[Any], progress: Progress) -> Iterator[Any]:
        seam("extract")
        return extract(raws, progress)

    services.__dict__["tools"] = replace(services.tools, extract=stopping)
