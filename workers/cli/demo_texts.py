"""What the demo ingests: text that every Python installation carries, read without importing what it describes."""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from pipeline.document import Document

# The language reference underlines its headings as reStructuredText does, and quotes with typographic marks.
_UNDERLINED = re.compile(r"^(?P<title>\S.*)\n(?P<mark>[*=\-~^])(?P=mark){2,}$", re.MULTILINE)
_LEVELS = {"*": "#", "=": "##", "-": "###", "~": "####", "^": "#####"}
# Whole chapters, whose sections are topics of their own: every answer would come twice.
_CHAPTERS = frozenset({"compound", "execmodel", "specialnames"})


def python_documents() -> Iterator[Document]:
    """The language reference by topic, then the docstrings of the standard library's public modules; about 230
    documents of 470 kB in all, in the same order every time."""
    yield from language_reference()
    yield from library_docstrings()


def language_reference() -> Iterator[Document]:
    """The topics of `pydoc` (what `help("with")` shows). Nothing where an installation left them out."""
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError:
        return
    for name in sorted(set(topics) - _CHAPTERS):
        text = _UNDERLINED.sub(lambda found: f"{_LEVELS[found['mark']]} {found['title']}", topics[name])
        yield Document(f"python:language/{name}", text, "text/markdown", {"kind": "language", "topic": name})


def library_docstrings() -> Iterator[Document]:
    """The module docstrings of the standard library, taken from its sources."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted([*library.glob("*.py"), *library.glob("*/__init__.py")]):
        name = path.parent.name if path.name == "__init__.py" else path.stem
        if name.startswith("_") or name in {"test", "idlelib", "lib2to3"} or not name.isidentifier():
            continue
        if docstring := _docstring(path):
            text = f"# The {name} module\n\n{docstring}\n"
            yield Document(f"python:library/{name}", text, "text/markdown", {"kind": "library", "module": name})


def _docstring(path: Path) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library's own sources are not our business
            return ast.get_docstring(ast.parse(path.read_bytes()))
    except (OSError, SyntaxError, ValueError):
        return None
