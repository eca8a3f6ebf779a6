"""docs/command-line.md against the commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_shows_every_command_and_option_of_the_program() -> None:
    found = subprocess.run(
        [sys.executable, ROOT / "scripts" / "command_line.py", "--check"], capture_output=True, text=True, check=False
    )

    assert found.returncode == 0, found.stdout + found.stderr
