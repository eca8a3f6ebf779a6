"""Collections: what they are called, which model they were made with, which fields can be filtered on."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg.types.json import Jsonb

from pipeline.errors import CollectionMismatch, CollectionSwitching, InvalidRequest, UnknownCollection
from pipeline.ledger.engine import Connection, Row

FieldType = Literal["keyword", "integer", "float", "bool"]

_MAX_NAME = 128

# No payload path of Qdrant can name a key with one of these in it.
_UNNAMEABLE = frozenset('"\\')


@dataclass(frozen=True, slots=True)
class Collection:
    """id: in the ledger; physical: its name in Qdrant; model: a ModelSpec as JSON; fields: key -> type. former: the
    models that it had before it was re-embedded."""

    id: int
    name: str
    physical: str
    model: Mapping[str, Any]
    sparse: Mapping[str, Any]
    fields: Mapping[str, FieldType]
    generation: int
    lost_at: datetime | None  # found missing in Qdrant, and not rebuilt since
    former: Sequence[Mapping[str, Any]] = ()
    provider: str = "local"  # of jobs that name none


def _collection(row: Row) -> Collection:
    return Collection(**{name: row[name] for name in Collection.__slots__})


_COLUMNS = "id, name, physical, model, sparse, fields, generation, lost_at, former, provider"


def check_name(name: str) -> None:
    """Raises InvalidRequest for what cannot be the name of a collection."""
    if not name or len(name) > _MAX_NAME or not name.isprintable() or "/" in name:
        raise InvalidRequest(
            f"{name!r} cannot be the name of a collection: 1 to {_MAX_NAME} printable characters without a slash"
        )


def ensure(
    connection: Connection, name: str, model: Mapping[str, Any], sparse: Mapping[str, Any], *, provider: str = "local"
) -> Collection:
    """The collection of this name, made where it is missing. provider: of its jobs that name none, if it is made now.

    Raises CollectionMismatch, naming both models, where it was made with another one; InvalidRequest for a bad name.
    """
    check_name(name)
    collection = find(connection, name)
    if collection is None:
        physical = f"{''.join(c if c.isalnum() and c.isascii() else '_' for c in name)[:64]}-{uuid.uuid4().hex[:8]}"
        connection.execute(
            """INSERT INTO collections (name, physical, model, sparse, provider) VALUES (%s, %s, %s, %s, %s)
               ON CONFLICT (name) DO NOTHING""",
            (name, physical, Jsonb(dict(model)), Jsonb(dict(sparse)), provider),
        )
        collection = get(connection, name)
    # Who has re-embedded a collection need not change every setting that names its old model.
    if dict(collection.model) != dict(model) and dict(model) not in collection.former:
        raise CollectionMismatch(
            f"collection {name!r} was made with {_describe(collection.model)}, not with {_describe(model)}; "
            "use that model, or another collection"
        )
    return collection


def _describe(model: Mapping[str, Any]) -> str:
    return (
        f"{model.get('name')} ({model.get('provider')}, {model.get('dimensions')} dimensions, "
        f"{model.get('precision')}, {_whence(model)})"
    )


def _whence(model: Mapping[str, Any]) -> str:
    revision = str(model.get("revision"))
    return f"of {revision}" if model.get("provider") != "local" else f"revision {revision[:12]}"


def find(connection: Connection, name: str) -> Collection | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM collections WHERE name = %s", (name,)).fetchone()
    return _collection(row) if row else None


def get(connection: Connection, name: str) -> Collection:
    """Raises UnknownCollection, naming it."""
    collection = find(connection, name)
    if collection is None:
        raise UnknownCollection(
            f"there is no collection {name!r}; `millrace collections` lists them, `millrace ingest` makes one"
        )
    return collection


def by_id(connection: Connection, collection_id: int) -> Collection:
    row = connection.execute(f"SELECT {_COLUMNS} FROM collections WHERE id = %s", (collection_id,)).fetchone()
    if row is None:
        raise UnknownCollection(f"there is no collection with the id {collection_id}")
    return _collection(row)


# Held until the commit by whoever changes what of a collection is in which Qdrant collection. No row lock: those of
# everything that refers to the collection would be in the way, and shared ones cannot be raised without deadlocks.
_LOCK = 7_310_950


def share(connection: Connection, collection: Collection, *, completing: bool = False) -> bool:
    """From here to the commit the collection keeps its vectors, beside others who want that, too. Take it after the
    jobs' locks. completing: for what is in the index now, which has to wait while the last chunks are re-embedded.

    Returns whether it is being re-embedded: that does not begin or end before the commit. Raises CollectionSwitching
    where it got others since `collection` was read.
    """
    connection.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", (_LOCK, collection.id))
    row = connection.execute(
        # A statement of its own: it sees what was committed while the lock was waited for.
        """SELECT k.physical = %s AS same, r.id IS NOT NULL AS again,
                  coalesce(r.held_until > clock_timestamp(), false) AS held
             FROM collections k LEFT JOIN reembeddings r ON r.collection_id = k.id AND r.ended_at IS NULL
            WHERE k.id = %s""",
        (collection.physical, collection.id),
    ).fetchone()
    if row is not None and not row["same"]:
        raise CollectionSwitching(f"collection {collection.name!r} got the vectors of another model meanwhile")
    if row is not None and row["held"] and completing:
        raise CollectionSwitching(f"collection {collection.name!r} is about to get the vectors of another model")
    return row is not None and bool(row["again"])


def alone(connection: Connection, collection_id: int) -> None:
    """Until the commit nobody else has the collection as `share` gives it. Take it first in a transaction."""
    connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_LOCK, collection_id))


def every(connection: Connection) -> list[Collection]:
    """All of them, by id."""
    return [_collection(row) for row in connection.execute(f"SELECT {_COLUMNS} FROM collections ORDER BY id")]


def listing(connection: Connection) -> list[Row]:
    """Every collection with its documents and chunks that a search can find, by name."""
    return connection.execute(
        f"""SELECT {_COLUMNS}, created_at,
              (SELECT count(*) FROM documents d JOIN versions v ON v.id = d.published_version
                WHERE d.collection_id = c.id AND v.kind = 'ingest') AS documents,
              (SELECT coalesce(sum(jsonb_array_length(v.manifest -> 'points')), 0)::bigint
                 FROM documents d JOIN versions v ON v.id = d.published_version
                WHERE d.collection_id = c.id AND v.kind = 'ingest') AS chunks
            FROM collections c ORDER BY name"""
    ).fetchall()


def field_type(value: object) -> FieldType | None:
    """The type by which a metadata value can be filtered on; None where it cannot."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        # Qdrant's integers have 64 bits.
        return "integer" if -(2**63) <= value < 2**63 else None
    if isinstance(value, float):
        return "float"
    if isinstance(value, str):
        return "keyword"
    if isinstance(value, list | tuple) and value:
        kinds = {field_type(item) for item in value}
        kind = kinds.pop()
        return kind if not kinds and kind in ("keyword", "integer") else None
    return None


def declare_fields(connection: Connection, collection: Collection, seen: Mapping[str, FieldType], limit: int) -> None:
    """Adds metadata keys to the collection's filter fields: the first type that a key had stays its type."""
    new = {
        key: kind for key, kind in seen.items() if key not in collection.fields and not _UNNAMEABLE & set(key or '"')
    }
    if not new:
        return
    row = connection.execute(
        "SELECT fields FROM collections WHERE id = %s FOR NO KEY UPDATE", (collection.id,)
    ).fetchone()
    fields: dict[str, FieldType] = dict(row["fields"]) if row else {}
    for key in sorted(new):
        if key not in fields and len(fields) < limit:
            fields[key] = new[key]
    connection.execute("UPDATE collections SET fields = %s WHERE id = %s", (Jsonb(fields), collection.id))


def filterable(metadata: Mapping[str, Any], fields: Mapping[str, FieldType]) -> dict[str, Any]:
    """The part of the metadata that goes into the index: declared keys whose value has the declared type."""
    return {key: metadata[key] for key in sorted(fields) if key in metadata and _fits(metadata[key], fields[key])}


def _fits(value: object, declared: FieldType) -> bool:
    kind = field_type(value)
    return kind == declared or (kind == "integer" and declared == "float" and not isinstance(value, list | tuple))
