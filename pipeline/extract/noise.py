"""What on a page is furniture and not the document: navigation, headers, footers, permalinks.

Two kinds of sign. What says so itself (`<nav>`, `role="navigation"`, `class="navheader"`) is believed unless a good
deal of prose is in it. What only hints (`class="header"`, a table of links called *Prev* and *Next*) is believed
where the content looks the part: links, no sentences, no headings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from pipeline.extract.markup import attributes


class Sign(IntEnum):
    """How strongly an element looks like furniture, before its content is known."""

    NONE = 0
    SHAPE = 1  # only its content can tell
    HINT = 2
    FOOT = 3  # as a hint; but a footer needs no links
    CLEAR = 4
    ALWAYS = 5  # not seen by a reader, or not text


@dataclass(frozen=True, slots=True)
class Content:
    """What an element holds, in numbers. `chars` and the like count characters without white space."""

    chars: int
    linked: int  # characters inside of links
    prose: int  # characters of long runs outside of links
    sentences: int  # runs outside of links that end like a sentence
    links: int
    local: int  # links to a place on the same page
    ways: int  # links that lead on or back in a series of pages
    headings: int


def words(text: str) -> frozenset[str]:
    """The words of a table that is written as one text."""
    return frozenset(text.split())


@dataclass(slots=True)
class Counts:
    """The numbers of `Content` for everything read so far."""

    chars: int = 0
    linked: int = 0
    prose: int = 0
    sentences: int = 0
    links: int = 0
    local: int = 0
    ways: int = 0
    headings: int = 0

    def now(self) -> tuple[int, ...]:
        return (
            self.chars, self.linked, self.prose, self.sentences, self.links, self.local, self.ways, self.headings
        )  # fmt: skip

    def since(self, before: tuple[int, ...]) -> Content:
        return Content(*(new - old for new, old in zip(self.now(), before, strict=True)))


# Prose in furniture: up to this many characters it may be a slogan, or a notice; more is somebody's text.
_MUCH_PROSE = 600
_SOME_PROSE = 200
_LONG_WAYS = 400
_MAX_REMEMBERED = 200
_CONTENTS_LINKS = 3
_MENU_LINKS = 6

_ROLES = {"navigation", "banner", "contentinfo", "search", "menu", "menubar", "toolbar", "doc-pagelist"}

_CLEAR = words(
    """navheader navfooter navbar nav-bar navigation nav-panel navpanel navpath nav-path navpills nav-wrapper
    breadcrumb breadcrumbs breadcrumb-trail sphinxsidebar sphinxsidebarwrapper sidebar-crate sidebar-elems
    headerlink header-link anchorlink anchor-link heading-anchor permalink skip-link skiplink skip-nav skip-to-content
    page-nav pagenav prevnext prev-next prev_next prev-next-footer pagination pager pagelinks site-nav site-header
    site-footer page-footer page-header-nav global-nav topnav bottomnav subnav sub-nav toplinks mobile-nav
    mw-editsection printfooter navbox catlinks noprint edit-this-page edit-page copybtn copy-button cookie-banner
    cookie-consent menubar menu-bar mobile-header nav-chapters mdbook-help-container help-container
    rustdoc-topbar a.src a.srclink skip-main-content"""
)
_ALWAYS = words("linenos linenodiv lineno line-number line-numbers line-numbers-rows gutter hideme")
_HINTS = words(
    """nav menu sidebar header banner toolbar topbar related social share sharing search searchbox logo toc-menu
    page-header rustdoc-toolbar out-of-band rightside header_nav"""
)
_FEET = words("footer foot")

_CALLED = ((Sign.ALWAYS, _ALWAYS), (Sign.CLEAR, _CLEAR), (Sign.FOOT, _FEET), (Sign.HINT, _HINTS))

# Elements whose content is not the page's text: fallbacks, drawings, controls.
_NO_TEXT = words("noscript template svg object canvas audio video select button datalist map head")
# Elements that are the document, or a word of it, whatever they are called.
_NEVER = words("html body main article h1 h2 h3 h4 h5 h6 pre code dt dd li tbody thead caption figure")
_SHAPED = words("table div p ul center tr dl")
LANDMARK_SCOPES = words("article main section aside blockquote td")

_WAYS = words(
    """prev previous next up home top contents index toc back start first last forward begin end
    table_of_contents previous_page next_page previous_topic next_topic previous_chapter next_chapter
    previous_section next_section master_index general_index main"""
)
_WAY_RELATIONS = words("next prev previous up start first last home top contents index toc")
_CONTENTS_HEADINGS = frozenset({"contents", "table of contents", "on this page", "in this article"})
_WAY_KEYS = frozenset({"n", "p", "u"})
_WORDS = re.compile(r"[^\W_]+")
_TOOL = re.compile(
    r"(?:edit|improve|view|show|suggest|report)(?: edits? to)?(?: an issue with)? (?:this )?"
    r"(?:page|source|document|section)(?: source)?(?: on \w+)?|"
    r"(?:edit|view|open|fork) (?:it |this |me )?on (?:github|gitlab|bitbucket)|back to top"
)


def look(name: str, written: str, inside: bool) -> Sign:
    """How an element looks from outside. `written`: its attributes as they stand in the tag; `inside`: of an article or
    section, whose header is no page's."""
    # Pages repeat the same few tags over and over; what is remembered is short, so that memory stays small.
    return _look(name, written, inside) if len(written) <= _MAX_REMEMBERED else sign(name, attributes(written), inside)


@lru_cache(maxsize=4096)
def _look(name: str, written: str, inside: bool) -> Sign:
    return sign(name, attributes(written), inside)


def sign(name: str, attributes: dict[str, str], inside: bool) -> Sign:
    """How an element looks from outside. `inside`: of an article or section, whose header is no page's."""
    role = attributes.get("role", "").strip().lower()
    if name in _NO_TEXT or (name not in {"html", "body"} and role != "tabpanel" and _is_hidden(attributes)):
        return Sign.ALWAYS
    if name == "nav" or role in _ROLES:
        return Sign.CLEAR
    if name in _NEVER:
        return Sign.NONE
    if name in {"header", "footer"} and not inside:
        return Sign.CLEAR if name == "header" else Sign.FOOT
    called = _names(name, attributes)
    found = next((strength for strength, names in _CALLED if called & names), Sign.NONE)
    if found is Sign.NONE and name == "aside":
        return Sign.HINT
    return Sign.SHAPE if found is Sign.NONE and name in _SHAPED else found


def _names(name: str, attributes: dict[str, str]) -> set[str]:
    """What an element is called: its classes, its id where that is no anchor, its own name where it is a custom one."""
    called = set(attributes.get("class", "").lower().split())
    identity = attributes.get("id", "").lower()
    # Documentation tools name sections by their headings: a section about footers is no footer.
    if identity and name not in {"section", "p", "td", "a", "span"} and "section" not in called:
        called.add(identity)
    if "-" in name:
        called.add(name)
    if name == "a":  # `<h2><a class="header">` is the heading itself
        called = {f"a.{one}" for one in called} | (called & _CLEAR)
    return called


def _is_hidden(attributes: dict[str, str]) -> bool:
    if "hidden" in attributes:
        return attributes["hidden"].lower() != "until-found"
    return "display:none" in attributes.get("style", "").replace(" ", "").lower()


def is_noise(sign: Sign, content: Content, closed: bool) -> bool:
    """Whether an element is furniture, now that its content is known. closed: by its own end tag."""
    if sign is Sign.CLEAR:
        return content.prose < _MUCH_PROSE and (closed or not content.prose)
    if sign is Sign.NONE or not closed:
        return False
    if sign is Sign.FOOT:
        return content.prose < _MUCH_PROSE and not content.headings
    return sign is Sign.ALWAYS or _is_furniture(sign, content)


def _is_furniture(sign: Sign, content: Content) -> bool:
    if content.sentences or content.prose >= _SOME_PROSE:
        return False
    if sign is Sign.HINT and content.linked * 2 >= content.chars and not content.headings:
        return True
    return _leads_on(sign, content) or _is_contents(content)


def _leads_on(sign: Sign, content: Content) -> bool:
    """*Previous, Up, Next*, with the titles of those pages."""
    return (
        content.ways >= 2
        and content.chars <= _LONG_WAYS
        and (content.linked * 4 >= content.chars or sign is Sign.HINT or content.ways >= 3)
        and not (content.prose or content.headings)
    )


def _is_contents(content: Content) -> bool:
    """A table of the page's own headings, which come again below."""
    return (
        content.local >= _CONTENTS_LINKS
        and content.local == content.links
        and content.linked * 10 >= content.chars * 9
        and not (content.prose or content.headings)
    )


def is_menu(content: Content, others: int) -> bool:
    """Whether a cell of a page laid out as a table is a menu beside the text. others: characters of text outside of
    links in the other cells of its row."""
    return (
        content.links >= _MENU_LINKS
        and content.linked * 10 >= content.chars * 7
        and not (content.sentences or content.prose)
        and others >= content.chars - content.linked + _SOME_PROSE
    )


def is_contents_heading(said: str) -> bool:
    """Whether a heading is that of a table of contents: it says nothing about what the page is about."""
    return " ".join(said.lower().split()).rstrip(":") in {
        "contents",
        "table of contents",
        "on this page",
        "in this article",
    }


def is_way(label: str, attributes: dict[str, str]) -> bool:
    """Whether a link leads on or back in a series of pages, by its relation, its access key or what it says."""
    relations = attributes.get("rel", "").lower().split()
    if any(relation in _WAY_RELATIONS for relation in relations):
        return True
    if attributes.get("accesskey", "").lower() in _WAY_KEYS:
        return True
    words = _WORDS.findall(label.lower())
    if not words:
        return bool(label.strip())  # an arrow
    return len(words) <= 3 and "_".join(words) in _WAYS


def is_handle(label: str, attributes: dict[str, str]) -> bool:
    """Whether a link is a tool of the page and no text: `#` or a pilcrow beside a heading, *Skip to content*, *Edit
    this page*."""
    said = label.strip().lower()
    if _TOOL.fullmatch(said):
        return True
    return attributes.get("href", "").startswith("#") and (
        said in {"", "#", "¶", "§", "🔗", "link", "\uf0c1"} or (said.startswith("skip to ") and len(said) <= 40)
    )
