"""Where in its document a result stands: the path of headings, the page; also after the document has changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pdf_files import make_pdf
from workshop import COLLECTION, Workshop, chunked

from pipeline import Document, Settings

GUIDE = """# Guide

The guide says what a mill is and how it is looked after over the years.

## Install

Put the wheel into the race and open the gate slowly, with one hand only.

## Repair

A broken paddle is taken out from below, never from above the running water.
"""


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(chunked(settings))
    yield made
    made.close()


def _found(workshop: Workshop, query: str) -> dict[str, Any]:
    """The metadata of the chunk that has the words of the query in it."""
    results = workshop.client.search(query, collection=COLLECTION).results
    return next(dict(result.metadata) for result in results if query in result.text)


def test_a_result_says_under_which_headings_it_stands(workshop: Workshop) -> None:
    workshop.index([Document("guide.md", GUIDE, "text/markdown")])

    assert _found(workshop, "one hand only")["section"] == "Guide > Install"
    assert _found(workshop, "broken paddle")["section"] == "Guide > Repair"
    assert "page" not in _found(workshop, "broken paddle")


def test_a_chunk_that_only_moved_is_not_embedded_again_and_stands_in_its_new_place(workshop: Workshop) -> None:
    workshop.index([Document("guide.md", GUIDE, "text/markdown")])
    head, install, repair = GUIDE.split("## ")
    moved = f"{head}## {repair}\n## {install}".replace("# Guide", "# Handbook")

    status = workshop.index([Document("guide.md", moved, "text/markdown")])

    assert status.chunks["embedded"] < status.chunks["total"]
    assert _found(workshop, "one hand only")["section"] == "Handbook > Install"


def test_a_result_of_a_pdf_says_its_page(workshop: Workshop) -> None:
    pages = [[f"Page about the {name}: it is looked after by the miller alone,"] * 3 for name in ("wheel", "race")]
    workshop.index([Document("mill.pdf", make_pdf(pages), "application/pdf")])

    assert _found(workshop, "about the wheel")["page"] == 1
    assert _found(workshop, "about the race")["page"] == 2


def test_the_document_s_own_metadata_goes_before_the_place(workshop: Workshop) -> None:
    workshop.index([Document("guide.md", GUIDE, "text/markdown", {"section": "manuals"})])

    assert _found(workshop, "one hand only")["section"] == "manuals"
