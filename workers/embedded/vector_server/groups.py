"""Groups: the best hits for each value of a payload field. The engine has none, so they are made of plain queries."""

from __future__ import annotations

from typing import Any

import qdrant_edge as edge
from qdrant_client import grpc as api

from workers.embedded.vector_server import validate
from workers.embedded.vector_server.errors import Unsupported, invalid
from workers.embedded.vector_server.queries import DEFAULT_LIMIT, QueryReader
from workers.embedded.vector_server.values import with_payload, with_vectors, write_payload, write_scored, write_vectors

DEFAULT_GROUP_SIZE = 3
# Each round asks for this many times more hits, until the groups are full or the hits run out.
GROWTH = 4

Key = str | int


def _at(payload: Any, path: str) -> list[Any]:
    """The values at a dotted path; `[]` behind a name steps into a list."""
    found = [payload]
    for part in path.split("."):
        name = part.removesuffix("[]")
        found = [item[name] for item in found if isinstance(item, dict) and name in item]
        if part.endswith("[]"):
            found = [value for item in found if isinstance(item, list) for value in item]
    return found


def _keys(payload: Any, path: str) -> list[Key]:
    values = [item for value in _at(payload, path) for item in (value if isinstance(value, list) else [value])]
    keys = [value for value in values if isinstance(value, (str, int)) and not isinstance(value, bool)]
    return list(dict.fromkeys(keys))


def query_groups(request: api.QueryPointGroups, engine: edge.EdgeShard, reader: QueryReader) -> api.GroupsResult:
    """Raises BadRequest, Unsupported for a lookup in another collection, and the engine's errors."""
    if request.HasField("with_lookup"):
        raise Unsupported("Groups with a lookup are not implemented by the embedded vector server")
    if not request.group_by:
        raise invalid("group_by", "must not be empty")
    limit = validate.limit(request.limit) if request.HasField("limit") else DEFAULT_LIMIT
    size = validate.limit(request.group_size, "group_size") if request.HasField("group_size") else DEFAULT_GROUP_SIZE
    groups = _collect(request, engine, reader, limit, size)
    return _answer(request, engine, groups)


def _collect(
    request: api.QueryPointGroups, engine: edge.EdgeShard, reader: QueryReader, limit: int, size: int
) -> dict[Key, list[edge.ScoredPoint]]:
    plain = api.QueryPoints(prefetch=request.prefetch, using=request.using)
    for name in ("query", "filter", "params", "lookup_from"):
        if request.HasField(name):
            getattr(plain, name).CopyFrom(getattr(request, name))
    if request.HasField("score_threshold"):
        plain.score_threshold = request.score_threshold
    plain.with_payload.include.fields.append(request.group_by.split("[]")[0])
    plain.limit = limit * size
    total = max(1, engine.info().points_count)
    while True:
        plain.limit = min(plain.limit, total)
        hits = engine.query(reader.request(plain))
        groups: dict[Key, list[edge.ScoredPoint]] = {}
        for hit in hits:
            for key in _keys(hit.payload, request.group_by):
                if key in groups or len(groups) < limit:
                    members = groups.setdefault(key, [])
                    if len(members) < size:
                        members.append(hit)
        full = len(groups) == limit and all(len(members) == size for members in groups.values())
        if full or len(hits) < plain.limit or plain.limit >= total:
            return groups
        plain.limit = plain.limit * GROWTH


def _answer(
    request: api.QueryPointGroups, engine: edge.EdgeShard, groups: dict[Key, list[edge.ScoredPoint]]
) -> api.GroupsResult:
    ids = list({hit.id for members in groups.values() for hit in members})
    wanted = with_payload(request.with_payload), with_vectors(request.with_vectors)
    records = {record.id: record for record in engine.retrieve(ids, *wanted)} if any(wanted) else {}
    result = api.GroupsResult()
    for key, members in groups.items():
        group = result.groups.add()
        if isinstance(key, str):
            group.id.string_value = key
        elif key >= 0:
            group.id.unsigned_value = key
        else:
            group.id.integer_value = key
        for hit in members:
            output: Any = group.hits.add()
            write_scored(hit, output)
            output.ClearField("payload")
            record = records.get(hit.id)
            if record is not None:
                write_payload(record.payload, output.payload)
                if record.vector is not None:
                    write_vectors(record.vector, output.vectors)
    return result
