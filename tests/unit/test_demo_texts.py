"""What the demo ingests, and how it shows what it found."""

from __future__ import annotations

import sys

import pytest

from pipeline.document import Document
from workers.cli.demo_texts import language_reference, library_docstrings, python_documents
from workers.cli.snippet import snippet


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(python_documents())


def test_the_demo_has_enough_to_show_and_little_enough_to_be_quick(documents: list[Document]) -> None:
    assert 150 <= len(documents) <= 400
    assert 300_000 <= sum(len(document.data) for document in documents) <= 800_000
    assert len({document.uri for document in documents}) == len(documents)


def test_the_same_documents_come_every_time_so_that_a_second_demo_embeds_nothing(documents: list[Document]) -> None:
    assert list(python_documents()) == documents


def test_a_topic_of_the_language_is_markdown_with_its_title_as_heading() -> None:
    topics = {document.uri: document for document in language_reference()}
    statement = topics["python:language/with"]
    assert str(statement.content).startswith('# The "with" statement\n')
    assert statement.metadata == {"kind": "language", "topic": "with"}
    assert "python:language/compound" not in topics, "a chapter repeats its sections"


def test_docstrings_are_read_without_importing_the_modules() -> None:
    before = set(sys.modules)
    modules = {str(document.metadata["module"]) for document in library_docstrings()}
    assert {"json", "argparse", "subprocess", "email"} <= modules
    assert "antigravity" not in set(sys.modules) - before
    assert "this" not in set(sys.modules) - before


def test_a_snippet_shows_where_the_words_of_the_question_are() -> None:
    text = " ".join(["filler"] * 200 + ["compression", "of", "files"] + ["filler"] * 200)
    shown = snippet(text, "Which module compresses files?")
    assert "compression of files" in shown
    assert shown.startswith("... filler")
    assert shown.endswith("filler ...")
    assert len(shown) < 400


def test_a_short_text_is_its_ownsnippet() -> None:
    assert snippet("All  of\nit.", "anything else?") == "All of it."
