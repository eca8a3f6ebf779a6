"""What a filter may be, the same for every store: the path that it names and the values that it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import InvalidFilter
from pipeline.vectors.base import FieldType, Filters

_PLAIN_KEY = re.compile(r"[\w-]+")
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Condition:
    """The payload at `path` must equal one of the values, which are all of the type `kind`."""

    path: str
    kind: FieldType
    values: tuple[str | int | float | bool, ...]


def field_path(*keys: str) -> str:
    """The payload path of nested keys: `field_path("metadata", "lang")` is `metadata.lang`; odd keys are quoted.

    Raises InvalidFilter for a key that no path can name (empty, or with a quote or backslash in it).
    """
    parts = []
    for key in keys:
        if not key or '"' in key or "\\" in key:
            raise InvalidFilter(f"{key!r} cannot be a filter field: it is empty or has a quote or backslash in it")
        parts.append(key if _PLAIN_KEY.fullmatch(key) else f'"{key}"')
    return ".".join(parts)


def conditions(filters: Filters) -> Iterator[Condition]:
    """The filters, checked; all must hold. Raises InvalidFilter, naming the path, for what no store can be asked."""
    for path, value in filters.items():
        several = isinstance(value, list | tuple)
        values = tuple(value) if isinstance(value, list | tuple) else (value,)
        kinds = {_kind(item) for item in values} or {"keyword"}
        kind = kinds.pop()
        if kind is None or kinds or (several and kind not in ("keyword", "integer")):
            raise InvalidFilter(
                f"{path}: {value!r} must be a text, a number of at most 64 bits, a truth value, "
                "or a list of texts or of whole numbers"
            )
        yield Condition(path, kind, values)


def _kind(value: object) -> FieldType | None:
    match value:
        case str():
            return "keyword" if _is_encodable(value) else None
        case bool():  # before int, which it is to Python and is not to a store
            return "bool"
        case int():
            return "integer" if value in _INT64 else None
        case float():
            return "float"
    return None


def _is_encodable(text: str) -> bool:
    """False for a lone surrogate, which UTF-8 cannot carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
