"""Extraction in a process of its own: a document that never ends, crashes its reader or eats memory costs only itself.

    for outcome in Extractor(settings).extract_many(documents, progress): ...

One child (see `child`) serves many documents. A few are sent ahead, so that neither side waits for the other; they are
answered in order, so the first unanswered one is the one being read, and the one to blame where the child is lost.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from pipeline.errors import InvalidDocument
from pipeline.extract import Extracted, Raw
from pipeline.extract.isolation.child_process import PROGRAM, ChildProcess, Lost
from pipeline.settings import ExtractionSettings

Progress = Callable[[], None]

# A child is replaced now and then, whatever it seems to be like: what a reader leaks is not ours to know.
RETIRE_DOCUMENTS = 2000
# And where, with nothing to do, it holds more than this share of what a document may take.
RETIRE_MEMORY = 0.25


class Extractor:
    """Reads documents in a child process, started at the first one. Thread-safe; close() ends the child.

    settings: what one document may take. program: the child's command line, before its options.
    """

    def __init__(self, settings: ExtractionSettings, program: Sequence[str] = PROGRAM) -> None:
        self._settings = settings
        self._program = program
        self._lock = threading.Lock()
        self._idle: list[ChildProcess] = []
        self._closed = False

    def extract_many(self, documents: Sequence[Raw], progress: Progress) -> Iterator[Extracted | InvalidDocument]:
        """What `extract` says to each document, in order: its text, or the InvalidDocument it raises.

        Beside those of `extract`: ExtractionOverLimit for a document that took more than the settings allow, and
        ExtractionFailed for one on which the child died twice (once may have been somebody from outside).
        `progress` is called several times a second, and what it raises ends the extraction. Raises
        ExtractorUnavailable where no child can be started.
        """
        waiting = deque(documents)
        strikes = 0  # children that the first of them has lost
        while waiting:
            child, failed = self._take(progress), None
            try:
                for outcome in child.read(tuple(waiting), progress):
                    waiting.popleft()
                    strikes = 0
                    yield outcome
            except Lost as lost:
                strikes += 1
                if lost.certain or strikes > 1:
                    failed = lost.reason
            finally:
                self._put_back(child)
            if failed is not None:
                waiting.popleft()
                strikes = 0
                yield failed

    def close(self) -> None:
        """Ends the children that have nothing to do; those that work end with their extraction."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.leave()

    def _take(self, progress: Progress) -> ChildProcess:
        while True:
            with self._lock:
                if not self._idle:
                    break
                child = self._idle.pop()
            if child.alive():
                return child
            child.kill()
        return ChildProcess(self._settings, self._program, progress)

    def _put_back(self, child: ChildProcess) -> None:
        if not child.idle():
            child.kill()
            return
        resting = self._settings.memory_mb * RETIRE_MEMORY
        worn = child.answered >= RETIRE_DOCUMENTS or child.memory_mb() > resting
        with self._lock:
            keep = not worn and not self._closed
            if keep:
                self._idle.append(child)
        if not keep:
            child.leave()
