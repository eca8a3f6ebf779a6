from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import extraction
from benchmarks.report import Options
from pipeline.extract import Extracted

BANNER = "<div class='nav'><a href='a'>Home of the manual of it all</a></div>"


def write_pages(tree: Path) -> None:
    for number in range(10):
        own = f"The sentence number {'x' * (number + 1)} stands on one page only."
        (tree / f"{number}.html").write_text(f"<title>t</title>{BANNER}<h1>Title</h1><p>Shared line</p><p>{own}</p>")
    (tree / "empty.html").write_text("<p></p>")


def test_what_recurs_is_told_from_what_stands_on_one_page(tmp_path: Path) -> None:
    write_pages(tmp_path)

    found = extraction.measure(Options(corpus=tmp_path))

    assert (found["pages"], found["pages_without_text"]) == (10, 1)
    assert (found["sentences"], found["sentences_missing"]) == (10, 0)
    assert found["recurring_line_examples"] == ["10: Shared line"]
    assert found["recurring_heading_examples"] == ["10: Title"]
    assert found["left_out_examples"] == ["Home of the manual of it all"]


def test_a_sentence_that_does_not_come_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an extractor that loses everything but a heading
    write_pages(tmp_path)
    monkeypatch.setattr(extraction, "extract", lambda *_: Extracted("# Title", "markdown", "Title"))

    found = extraction.measure(Options(corpus=tmp_path))

    assert found["sentences_missing"] == 10
    assert found["missing_sentence_examples"][0] == "0.html: The sentence number x stands on one page only."


def test_a_tree_is_needed() -> None:
    with pytest.raises(SystemExit, match="--corpus"):
        extraction.measure(Options())
