"""What a look at storage has found: values, and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pipeline.monitoring.trend import Trend, days_until_full, trend
from pipeline.vectors.base import Description

Store = Literal["postgres", "qdrant", "redis"]
STORES: tuple[Store, ...] = ("postgres", "qdrant", "redis")

# What is sampled; docs/storage.md says what each is.
SAMPLES = (
    "postgres.bytes",
    "postgres.room_bytes",
    "postgres.dead_rows",
    "postgres.longest_transaction_seconds",
    "qdrant.bytes",
    "qdrant.room_bytes",
    "qdrant.points",
    "redis.bytes",
    "redis.room_bytes",
    "redis.keys",
    "redis.aof_bytes",
)


@dataclass(frozen=True, slots=True)
class Room:
    """used: bytes. limit: bytes at which it is full; None: not known. told_by: what says so: the `disk` (what is used
    and what is free there), a `setting`, `maxmemory`, or nothing. measured: whether `used` is, or an estimate.

    growth: of the last days; None: not enough samples yet. full_in_days: None: not known, or it does not grow.
    """

    used: int
    limit: int | None = None
    told_by: Literal["disk", "setting", "maxmemory", ""] = ""
    measured: bool = True
    growth: Trend | None = None
    full_in_days: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "used_bytes": self.used,
            "limit_bytes": self.limit,
            "told_by": self.told_by,
            "measured": self.measured,
            "growth_bytes_per_day": round(self.growth.per_day) if self.growth else None,
            "trend_samples": self.growth.samples if self.growth else None,
            "trend_days": round(self.growth.days, 3) if self.growth else None,
            "full_in_days": round(self.full_in_days, 2) if self.full_in_days is not None else None,
        }


@dataclass(frozen=True, slots=True)
class Table:
    """bytes: with indexes and TOAST. rows: as Postgres estimates them."""

    name: str
    bytes: int
    index_bytes: int
    rows: int
    dead_rows: int


@dataclass(frozen=True, slots=True)
class PostgresStorage:
    """longest_transaction_seconds: of those that are open, but our own; None: none is."""

    room: Room
    tables: Sequence[Table]
    longest_transaction_seconds: float | None
    longest_transaction: str

    @property
    def dead_rows(self) -> int:
        return sum(table.dead_rows for table in self.tables)


@dataclass(frozen=True, slots=True)
class CollectionStorage:
    """A collection by its name in Millrace and in Qdrant. description: None where Qdrant has none, or does not answer
    for it: then `error` says why."""

    name: str
    qdrant_name: str
    description: Description | None
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        told = asdict(self.description) | {"bytes": self.description.bytes} if self.description else {}
        return {**told, "name": self.name, "qdrant_name": self.qdrant_name, "error": self.error}


@dataclass(frozen=True, slots=True)
class QdrantStorage:
    room: Room
    collections: Sequence[CollectionStorage]

    @property
    def points(self) -> int:
        return sum(found.description.points for found in self.collections if found.description)


@dataclass(frozen=True, slots=True)
class RedisStorage:
    """peak: of the memory since it started. aof_bytes: of its log on disk; None: it has none."""

    room: Room
    peak: int
    keys: int
    aof_bytes: int | None


@dataclass(frozen=True, slots=True)
class StorageReport:
    """What could be read; a store that does not answer is None, and `errors` says why, by its name."""

    postgres: PostgresStorage | None
    qdrant: QdrantStorage | None
    redis: RedisStorage | None
    errors: Mapping[Store, str]

    def room(self, store: Store) -> Room | None:
        found = getattr(self, store)
        return found.room if found else None

    def to_json(self) -> dict[str, Any]:
        """The stable JSON form (docs/storage.md)."""
        postgres, qdrant, broker = self.postgres, self.qdrant, self.redis
        return {
            "postgres": postgres
            and {
                **postgres.room.to_json(),
                "tables": [asdict(table) for table in postgres.tables],
                "dead_rows": postgres.dead_rows,
                "longest_transaction_seconds": postgres.longest_transaction_seconds,
                "longest_transaction": postgres.longest_transaction,
            },
            "qdrant": qdrant
            and {**qdrant.room.to_json(), "collections": [found.to_json() for found in qdrant.collections]},
            "redis": broker
            and {
                **broker.room.to_json(),
                "peak_bytes": broker.peak,
                "keys": broker.keys,
                "aof_bytes": broker.aof_bytes,
            },
            "errors": dict(self.errors),
        }

    def samples(self) -> dict[str, float]:
        """What is kept of it, by the names of `SAMPLES`; what is not known is left out."""
        found: dict[str, float | None] = {}
        for store in STORES:
            if (room := self.room(store)) is not None:
                found |= {f"{store}.bytes": room.used, f"{store}.room_bytes": room.limit}
        if self.postgres is not None:
            found["postgres.dead_rows"] = self.postgres.dead_rows
            found["postgres.longest_transaction_seconds"] = self.postgres.longest_transaction_seconds or 0.0
        if self.qdrant is not None:
            found["qdrant.points"] = self.qdrant.points
        if self.redis is not None:
            found |= {"redis.keys": self.redis.keys, "redis.aof_bytes": self.redis.aof_bytes}
        return {name: float(value) for name, value in found.items() if value is not None}


def with_trend(room: Room, samples: Sequence[tuple[float, float]]) -> Room:
    """The room with how it grows, told from (days, bytes)."""
    growth = trend(samples)
    return replace(room, growth=growth, full_in_days=days_until_full(room.used, room.limit, growth))
