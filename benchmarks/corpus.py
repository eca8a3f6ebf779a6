"""The pages that a benchmark works on: somebody's own tree, or the documentation text that every Python carries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.document import Document
from pipeline.errors import InvalidDocument
from pipeline.extract import extract
from workers.cli.demo_texts import python_documents

HTML = frozenset({".html", ".htm", ".xhtml"})
MARKDOWN = frozenset({".md", ".markdown"})


@dataclass(frozen=True, slots=True)
class Page:
    """One page. source: the file as it is. plain: its text as Markdown, for whoever would else embed the markup."""

    name: str
    source: Path
    plain: Path
    text: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """sources, plains: the directories that hold nothing but the pages, in either form."""

    name: str
    sources: Path
    plains: Path
    pages: tuple[Page, ...]


def write(corpus: Path | None, most: int, target: Path) -> Corpus:
    """Writes up to `most` pages, evenly chosen, into target/sources and target/plains. Raises ValueError for a tree
    without pages."""
    sources, plains = target / "sources", target / "plains"
    sources.mkdir(parents=True)
    plains.mkdir()
    documents = evenly(list(_tree(corpus) if corpus else python_documents()), most)
    found = (_page(document, number, sources, plains) for number, document in enumerate(documents))
    pages = [page for page in found if page is not None]
    if not pages:
        raise ValueError(f"{corpus or 'this Python'} holds no page of HTML or Markdown")
    return Corpus(str(corpus) if corpus else "the documentation text of Python", sources, plains, tuple(pages))


def evenly(items: Sequence[Document], most: int) -> list[Document]:
    """At most so many of the items, from all over the list; the same ones every time."""
    if len(items) <= most:
        return list(items)
    return [items[position * len(items) // most] for position in range(most)]


def _tree(root: Path) -> Iterator[Document]:
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in HTML | MARKDOWN and path.is_file() and path.stat().st_size:
            kind = "text/html" if path.suffix.lower() in HTML else "text/markdown"
            yield Document(str(path.relative_to(root)), path.read_bytes(), kind)


def _page(document: Document, number: int, sources: Path, plains: Path) -> Page | None:
    """The page, written down; None for one without text."""
    try:
        text = extract(document.data, document.media_type, document.uri).text
    except InvalidDocument:
        return None
    ending = ".html" if document.media_type == "text/html" else ".md"
    name = f"{number:05}-{re.sub(r'[^A-Za-z0-9]+', '-', document.uri)[-60:].strip('-')}"
    source, plain = sources / f"{name}{ending}", plains / f"{name}.md"
    source.write_bytes(document.data)
    plain.write_text(text, "utf-8")
    return Page(source.name, source, plain, text)
