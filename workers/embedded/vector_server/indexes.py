"""Payload indexes: protobuf parameters to the engine's and back."""

from __future__ import annotations

from typing import Any

import qdrant_edge as edge
from qdrant_client import grpc as api

from workers.embedded.vector_server.config import memory
from workers.embedded.vector_server.errors import BadRequest, Unsupported
from workers.embedded.vector_server.values import Message, optional

_TYPES = {
    "FieldTypeKeyword": edge.PayloadSchemaType.Keyword,
    "FieldTypeInteger": edge.PayloadSchemaType.Integer,
    "FieldTypeFloat": edge.PayloadSchemaType.Float,
    "FieldTypeGeo": edge.PayloadSchemaType.Geo,
    "FieldTypeText": edge.PayloadSchemaType.Text,
    "FieldTypeBool": edge.PayloadSchemaType.Bool,
    "FieldTypeDatetime": edge.PayloadSchemaType.Datetime,
    "FieldTypeUuid": edge.PayloadSchemaType.Uuid,
}
_TOKENIZERS = {
    1: edge.TokenizerType.Prefix,
    2: edge.TokenizerType.Whitespace,
    3: edge.TokenizerType.Word,
    4: edge.TokenizerType.Multilingual,
    5: edge.TokenizerType.Code,
}
# The name of the parameters -> the engine's class and the options that both have.
_PLACE = ("on_disk", "enable_hnsw", "nested")
_PARAMS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "keyword_index_params": (edge.KeywordIndexParams, ("is_tenant", *_PLACE)),
    "integer_index_params": (edge.IntegerIndexParams, ("lookup", "range", "is_principal", *_PLACE)),
    "float_index_params": (edge.FloatIndexParams, ("is_principal", *_PLACE)),
    "geo_index_params": (edge.GeoIndexParams, _PLACE),
    "bool_index_params": (edge.BoolIndexParams, _PLACE),
    "datetime_index_params": (edge.DatetimeIndexParams, ("is_principal", *_PLACE)),
    "uuid_index_params": (edge.UuidIndexParams, ("is_tenant", *_PLACE)),
    "text_index_params": (
        edge.TextIndexParams,
        ("min_token_len", "max_token_len", "lowercase", "ascii_folding", "phrase_matching", *_PLACE),
    ),
}
_UNSUPPORTED_TEXT = ("stopwords", "stemmer", "scoring")


def index_schema(request: api.CreateFieldIndexCollection) -> Any:
    """The engine's index type or parameters. Raises BadRequest where neither is given, Unsupported for some options."""
    kind = request.field_index_params.WhichOneof("index_params")
    if kind is None:
        if not request.HasField("field_type"):
            raise BadRequest("Wrong input: field_type is required")
        return _TYPES[api.FieldType.Name(request.field_type)]
    params = getattr(request.field_index_params, kind)
    engine_class, options = _PARAMS[kind]
    values = {name: optional(params, name) for name in options}
    if kind == "keyword_index_params" and params.HasField("prefix"):
        values["prefix"] = True
    if kind == "text_index_params":
        unsupported = [name for name in _UNSUPPORTED_TEXT if params.HasField(name)]
        if unsupported:
            raise Unsupported(f"Text index option `{unsupported[0]}` is not implemented by the embedded vector server")
        values["tokenizer"] = _TOKENIZERS.get(params.tokenizer)
    return engine_class(memory=memory(params), **values)


def write_index_info(info: edge.PayloadIndexInfo, output: Message) -> None:
    """Write what the engine knows of an index into an empty PayloadSchemaInfo."""
    names = [name.removeprefix("FieldType") for name, kind in _TYPES.items() if kind == info.data_type]
    output.data_type = api.PayloadSchemaType.Value(names[0])
    output.points = info.points
    if info.params is None:
        return
    for kind, (engine_class, options) in _PARAMS.items():
        if isinstance(info.params, engine_class):
            params = getattr(output.params, kind)
            params.SetInParent()
            for name in options:
                value = getattr(info.params, name)
                if value is not None:
                    setattr(params, name, value)
