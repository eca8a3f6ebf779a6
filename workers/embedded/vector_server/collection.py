"""One collection on disk: its configuration, the shard that is current, and maybe a copy being optimised.

    collection.pb           the CreateCollection request that made it, as changed by updates
    state.json              {"shard": directory of the current one, "optimized": points at the last optimisation}
    shard-<hex>/            a shard; exactly one is current
    delta-<hex>             changes made while the copy shard-<hex> is optimised

`state.json` is replaced atomically: after a kill at any moment it names a shard with everything that was acknowledged.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote
from uuid import uuid4

import qdrant_edge as edge
from qdrant_client import grpc as api

from pipeline.observe import logger
from workers.embedded.vector_server.changes import Change, read_records, write_record
from workers.embedded.vector_server.config import engine_config, schema
from workers.embedded.vector_server.errors import (
    Broken,
    Refused,
    Stopping,
    is_panic,
    missing_collection,
    missing_point,
)
from workers.embedded.vector_server.files import copy_tree, write_atomically
from workers.embedded.vector_server.shard import Shard
from workers.embedded.vector_server.values import PointId

log = logger("vector_server.collection")

# Optimising copies the whole shard, so each time waits for more new points than the last, up to this many thresholds.
MAX_THRESHOLDS = 20

_SPEC = "collection.pb"
_STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of the current shard, to be optimised elsewhere; it holds `points`, of which `pending` were new."""

    directory: Path
    delta: Path
    spec: Path
    points: int
    pending: int
    reconfigured: bool


class Collection:
    """Reads and writes on the current shard. Thread-safe: readers wait for nobody, writers for each other."""

    def __init__(self, root: Path, optimize_at: int) -> None:
        """Open what is on disk. Raises nothing for what cannot be read or loaded: the collection is `broken` then."""
        self.root = root
        self.name = unquote(root.name)
        self.spec = api.CreateCollection(collection_name=self.name)
        self.schema = schema(self.spec)
        self.broken: str | None = None
        self.optimizing = False
        self.optimizer_error: str | None = None
        self.dropped = threading.Event()
        self._optimize_at = optimize_at
        self._writing = threading.RLock()
        self._switching = threading.Lock()
        self._delta: BinaryIO | None = None
        self._delta_complete = True
        self._unflushed = False
        self._optimized = 0
        self._pending = 0
        self._reconfigured = False
        self._shard: Shard | None = None
        self._closed = False
        try:
            self._open()
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            self._break(error)

    @classmethod
    def create(cls, root: Path, spec: api.CreateCollection) -> None:
        """Write a new collection into `root`, which must not exist. Raises Unsupported and the engine's errors."""
        root.mkdir(parents=True)
        name = _new_name()
        Shard.create(root / name, engine_config(spec)).close()
        write_atomically(root / _SPEC, spec.SerializeToString())
        write_atomically(root / _STATE, json.dumps({"shard": name, "optimized": 0}).encode())

    def _open(self) -> None:
        self.spec = api.CreateCollection.FromString((self.root / _SPEC).read_bytes())
        self.name = self.spec.collection_name
        self.schema = schema(self.spec)
        state = json.loads((self.root / _STATE).read_bytes())
        current = self.root / state["shard"]
        shard = Shard.load(current)
        for path in self.root.iterdir():  # what an interrupted optimisation left; only after the current one has loaded
            if path.name.startswith("shard-") and path != current:
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith("delta-"):
                path.unlink(missing_ok=True)
        self._shard = shard
        self._optimized = int(state["optimized"])
        self._pending = max(0, shard.engine.info().points_count - self._optimized)

    def _break(self, error: BaseException) -> Broken:
        """Serve this collection no more, and say so: after a panic the engine's locks and its log cannot be trusted."""
        if self.broken is None:
            self.broken = " ".join(str(error).split()) or repr(error)
            log.error("collection %s is not served any more: %s (files in %s)", self.name, self.broken, self.root)
        return Broken(
            f"Service internal error: Collection `{self.name}` is not served: {self.broken}. "
            "Restart the vector server to try again, or delete the collection and rebuild it from the ledger."
        )

    def _current(self) -> Shard:
        if self.dropped.is_set():
            raise missing_collection(self.name)
        if self._closed:
            raise Stopping(f"Collection `{self.name}` is closed: the vector server is stopping")
        if self.broken is not None or self._shard is None:
            raise self._break(RuntimeError("the shard is not open"))
        return self._shard

    # -- reading and writing ------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[edge.EdgeShard]:
        """The engine for one request. Raises Broken, also when the engine panics inside, and NotFound once dropped."""
        with self._switching:
            shard = self._current()
            shard.enter()
        with shard.reading() as engine:
            try:
                yield engine
            except BaseException as error:
                if is_panic(error):
                    raise self._break(error) from None
                raise

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply validated changes in order; they are in the engine's log when this returns.

        Raises NotFound for points that a change needs and that are not there, Broken, and the engine's own errors.
        """
        with self._writing:
            engine = self._current().engine
            try:
                for change in changes:
                    self._require(engine, change.requires)
                    self._unflushed = True
                    self._run(engine, change)
                    self._follow(change)
            except Refused:
                raise
            except BaseException as error:
                self._delta_complete = False  # applied in part: the copy cannot follow, so it is given up
                if is_panic(error):
                    raise self._break(error) from None
                raise

    def _run(self, engine: edge.EdgeShard, change: Change) -> None:
        for operation in change.operations:
            if operation.points:
                engine.update(operation.call)
                self._pending += operation.points
            else:  # by filter: how many points went is seen afterwards
                before = engine.info().points_count
                engine.update(operation.call)
                self._pending += before - engine.info().points_count

    def _follow(self, change: Change) -> None:
        if self._delta is not None:
            try:
                write_record(self._delta, change)
            except OSError as error:
                self._delta_complete = False
                log.warning("collection %s: the delta cannot be written (%s)", self.name, error)

    def _require(self, engine: edge.EdgeShard, points: Sequence[PointId]) -> None:
        if points:
            present = {record.id for record in engine.retrieve(list(points), False, False)}
            for point in points:
                if point not in present:
                    raise missing_point(point)

    def flush(self) -> None:
        """Write everything to disk and cut the log, so that a restart has little to replay."""
        with self._writing:
            if not self._unflushed or self.broken is not None or self._shard is None:
                return
            try:
                self._shard.engine.flush()
                self._unflushed = False
            except BaseException as error:
                if not is_panic(error):
                    raise
                self._break(error)

    def change_spec(self, spec: api.CreateCollection) -> None:
        """Store a changed configuration; the engine takes it over with the next optimisation, which is due at once."""
        with self._writing:
            self._current()
            write_atomically(self.root / _SPEC, spec.SerializeToString())
            self.spec = spec
            self._reconfigured = True

    # -- optimising a copy --------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """True when enough has changed: the threshold, then twice, four times ... as many points, up to 20 times."""
        if self.broken is not None or self._shard is None:
            return False
        threshold = min(self._optimize_at + self._optimized, MAX_THRESHOLDS * self._optimize_at)
        return self._reconfigured or self._pending >= threshold

    def start_copy(self, stopped: Callable[[], bool]) -> Copy:
        """Flush and copy the shard, while writers wait; from here on changes are written to the copy's delta as well.

        Raises CopyStopped, OSError.
        """
        name = _new_name()
        copy_path, delta_path = self.root / name, self.root / name.replace("shard-", "delta-")
        with self._writing:
            shard = self._current()
            self._unflushed = True
            self.flush()
            self._current()
            try:
                copy_tree(shard.directory, copy_path, lambda: stopped() or self.dropped.is_set())
                self._delta = delta_path.open("wb")
            except BaseException:
                shutil.rmtree(copy_path, ignore_errors=True)
                raise
            points = shard.engine.info().points_count
            copy = Copy(copy_path, delta_path, self.root / _SPEC, points, self._pending, self._reconfigured)
            self._delta_complete = True
            self._pending, self._reconfigured = 0, False
            return copy

    def take_over(self, copy: Copy, offset: int) -> bool:
        """Make the optimised copy current; it has the delta up to `offset`. False: the copy cannot follow.

        Raises the engine's errors; the old shard goes on serving then, and the caller abandons the copy.
        """
        fresh = Shard.load(copy.directory)
        try:
            with copy.delta.open("rb") as delta:
                delta.seek(offset)
                self._catch_up(fresh, delta)  # most of the rest, while writers go on
                with self._writing:
                    self._catch_up(fresh, delta)
                    if not self._delta_complete or self._shard is None or self.broken is not None:
                        fresh.close()
                        return False
                    fresh.engine.flush()
                    self._end_delta()
                    self._point_to(copy)
                    with self._switching:
                        old, self._shard = self._shard, fresh
        except BaseException:
            fresh.close()
            raise
        self._retire(old, copy)
        return True

    def _retire(self, old: Shard | None, copy: Copy) -> None:
        """Remove what the swap left. Raises nothing: the copy is current, and what stays goes at the next start."""
        try:
            copy.delta.unlink(missing_ok=True)
            if old is not None:
                old.remove()
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            log.warning("collection %s: the old shard was not removed cleanly: %s", self.name, error)

    def _point_to(self, copy: Copy) -> None:
        state = {"shard": copy.directory.name, "optimized": copy.points}
        try:
            write_atomically(self.root / _STATE, json.dumps(state).encode())
        except OSError:
            # Failing after the replacement is as good as done: going back would delete what the file names.
            if json.loads((self.root / _STATE).read_bytes()) != state:
                raise
        self._optimized = copy.points

    def _catch_up(self, shard: Shard, delta: BinaryIO) -> None:
        for change, _ in read_records(delta, self.schema):
            for operation in change.operations:
                shard.engine.update(operation.call)

    def _end_delta(self) -> None:
        with self._writing:
            if self._delta is not None:
                self._delta.close()
                self._delta = None

    def abandon(self, copy: Copy) -> None:
        """Forget a copy; what it was made for is due again."""
        with self._writing:
            self._end_delta()
            self._pending += copy.pending
            self._reconfigured |= copy.reconfigured
        shutil.rmtree(copy.directory, ignore_errors=True)
        copy.delta.unlink(missing_ok=True)

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Flush and close; later requests are refused. Waits for those that are reading."""
        with self._writing:
            try:
                self.flush()
            except Exception:
                log.exception("collection %s could not be flushed; its log keeps everything", self.name)
            self._closed = True
            self._end_delta()
            with self._switching:
                shard, self._shard = self._shard, None
        if shard is not None:
            try:
                shard.close()
            except BaseException as error:
                if not isinstance(error, Exception) and not is_panic(error):
                    raise
                log.warning("collection %s did not close cleanly: %s", self.name, error)

    def drop(self, grave: Path) -> None:
        """Close, and move the directory out of the store to `grave`, which the caller removes."""
        self.dropped.set()  # first: a copy under way stops and lets the lock go
        self.close()
        self.root.rename(grave)


def _new_name() -> str:
    return f"shard-{uuid4().hex[:12]}"
