"""Parts of the docs that are made from the code: written anew, or with `--check` only compared."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_check(page: Path, wanted: str, script: str) -> int:
    """Writes the page as it is wanted; with `--check` says what it lacks. Returns the exit status."""
    found = page.read_text("utf-8")
    if "--check" not in sys.argv[1:]:
        page.write_text(wanted, "utf-8")
        return 0
    if found == wanted:
        return 0
    lines = set(found.splitlines())
    missing = [line for line in wanted.splitlines() if line not in lines]
    sys.stdout.write(f"docs/{page.name} lacks, or says otherwise:\n" + "\n".join(missing) + "\n")
    sys.stdout.write(f"make it anew: .venv/bin/python scripts/{script}\n")
    return 1
