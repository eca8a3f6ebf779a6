"""What Word, PowerPoint and Excel files share: relationships between parts, and the document's properties."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from pipeline.extract.office.elements import children, inner_text, root
from pipeline.extract.office.package import Package, resolve

_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:T\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)?)?$")
_KEYS = {
    "dc-subject": "subject",
    "dc-description": "description",
    "dc-language": "language",
    "dcterms-created": "created",
    "dcterms-modified": "modified",
}


class Target(NamedTuple):
    """kind: the last part of the relationship's type, as `slide`. name: of the part, "" for one outside of the file."""

    kind: str
    name: str


class Office:
    """A package with its relationships."""

    def __init__(self, package: Package) -> None:
        self.package = package

    def root(self, name: str) -> Element | None:
        """The root of a part; None where there is no such part."""
        return root(self.package.read(name), self.package.uri, name) if name and name in self.package else None

    def children(self, name: str, parent: str) -> Iterator[Element]:
        """The children of the elements `parent` of a part, one at a time."""
        if name in self.package:
            yield from children(self.package.stream(name), parent, self.package.uri, name)

    def related(self, name: str) -> dict[str, Target]:
        """The relationships of a part ("" for the package) by their id. What lies outside of the file has no name."""
        folder, _, base = name.rpartition("/")
        found = self.root(f"{folder}/_rels/{base}.rels".lstrip("/"))
        return {
            entry.get("Id", ""): Target(
                entry.get("Type", "").rpartition("/")[2],
                "" if entry.get("TargetMode") == "External" else resolve(name, entry.get("Target", "")),
            )
            for entry in (() if found is None else found)
        }

    def main(self, fallback: str) -> str:
        """The name of the part that is the document itself; raises ExtractionFailed where there is none."""
        names = [target.name for target in self.related("").values() if target.kind == "officeDocument"]
        found = next((name for name in (*names, fallback) if name and name in self.package), None)
        if found is None:
            raise self.package.broken(f"it has no {fallback}")
        return found

    def properties(self) -> tuple[str, dict[str, Any]]:
        """The title ("" where there is none) and the metadata that the file names."""
        names = [target.name for target in self.related("").values() if target.kind == "core-properties"]
        found = self.root(next((name for name in names if name), "docProps/core.xml"))
        title = ""
        metadata: dict[str, Any] = {}
        for entry in () if found is None else found:
            text = inner_text(entry)
            if not text:
                continue
            if entry.tag == "dc-title":
                title = text
            elif entry.tag == "dc-creator":
                metadata["authors"] = split_names(text)
            elif entry.tag == "cp-keywords":
                metadata["keywords"] = split_words(text)
            elif (key := _KEYS.get(entry.tag)) and (key not in {"created", "modified"} or iso_date(text)):
                metadata[key] = text
        return title, metadata


def iso_date(text: str) -> str:
    """The text, if it is a date or a moment of ISO 8601; else ""."""
    return text if _DATE.match(text) else ""


def split_names(text: str) -> list[str]:
    """Names of people, between semicolons (a comma may stand in a name)."""
    return [name for part in text.split(";") if (name := part.strip())]


def split_words(text: str) -> list[str]:
    """Keywords, between semicolons or commas."""
    return [word for part in re.split("[;,]", text) if (word := part.strip())]
