"""Texts in any number and size, no two alike, put together from paragraphs of the documentation that Python carries."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from workers.cli.demo_texts import python_documents

FILES_PER_DIRECTORY = 1000


@cache
def _paragraphs() -> tuple[str, ...]:
    found = (part.strip() for document in python_documents() for part in str(document.content).split("\n\n"))
    return tuple(sorted({part for part in found if 40 <= len(part) <= 2000}))


def text(seed: int, size: int) -> str:
    """Markdown of at least `size` bytes: a heading for every few paragraphs. The same for the same seed, for ever."""
    chosen = random.Random(seed)  # noqa: S311 - nothing secret is chosen
    paragraphs = _paragraphs()
    parts = [f"# Text {seed}"]
    length = 0
    while length < size:
        if len(parts) % 8 == 0:
            parts.append(f"## Part {len(parts) // 8} of text {seed}")
        parts.append(chosen.choice(paragraphs))
        length += len(parts[-1]) + 2
    return "\n\n".join(parts) + "\n"


def texts(first: int, count: int, size: int) -> Iterator[str]:
    """The texts of `count` seeds in a row."""
    return (text(seed, size) for seed in range(first, first + count))


def write_tree(root: Path, first: int, count: int, size: int) -> int:
    """Writes so many Markdown files below `root`, a thousand a directory. Returns their bytes."""
    written = 0
    for number in range(count):
        directory = root / f"{number // FILES_PER_DIRECTORY:04}"
        if number % FILES_PER_DIRECTORY == 0:
            directory.mkdir(parents=True)
        content = text(first + number, size).encode()
        (directory / f"{number % FILES_PER_DIRECTORY:03}.md").write_bytes(content)
        written += len(content)
    return written
