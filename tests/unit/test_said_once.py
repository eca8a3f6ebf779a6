"""What several places have to agree on is written in one of them, or compared here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline import Client
from pipeline.lifecycle import TOKEN_LIMIT

PIPELINE = Path(__file__).parents[2] / "pipeline"

# Of a request that does something, and not of one that only counts what it would cost.
_OF_JOBS = {
    "priority",
    "idempotency_key",
    "connection",
    "webhook",
    "when_full",
    "correlation_id",
    "on_staged",
    "force",
}


def test_the_servers_word_for_too_many_enqueued_tokens_is_written_once() -> None:
    written = [path.name for path in PIPELINE.rglob("*.py") if f'"{TOKEN_LIMIT}"' in path.read_text("utf-8")]

    assert written == ["lifecycle.py"]


def parameters(name: str) -> Mapping[str, inspect.Parameter]:
    found = inspect.signature(getattr(Client, name)).parameters
    return {name: parameter for name, parameter in found.items() if name not in {"self", "source"}}


@pytest.mark.parametrize("method", ["ingest", "sync"])
def test_an_estimate_is_asked_for_with_what_the_request_itself_is_asked_for_with(method: str) -> None:
    wanted, estimated = parameters(method), parameters("estimate")

    assert set(wanted) - _OF_JOBS == set(estimated) - {"sync", "on_progress"}
    for name in set(wanted) & set(estimated):
        assert wanted[name] == estimated[name], name
