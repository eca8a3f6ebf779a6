"""docs/guarantees.md against the tests that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
ROW = re.compile(r"^\| (?!guarantee|---)(.+)$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def _functions(path: str) -> set[str]:
    file = ROOT / path
    if not file.exists():
        return set()
    return {node.name for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_page_names_exists() -> None:
    named = TEST.findall(PAGE)
    missing = [f"{path}::{name}" for path, name in named if name not in _functions(path)]

    assert len(named) > 40
    assert missing == []


def test_every_guarantee_has_a_mechanism_and_a_test() -> None:
    rows = ROW.findall(PAGE)

    assert len(rows) > 20
    for row in rows:
        _, mechanism, tests = row.strip(" |").split(" | ")
        assert mechanism
        assert TEST.search(tests), row
