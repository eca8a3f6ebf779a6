"""What a task makes of its message before it touches anything."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pipeline.errors import InvalidRequest
from pipeline.settings import load_settings
from tasks import base


@pytest.mark.parametrize("value", [1, 7, 2**63 - 1])
def test_an_id_is_a_positive_integer_of_64_bits(value: int) -> None:
    assert base.parse_id(value) == value


@pytest.mark.parametrize(
    "value", [0, -1, 2**63, "7", "7; DROP TABLE batches", 7.0, True, None, [7], {"id": 7}, b"7", float("nan")]
)
def test_anything_else_in_a_message_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="must carry the id of a row"):
        base.parse_id(value)


def test_a_message_without_an_id_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(InvalidRequest):
        base.perform(None, "7", lambda *_: None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("slots", "requests"), [("1", 10), ("2", 5), ("4", 2), ("64", 1)])
def test_the_requests_under_way_are_divided_among_the_children_of_a_worker(
    monkeypatch: pytest.MonkeyPatch, slots: str, requests: int
) -> None:
    monkeypatch.setenv(base.WORKER_SLOTS_VARIABLE, slots)

    assert base.own_share(load_settings(openai={"in_flight": 10})).openai.in_flight == requests


def test_claims_are_owned_under_the_name_of_the_worker_and_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(base.WORKER_ID_VARIABLE, "general1@here#ab12")
    assert base.owner() == f"general1@here#ab12/{os.getpid()}"

    monkeypatch.delenv(base.WORKER_ID_VARIABLE)
    assert base.owner().endswith(f"#{os.getpid()}/{os.getpid()}")
