"""Texts that were made to take long, and those that happen to: cutting takes time in proportion to their length."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence

import pytest

from pipeline.chunking import LONG_LINE, MAX_TITLE, Chunker
from pipeline.extract import extract
from pipeline.settings import ChunkingSettings

MAX_TOKENS = 256
SMALL = 25_000
LARGE = 8 * SMALL
# Quadratic time grows 64 times, linear time 8 times; what is below the floor is not measured but noise.
MOST_GROWTH = 24
FLOOR_SECONDS = 0.05

TEXTS: dict[str, Callable[[int], str]] = {
    "one line of words": lambda n: "lorem ipsum dolor " * (n // 18),
    "one line without a space": lambda n: "x" * n,
    "blank lines": lambda n: "a" + "\n" * n + "b",
    "lines of one space": lambda n: "a" + " \n" * (n // 2) + "b",
    "one space after the other": lambda n: "a" + " " * n + "b",
    "hashes": lambda n: "#" * n,
    "lines of one hash": lambda n: "#\n" * (n // 2),
    "a heading with a gap": lambda n: "# a" + " " * n + "b\n",
    "a heading of brackets": lambda n: "# " + "[" * n + "\n\ntext",
    "a heading of half links": lambda n: "# " + "[a](" * (n // 4) + "\n\ntext",
    "a heading of closing hashes": lambda n: "# " + "a # " * (n // 4) + "x\n",
    "a long heading above many paragraphs": lambda n: "# " + "a" * (n // 2) + "\n\n" + "word " * 200 * (n // 2000),
    "quotes in quotes": lambda n: "> " * (n // 2) + "x",
    "quotes in quotes, line by line": lambda n: "\n".join(">" * (i % 1000) + " x" for i in range(n // 503)),
    "lists in lists": lambda n: "\n".join(" " * (2 * (i % 500)) + "- x" for i in range(n // 504)),
    "lists in one line": lambda n: "- " * (n // 2) + "x",
    "backticks": lambda n: "`" * n,
    "runs of backticks": lambda n: " ".join("`" * (i % 300) for i in range(n // 150)),
    "stars": lambda n: "*a " * (n // 3),
    "brackets": lambda n: "[" * n,
    "a table of one row": lambda n: "|" + "a|" * (n // 4) + "\n|" + "-|" * (n // 4) + "\n",
    "tags": lambda n: "<div>" * (n // 5),
    "emoji": lambda n: "🍞" * (n // 2),
    "families": lambda n: "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}" * (n // 5),
    "accents on one letter": lambda n: "a" + "\u0301" * n,
    "Chinese": lambda n: "漢字文章。" * (n // 5),
    "lines that are nearly long": lambda n: ("x" * LONG_LINE + "\n") * (n // LONG_LINE),
    "lines that are just long": lambda n: ("x y " * (LONG_LINE // 4) + "z\n") * (n // LONG_LINE),
}


def count_tokens(texts: Sequence[str]) -> list[int]:
    return [len(re.findall(r"\w{1,4}|\S", text)) + 2 for text in texts]


def cut(text: str, markup: str) -> float:
    """Seconds of this thread that cutting a text took; what came out is checked."""
    chunker = Chunker(ChunkingSettings(), count_tokens, MAX_TOKENS)
    started = time.thread_time()
    (chunks,) = chunker.chunk_many([(text, markup)])
    seconds = time.thread_time() - started
    assert all(chunk.tokens <= MAX_TOKENS and chunk.text.strip() for chunk in chunks)
    assert "".join("".join(chunk.text.split()) for chunk in chunks) == "".join(text.split())
    assert max(len(chunk.section) for chunk in chunks) <= 6 * (MAX_TITLE + 3)
    return seconds


@pytest.mark.parametrize("markup", ["plain", "markdown"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_text_eight_times_as_long_takes_about_eight_times_as_long_to_cut(name: str, markup: str) -> None:
    small = max(FLOOR_SECONDS, cut(TEXTS[name](SMALL), markup))

    # More than once, where a busy machine made it slower
    assert any(cut(TEXTS[name](LARGE), markup) < MOST_GROWTH * small for _ in range(3))


@pytest.mark.parametrize("gap", [" " * 3900, "\t" * 3900, " #" * 1900, "#" * 3900, " " * 1900 + "#" * 1900])
@pytest.mark.parametrize("head", ["# a", "---\ntitle: a", "---\na"])
def test_a_gap_in_a_heading_or_in_front_matter_takes_no_time(head: str, gap: str) -> None:
    extract(b"# what it takes to begin with", "text/markdown", "notes.md")
    started = time.thread_time()

    extract(f"{head}{gap}b\n---\n\ntext\n".encode(), "text/markdown", "notes.md")

    assert time.thread_time() - started < 1


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("# Title", "Title"), ("#  Title ##  ", "Title"), ("## C#", "C#"), ("# C# #", "C#"), ("# a # b", "a # b"),
        ("#\tTitle", "Title"),
    ],
)  # fmt: skip
def test_closing_hashes_are_no_part_of_a_heading(line: str, title: str) -> None:
    found = extract(f"{line}\n\ntext\n".encode(), "text/markdown", "notes.md")
    (chunks,) = Chunker(ChunkingSettings(), count_tokens, MAX_TOKENS).chunk_many([(found.text, found.markup)])

    assert found.title == title
    assert [chunk.section for chunk in chunks] == [title]
