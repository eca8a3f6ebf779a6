"""Background optimisation: one collection at a time, in a child process, while searches and writes go on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from weakref import WeakKeyDictionary

from pipeline.observe import Timings, logger
from workers.embedded.vector_server.collection import Collection, Copy
from workers.embedded.vector_server.errors import Refused, is_panic
from workers.embedded.vector_server.files import CopyStopped
from workers.embedded.vector_server.room import size_of
from workers.embedded.vector_server.store import Store

log = logger("vector_server.optimizer")

LOOK_SECONDS = 0.25
# After a failure (a full disk, say) the collection is left alone, longer each time.
FIRST_PAUSE = 30.0
LONGEST_PAUSE = 1800.0


class Optimizer(threading.Thread):
    """Looks for collections that are due. `stop` ends the child, too."""

    def __init__(self, store: Store) -> None:
        super().__init__(name="optimizer", daemon=True)
        self._store = store
        self._stopping = threading.Event()
        # Collection -> (not before, length of the next pause)
        self._pauses: WeakKeyDictionary[Collection, tuple[float, float]] = WeakKeyDictionary()

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            for collection in self._store.collections():
                not_before, pause = self._pauses.get(collection, (0.0, FIRST_PAUSE))
                if self._stopping.is_set() or not collection.due or time.monotonic() < not_before:
                    continue
                if self._attempt(collection):
                    self._pauses.pop(collection, None)
                else:
                    self._pauses[collection] = (time.monotonic() + pause, min(2 * pause, LONGEST_PAUSE))

    def _attempt(self, collection: Collection) -> bool:
        collection.optimizing = True
        try:
            self._optimize(collection)
        except CopyStopped:
            return True
        except BaseException as error:
            if collection.dropped.is_set() or self._stopping.is_set():
                return True
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            collection.optimizer_error = f"Service internal error: {error}"
            log.exception("collection %s could not be optimised; it is served as it is", collection.name)
            return False
        else:
            collection.optimizer_error = None
            return True
        finally:
            collection.optimizing = False

    def _optimize(self, collection: Collection) -> None:
        timings = Timings()
        self._store.room.check(wanted=size_of(collection.root))
        with timings.step("copy"):
            copy = collection.start_copy(self._stopping.is_set)
        taken = False
        try:
            with timings.step("child"):
                offset = self._run_child(collection, copy)
            with timings.step("swap"):
                taken = collection.take_over(copy, offset)
            if not taken:
                raise Refused("a change could not be written to the copy")
        finally:
            if not taken:
                collection.abandon(copy)
        log.info("optimised %s at %d points: %s ms", collection.name, copy.points, timings.milliseconds())

    def _run_child(self, collection: Collection, copy: Copy) -> int:
        """Returns the offset that the child reached. Raises Refused for a child that failed, CopyStopped."""
        module = "workers.embedded.vector_server.optimize_copy"
        paths = (str(copy.directory), str(copy.delta), str(copy.spec))
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(os.getpid()), *paths],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with child:
            try:
                while True:
                    try:
                        output, complaint = child.communicate(timeout=LOOK_SECONDS)
                        break
                    except subprocess.TimeoutExpired:
                        if self._stopping.is_set() or collection.dropped.is_set():
                            raise CopyStopped from None
            finally:
                child.kill()
        if child.returncode != 0:
            raise Refused(f"the optimising process ended with {child.returncode}: {complaint.strip()[-500:]}")
        return int(output)
