"""What Postgres, Qdrant and Redis hold, how much room there is, how fast it grows, and when it will be full."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.errors import BrokerUnavailable, MillraceError
from pipeline.ledger import storage as ledger_storage
from pipeline.ledger.engine import Connection, Ledger
from pipeline.monitoring.storage_report import (
    SAMPLES,
    STORES,
    CollectionStorage,
    PostgresStorage,
    QdrantStorage,
    RedisStorage,
    Room,
    StorageReport,
    Store,
    Table,
    with_trend,
)
from pipeline.settings import RedisSettings, StorageSettings, mask_url, read_run_file
from pipeline.vectors.base import VectorStore

TREND_DAYS = 7.0
_TREND_SAMPLES = 100


class Storage:
    """Reads what the three hold. `addresses`: the URLs in use; where they are those of the stack on `home`, its files
    are looked at."""

    def __init__(
        self,
        ledger: Ledger,
        vectors: VectorStore,
        redis_settings: RedisSettings,
        settings: StorageSettings,
        home: Path,
        addresses: Mapping[Store, str],
    ) -> None:
        self._ledger = ledger
        self._vectors = vectors
        self._redis = redis_settings
        self._settings = settings
        self._home = home
        own = read_run_file(home).get("settings") or {}
        self._embedded = {
            store: home / store for store in STORES if addresses[store] and addresses[store] == _url(own, store)
        }

    def read(self) -> StorageReport:
        """Everything that answers, with its trend. Raises nothing for a store that is away: the report says so."""
        errors: dict[Store, str] = {}
        found: dict[Store, Any] = {}
        names: list[tuple[str, str]] | None = None
        history: Mapping[str, Sequence[tuple[float, float]]] = {}
        try:
            with self._ledger.transaction() as connection:
                names = ledger_storage.collections(connection)
                history = ledger_storage.history(
                    connection, [f"{store}.bytes" for store in STORES], TREND_DAYS, _TREND_SAMPLES
                )
                found["postgres"] = self._read_postgres(connection)
        except MillraceError as error:
            errors["postgres"] = str(error)
        try:
            found["qdrant"] = self._read_qdrant(names)
        except MillraceError as error:
            errors["qdrant"] = str(error)
        try:
            found["redis"] = self._read_redis()
        except MillraceError as error:
            errors["redis"] = str(error)
        for store, storage in found.items():
            found[store] = replace(storage, room=with_trend(storage.room, history.get(f"{store}.bytes", ())))
        return StorageReport(found.get("postgres"), found.get("qdrant"), found.get("redis"), errors)

    def _read_postgres(self, connection: Connection) -> PostgresStorage:
        whole = ledger_storage.database(connection)
        tables = [Table(**row) for row in ledger_storage.tables(connection)]
        room = self._on_disk("postgres", whole["bytes"], self._settings.postgres_bytes, measured=True)
        seconds = whole["longest_seconds"]
        doing = f"{whole['longest_state']}, {whole['longest_application'] or 'unnamed'}" if seconds is not None else ""
        return PostgresStorage(room, tables, round(seconds, 3) if seconds is not None else None, doing)

    def _read_qdrant(self, names: Sequence[tuple[str, str]] | None) -> QdrantStorage:
        """names: of the collections, as the ledger has them; None: it is away, and they go by their names in Qdrant."""
        there = self._vectors.names()
        ours = names if names is not None else [(name, name) for name in sorted(there)]
        found = [self._describe(name, physical) for name, physical in ours]
        # What else is in there takes its room too.
        others = there - {physical for _, physical in ours}
        found += [self._describe("", physical) for physical in sorted(others)]
        estimated = sum(each.description.bytes for each in found if each.description)
        return QdrantStorage(self._on_disk("qdrant", estimated, self._settings.qdrant_bytes, measured=False), found)

    def _describe(self, name: str, physical: str) -> CollectionStorage:
        try:
            description = self._vectors.describe(physical)
        except MillraceError as error:
            return CollectionStorage(name, physical, None, str(error))
        return CollectionStorage(name, physical, description, "" if description else "Qdrant does not have it")

    def _read_redis(self) -> RedisStorage:
        url = self._redis.url.get_secret_value()
        if not url:
            raise BrokerUnavailable("Redis has no address: set MILLRACE_REDIS__URL, or start a stack: `millrace up`.")
        timeout = self._redis.timeout
        try:
            with redis.Redis.from_url(
                url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
            ) as client:
                info: dict[str, Any] = {}
                for section in ("memory", "persistence"):
                    info |= client.info(section)
                keys = int(client.dbsize())
        except (redis.RedisError, OSError) as error:
            raise BrokerUnavailable(f"Redis at {mask_url(url)} does not answer: {error}.") from error
        used, most = int(info["used_memory"]), int(info.get("maxmemory") or 0)
        if self._settings.redis_bytes:
            room = Room(used, self._settings.redis_bytes, "setting")
        else:
            room = Room(used, most, "maxmemory") if most else Room(used)
        log = int(info["aof_current_size"]) if info.get("aof_enabled") else None
        return RedisStorage(room, int(info["used_memory_peak"]), keys, log)

    def _on_disk(self, store: Store, used: int, setting: int, *, measured: bool) -> Room:
        """What a store takes of its disk, and has there. Of one on this home its files say so, all of them."""
        directory = self._embedded.get(store)
        free = None
        if directory is not None:
            with suppress(OSError):
                used, measured = bytes_on_disk(directory), True
                free = shutil.disk_usage(directory).free
        if setting:
            return Room(used, setting, "setting", measured)
        return Room(used, used + free, "disk", measured) if free is not None else Room(used, measured=measured)


def _url(addresses: Mapping[str, Any], store: str) -> str:
    section = addresses.get(store)
    return str(section.get("url", "")) if isinstance(section, Mapping) else ""


def bytes_on_disk(directory: Path) -> int:
    """What the files below a directory take of the disk: holes in them are not counted. Raises OSError where it is not
    there; what goes meanwhile is passed over."""
    total = directory.stat().st_blocks * 512
    pending = [directory]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except FileNotFoundError:
            continue
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


# What the duties and the alerts ask for ---------------------------------------------------------------------------


def sample(ledger: Ledger, report: StorageReport) -> int:
    """Keeps what the report says. Returns how many samples that are; raises LedgerUnavailable."""
    values = report.samples()
    if values:
        with ledger.transaction() as connection:
            ledger_storage.add_samples(connection, values)
    return len(values)


def newest(connection: Connection) -> dict[str, float]:
    """Name -> value of the newest samples, where they are not older than half an hour."""
    return {name: value for name, (_, value) in ledger_storage.newest_samples(connection, SAMPLES).items()}


def fullness(connection: Connection) -> dict[Store, Room]:
    """How full each store is, going by the newest samples; those alone of which there are any."""
    values = newest(connection)
    history = ledger_storage.history(connection, [f"{store}.bytes" for store in STORES], TREND_DAYS, _TREND_SAMPLES)
    found: dict[Store, Room] = {}
    for store in STORES:
        if (used := values.get(f"{store}.bytes")) is not None:
            limit = values.get(f"{store}.room_bytes")
            room = Room(int(used), int(limit) if limit is not None else None)
            found[store] = with_trend(room, history[f"{store}.bytes"])
    return found
