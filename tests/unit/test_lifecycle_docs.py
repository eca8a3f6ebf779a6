"""docs/lifecycle.md against the transition tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.lifecycle import MACHINES

PAGE = (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text("utf-8")


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_the_page_shows_the_transitions_of_the_code(machine: str) -> None:
    section = re.search(rf"^## {machine.capitalize()}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section is not None

    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section.group(1), re.MULTILINE)
    drawn = {state: set(re.findall(r"`(\w+)`", targets)) for state, targets in rows}

    assert drawn == {state: set(targets) for state, targets in MACHINES[machine].items() if targets}
