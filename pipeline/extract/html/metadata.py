"""What the head of a page says about it, and what its text marks as such: authors, dates, language, description."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

_KEYS = {
    "description": "description",
    "dc.description": "description",
    "dcterms.description": "description",
    "og:description": "description",
    "author": "authors",
    "dc.creator": "authors",
    "dcterms.creator": "authors",
    "citation_author": "authors",
    "article:author": "authors",
    "keywords": "keywords",
    "dc.subject": "keywords",
    "date": "created",
    "dc.date": "created",
    "dc.date.created": "created",
    "dcterms.created": "created",
    "dcterms.date": "created",
    "dcterms.issued": "created",
    "citation_publication_date": "created",
    "article:published_time": "created",
    "datepublished": "created",
    "article:modified_time": "modified",
    "og:updated_time": "modified",
    "dc.date.modified": "modified",
    "dcterms.modified": "modified",
    "last-modified": "modified",
    "datemodified": "modified",
    "dc.language": "language",
    "dcterms.language": "language",
    "content-language": "language",
}
_MAX_VALUE = 2000  # characters
_MAX_AUTHORS = 100
_DATE = re.compile(
    r"(\d{4})[-/](\d\d?)(?:[-/](\d\d?)(?:[T ](\d\d:\d\d)(:\d\d(?:\.\d+)?)?\s?(Z|[+-]\d\d:?\d\d|UTC)?)?)?(?![\d-])"
)
_YEAR = re.compile(r"\d{4}$")


@dataclass
class PageMetadata:
    """values: by the names that all formats use: authors, created, modified (ISO 8601), language, description,
    keywords, url. What is said first counts."""

    values: dict[str, Any] = field(default_factory=dict)

    def language(self, attributes: dict[str, str]) -> None:
        """Of the root element."""
        self._set("language", attributes.get("lang") or attributes.get("xml:lang") or "")

    def meta(self, attributes: dict[str, str]) -> None:
        names = (attributes.get(one, "") for one in ("name", "property", "itemprop", "http-equiv"))
        key = _KEYS.get(next((name.strip().lower() for name in names if name), ""))
        if key:
            self._set(key, attributes.get("content", ""))

    def link(self, attributes: dict[str, str]) -> None:
        if "canonical" in attributes.get("rel", "").lower().split():
            self._set("url", attributes.get("href", ""))

    def time(self, attributes: dict[str, str]) -> None:
        """A moment in the text that says what it is of the page."""
        said = attributes.get("itemprop", "").lower()
        key = _KEYS.get(said) or ("created" if "pubdate" in attributes else None)
        if key in {"created", "modified"}:
            self._set(key, attributes.get("datetime", ""))

    def _set(self, key: str, value: str) -> None:
        value = " ".join(value.split())[:_MAX_VALUE]
        if key in {"created", "modified"}:
            value = iso_date(value)
        if not value:
            return
        if key == "authors":
            authors = self.values.setdefault(key, [])
            if "://" not in value and value not in authors and len(authors) < _MAX_AUTHORS:
                authors.append(value)
        elif key == "keywords":
            self.values.setdefault(key, [word for part in re.split("[,;]", value) if (word := part.strip())])
        else:
            self.values.setdefault(key, value)


def iso_date(text: str) -> str:
    """A date or moment as ISO 8601 writes it; "" where the text says none that is certain."""
    found = _DATE.search(text)
    if found:
        year, month, day, minutes, seconds, zone = found.groups()
        if not (1 <= int(month) <= 12 and 1 <= int(day or 1) <= 31):
            return ""
        date = "-".join([year, f"{int(month):02}", *([f"{int(day):02}"] if day else [])])
        return date if minutes is None else f"{date}T{minutes}{seconds or ''}{_zone(zone)}"
    if _YEAR.match(text):
        return text
    try:
        return parsedate_to_datetime(text).isoformat()
    except (ValueError, IndexError, TypeError, OverflowError):
        return ""


def _zone(zone: str | None) -> str:
    if zone is None or zone == "Z":
        return zone or ""
    return "Z" if zone == "UTC" else f"{zone[:3]}:{zone[-2:]}"
