"""Links that are no text: they lead on or back in a series of pages, or are tools of the page."""

from __future__ import annotations

import re
from enum import IntEnum

from pipeline.extract.html.noise import words


class Way(IntEnum):
    """Where a link leads in a series of pages."""

    NONE = 0
    PLACE = 1  # the first page, the contents, the index
    TURN = 2  # the page before, after or above


_WAYS = words(
    """prev previous next up home top contents index toc back start first last forward begin end
    table_of_contents previous_page next_page previous_topic next_topic previous_chapter next_chapter
    previous_section next_section master_index general_index home_page site_map
    sitemap contact contacts contact_us main main_contents return_to_main_contents"""
)
_TURNS = words("prev previous next up back")
_TURN_RELATIONS = words("next prev previous up")
_PLACE_RELATIONS = words("start first last home top contents index toc alternate")
_SOURCES = words("source src edit view")
_SOURCE_CLASS = re.compile(r"src|source|edit|viewcode", re.IGNORECASE)
_ARROW = re.compile(r"[\s\[]*(?:<{1,3}|>{1,3}|<--+|--+>|[«»‹›←→↑↓⇐⇒⇑⇓⇦⇨⇧⇩◀▶◄►△▽▲▼^⬆⬅➡⏎]+)[\s\]]*")
_QUOTES = words("< << > >>")
_CODE = re.compile(r"[(){}_=:;*]")
_WAY_KEYS = frozenset({"n", "p", "u"})
_WORDS = re.compile(r"[^\W_]+")
_TOOL = re.compile(
    r"(?:edit|improve|view|show|suggest|report)(?: edits? to)?(?: an issue with)? (?:this )?"
    r"(?:page|source|document|section)(?: source)?(?: on \w+)?|"
    r"(?:edit|view|open|fork) (?:it |this |me )?on (?:github|gitlab|bitbucket)|(?:back|go) to (?:the )?top|"
    r"\[?(?:edit source|source edit|view source|page source)\]?|\[(?:source|src)\]|"
    r"list of all members(?:, including inherited members)?|"
    r"go to the (?:source code|documentation) of this file\.?"
)


def way_of(label: str, attributes: dict[str, str]) -> Way:
    """Where a link leads in a series of pages, by its relation, its access key, its language or what it says."""
    relations = attributes.get("rel", "").lower().split()
    if not _TURN_RELATIONS.isdisjoint(relations) or attributes.get("accesskey", "").lower() in _WAY_KEYS:
        return Way.TURN
    if "hreflang" in attributes or not _PLACE_RELATIONS.isdisjoint(relations):
        return Way.PLACE
    if label.strip() in _QUOTES:  # operators are written like that, too
        return Way.PLACE
    # A link to a place in a page: *next* may be the name of a function.
    _, mark, place = attributes.get("href", "").partition("#")
    if not is_way_label(label) or (mark and place and place.lower() not in _WAYS):
        return Way.NONE
    words = _WORDS.findall(label.lower())
    return Way.TURN if not words or any(word in _TURNS for word in words) else Way.PLACE


def is_way_label(label: str) -> bool:
    """Whether a link says that it leads to a page of the same series: *Next*, *Contents*, an arrow."""
    said = label.strip().lower()
    if _ARROW.fullmatch(said):
        return True
    words = _WORDS.findall(said)
    return 0 < len(words) <= 4 and "_".join(words) in _WAYS and not _CODE.search(said)


def is_handle(label: str, attributes: dict[str, str]) -> bool:
    """Whether a link is a tool of the page and no text: `#` or a pilcrow beside a heading, *Skip to content*, *Edit
    this page*."""
    said = label.strip().lower()
    if _TOOL.fullmatch(said):
        return True
    if said in _SOURCES and _SOURCE_CLASS.search(attributes.get("class", "")):
        return True
    place = attributes.get("href", "")
    if said.isdigit() and place == f"#{said}":  # the number of a paragraph
        return True
    return place.startswith("#") and (
        said in {"", "#", "¶", "§", "🔗", "link", "\uf0c1"} or (said.startswith("skip to ") and len(said) <= 40)
    )
