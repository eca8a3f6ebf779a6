"""The search requests of older clients, said as queries."""

from __future__ import annotations

from typing import Any

from qdrant_client import grpc as api

from workers.embedded.vector_server import validate

_SHARED = ("filter", "params", "with_payload", "with_vectors")


def _nearest(request: Any) -> api.Query:
    if request.HasField("sparse_indices"):
        sparse = api.SparseVector(indices=request.sparse_indices.data, values=request.vector)
        return api.Query(nearest=api.VectorInput(sparse=sparse))
    return api.Query(nearest=api.VectorInput(dense=api.DenseVector(data=request.vector)))


def _fill(query: Any, request: Any, fields: tuple[str, ...]) -> None:
    query.query.CopyFrom(_nearest(request))
    if request.HasField("vector_name"):
        query.using = request.vector_name
    for name in fields:
        if request.HasField(name):
            getattr(query, name).CopyFrom(getattr(request, name))
    if request.HasField("score_threshold"):
        query.score_threshold = request.score_threshold


def from_search(request: api.SearchPoints) -> api.QueryPoints:
    """Raises BadRequest for limit 0."""
    query = api.QueryPoints(collection_name=request.collection_name, limit=validate.limit(request.limit))
    if request.HasField("offset"):
        query.offset = request.offset
    _fill(query, request, _SHARED)
    return query


def from_search_groups(request: api.SearchPointGroups) -> api.QueryPointGroups:
    """Raises BadRequest for limit or group size 0."""
    query = api.QueryPointGroups(
        collection_name=request.collection_name,
        limit=validate.limit(request.limit),
        group_size=validate.limit(request.group_size, "group_size"),
        group_by=request.group_by,
    )
    _fill(query, request, (*_SHARED, "with_lookup"))
    return query
