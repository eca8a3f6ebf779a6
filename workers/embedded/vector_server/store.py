"""The data directory: its lock, its collections and their aliases.

LOCK                    held by the one server that may touch anything here
aliases.json            {alias: collection}
collections/<name>/     one directory each (see collection.py)
scratch/                collections being made or removed; emptied at start, under the lock
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

from qdrant_client import grpc as api

from pipeline.errors import StackRunning
from pipeline.observe import logger
from workers.embedded.vector_server.collection import Collection
from workers.embedded.vector_server.config import check_spec
from workers.embedded.vector_server.errors import AlreadyExists, BadRequest, NotFound, missing_collection
from workers.embedded.vector_server.files import sync_directory, write_atomically
from workers.embedded.vector_server.room import RESERVE_BYTES, Room

log = logger("vector_server.store")

# A server that is just stopping lets go of the lock within seconds.
LOCK_PATIENCE = 10.0
_MAX_DIRECTORY_NAME = 200


class Store:
    """All collections of one data directory. Thread-safe."""

    def __init__(self, data: Path, optimize_at: int, reserve: int = RESERVE_BYTES) -> None:
        """Take the lock, clean up what a crash left, open every collection.

        Raises StackRunning where another server holds the directory. A collection that cannot be opened is served as
        broken; the others are not touched by it.
        """
        self._data = data
        self.room = Room(data, reserve)
        self._optimize_at = optimize_at
        self._changing = threading.Lock()
        self._collections: dict[str, Collection] = {}  # replaced, never changed: requests read it without the lock
        self._lock = _take_lock(data)
        self._root, self._scratch = data / "collections", data / "scratch"
        shutil.rmtree(self._scratch, ignore_errors=True)  # only now: before the lock it may be another server's work
        self._scratch.mkdir()
        self._root.mkdir(exist_ok=True)
        for directory in sorted(self._root.iterdir()):
            if directory.is_dir():
                self._open(directory)
        self._aliases = self._read_aliases()

    def _open(self, directory: Path) -> None:
        started = time.perf_counter()
        collection = Collection(directory, self._optimize_at)
        self._collections = {**self._collections, collection.name: collection}
        if collection.broken is None:
            log.info("opened %s in %.2f s", collection.name, time.perf_counter() - started)

    # -- collections --------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Collection:
        """By name or alias. Raises NotFound."""
        try:
            return self._collections[self._aliases.get(name, name)]
        except KeyError:
            raise missing_collection(name) from None

    def exists(self, name: str) -> bool:
        return self._aliases.get(name, name) in self._collections

    def collections(self) -> list[Collection]:
        """In the order of their names."""
        return [collection for _, collection in sorted(self._collections.items())]

    def create(self, spec: api.CreateCollection) -> None:
        """Raises AlreadyExists, BadRequest, Unsupported. The collection appears whole or not at all."""
        check_spec(spec)
        self.room.check()
        name = spec.collection_name
        with self._changing:
            if name in self._collections:
                raise AlreadyExists(f"Wrong input: Collection `{name}` already exists!")
            if name in self._aliases:
                raise BadRequest(
                    f"Wrong input: Can't create collection with name {name}. Alias with the same name already exists"
                )
            draft, directory = self._scratch / uuid4().hex, self._root / _directory_name(name)
            try:
                Collection.create(draft, spec)
                draft.rename(directory)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            sync_directory(self._root)
            self._collections = {**self._collections, name: Collection(directory, self._optimize_at)}

    def drop(self, name: str) -> bool:
        """Remove a collection with its aliases; False where there is none. Waits for requests that are reading it."""
        with self._changing:
            collection = self._collections.get(name)
            if collection is None:
                return False
            self._collections = {other: item for other, item in self._collections.items() if other != name}
            grave = self._scratch / uuid4().hex
            collection.drop(grave)
            sync_directory(self._root)
            kept = {alias: target for alias, target in self._aliases.items() if target != name}
            if kept != self._aliases:
                self._write_aliases(kept)
        shutil.rmtree(grave, ignore_errors=True)
        return True

    # -- aliases ------------------------------------------------------------------------------------------------------

    @property
    def aliases(self) -> Mapping[str, str]:
        return dict(self._aliases)

    def change_aliases(self, actions: list[api.AliasOperations]) -> None:
        """All of the actions or none of them. Raises NotFound, BadRequest."""
        with self._changing:
            aliases = dict(self._aliases)
            for action in actions:
                self._change_alias(aliases, action)
            self._write_aliases(aliases)

    def _change_alias(self, aliases: dict[str, str], action: api.AliasOperations) -> None:
        kind = action.WhichOneof("action")
        if kind == "create_alias":
            alias, target = action.create_alias.alias_name, action.create_alias.collection_name
            if target not in self._collections:
                raise missing_collection(target)
            self._check_alias(alias)
            aliases[alias] = target
        elif kind == "delete_alias":
            aliases.pop(action.delete_alias.alias_name, None)
        elif kind == "rename_alias":
            old, new = action.rename_alias.old_alias_name, action.rename_alias.new_alias_name
            if old not in aliases:
                raise NotFound(f"Not found: Alias {old} does not exists!")
            self._check_alias(new)
            aliases[new] = aliases.pop(old)
        else:
            raise BadRequest("Malformed AliasOperations type")

    def _check_alias(self, alias: str) -> None:
        if not alias:
            raise BadRequest("Validation error in body: [alias_name: must not be empty]")
        if alias in self._collections:
            raise AlreadyExists(f"Wrong input: Collection `{alias}` already exists!")

    def _read_aliases(self) -> dict[str, str]:
        path = self._data / "aliases.json"
        stored: dict[str, str] = json.loads(path.read_bytes()) if path.exists() else {}
        # A collection that was dropped just before a crash may have left its aliases.
        return {alias: target for alias, target in stored.items() if target in self._collections}

    def _write_aliases(self, aliases: dict[str, str]) -> None:
        write_atomically(self._data / "aliases.json", json.dumps(aliases, indent=1).encode())
        self._aliases = aliases

    def close(self) -> None:
        """Flush and close everything, then let the directory go."""
        with self._changing:
            for collection in self.collections():
                collection.close()
            self._collections = {}
        os.close(self._lock)


def _take_lock(data: Path) -> int:
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(data / "LOCK", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            owner = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise StackRunning(f"another vector server (pid {owner}) serves {data}; stop it first") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        return descriptor


def _directory_name(name: str) -> str:
    """A name that every file system takes; the collection's own name is in its configuration."""
    escaped = quote(name, safe=" ")
    if len(escaped) <= _MAX_DIRECTORY_NAME:
        return escaped
    return f"{escaped[: _MAX_DIRECTORY_NAME - 33]}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
