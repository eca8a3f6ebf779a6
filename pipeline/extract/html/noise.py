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

from pipeline.extract.html.markup import attributes


class Sign(IntEnum):
    """How strongly an element looks like furniture, before its content is known."""

    NONE = 0
    SHAPE = 1  # only its content can tell
    HINT = 2
    SIDE = 3  # as a hint; but its links may have headings
    FOOT = 4  # as a hint; but a footer needs no links
    CLEAR = 5
    HIDDEN = 6  # until a reader asks for it
    ALWAYS = 7  # not text
    BODY = -1  # the element that holds the document's text


@dataclass(frozen=True, slots=True)
class Content:
    """What an element holds, in numbers. `chars` and the like count characters without white space."""

    chars: int
    linked: int  # characters inside of links
    prose: int  # characters of long runs outside of links
    sentences: int  # runs outside of links that end like a sentence
    links: int
    local: int  # links to a place on the same page
    ways: int  # links that lead to a page of the same series
    turns: int  # of those, the ones that lead on, back or up
    asked: int  # sentences that are links
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
    turns: int = 0
    asked: int = 0
    headings: int = 0

    def now(self) -> tuple[int, ...]:
        return (
            self.chars, self.linked, self.prose, self.sentences, self.links, self.local, self.ways, self.turns,
            self.asked, self.headings,
        )  # fmt: skip

    def forget(self, before: tuple[int, ...]) -> None:
        """Counts nothing of what was read since `before`: it is cut."""
        (
            self.chars, self.linked, self.prose, self.sentences, self.links, self.local, self.ways, self.turns,
            self.asked, self.headings,
        ) = before  # fmt: skip

    def since(self, before: tuple[int, ...]) -> Content:
        return Content(*(new - old for new, old in zip(self.now(), before, strict=True)))


# Prose in furniture: up to this many characters it may be a slogan, or a notice; more is somebody's text.
_MUCH_PROSE = 600
_SOME_PROSE = 200
_LONG_WAYS = 400
_SHORT_WAYS = 80
_MAX_REMEMBERED = 200
_CONTENTS_LINKS = 3
_MENU_LINKS = 6

_BODIES = words("content main main-content maincontent page-content doc-content main_content maincol contents body")
_BODY_CLASSES = words("main-content page-content doc-content markdown-body article-body entry-content bodywrapper")
_DIVISIONS = words("title fragment line")
_NOTES = words("note doc-footnote doc-endnote doc-endnotes doc-tip doc-example")
_ROLES = {"navigation", "banner", "contentinfo", "search", "menu", "menubar", "toolbar", "doc-pagelist"}

_CLEAR = words(
    """navheader navfooter docnav navbar nav-bar navigation nav-panel navpanel navpath nav-path navpills nav-wrapper
    breadcrumb breadcrumbs breadcrumb-trail sphinxsidebar sphinxsidebarwrapper sidebar-crate sidebar-elems
    headerlink header-link anchorlink anchor-link heading-anchor permalink skip-link skiplink skip-nav skip-to-content
    page-nav pagenav prevnext prev-next prev_next prev-next-footer pagination pager pagelinks site-nav site-header
    site-footer page-footer page-header-nav global-nav topnav bottomnav subnav sub-nav toplinks mobile-nav
    mw-editsection printfooter navbox catlinks noprint edit-this-page edit-page copybtn copy-button cookie-banner
    cookie-consent menubar menu-bar mobile-header nav-chapters mdbook-help-container help-container
    navigationbar nav-links navlinks nav-tree side-nav titlearea projectname ingroups
    searchbox search-box search-form searchform sitesub contentsub jump-to-nav
    breadcrumbs-container tocset tocview tocsub package-header language-switcher lang-switcher langs toplang
    bottomlang headerlinks     rustdoc-topbar a.src a.srclink skip-main-content"""
)
_ALWAYS = words(
    """linenos linenodiv lineno line-number line-numbers line-numbers-rows gutter hideme activetabletab tabletab
    table-tabs"""
)
# Parts of a name that is written with hyphens: `site-nav`, `t-navbar`.
_SIDE_PARTS = words("nav navbar navigation breadcrumb breadcrumbs pagination sidebar")
_HINTS = words(
    """header banner toolbar topbar social share sharing search searchbox logo page-header rustdoc-toolbar out-of-band
    header_nav path trail summary"""
)
_SIDES = words(
    """nav menu sidebar related rightside quickview toc-menu page-toc local-toc toc-sidebar sidetoc tocframe side-menu
    sidemenu leftnav left-nav rightnav"""
)
_FEET = words("footer foot")

_CALLED = ((Sign.ALWAYS, _ALWAYS), (Sign.CLEAR, _CLEAR), (Sign.FOOT, _FEET), (Sign.SIDE, _SIDES), (Sign.HINT, _HINTS))

# Elements whose content is not the page's text: fallbacks, drawings, controls.
_NO_TEXT = words("noscript template svg object canvas audio video select button datalist map head")
# Elements that are the document, or a word of it, whatever they are called.
_NEVER = words("html body main article h1 h2 h3 h4 h5 h6 pre code dt dd li tbody thead caption figure")
# Elements that are hidden only as long as a list or a table is folded.
_FOLDED = words("html body main article tr li dd tbody")
_SHAPED = words("table div p ul center tr dl")
LANDMARK_SCOPES = words("article main section aside blockquote td")

_CONTENTS_HEADINGS = frozenset(
    {
        "contents", "table of contents", "on this page", "in this article", "page contents", "topics", "sommaire",
        "table des matières", "inhalt", "inhaltsverzeichnis", "índice", "contenido", "содержание", "目次", "목차",
        "目录",
    }
)  # fmt: skip
_PART = re.compile("[-_]+")


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
    if name in _NO_TEXT or (name not in _FOLDED and role != "tabpanel" and _is_hidden(attributes)):
        return Sign.ALWAYS if name in _NO_TEXT else Sign.HIDDEN
    if name == "nav" or role in _ROLES or (name == "header" and not inside):
        return Sign.CLEAR
    if name in _NEVER or role in _NOTES or _holds_text(name, role, attributes):
        return Sign.BODY if _holds_text(name, role, attributes) else Sign.NONE
    return Sign.FOOT if name == "footer" and not inside else _sign_of_names(name, attributes)


def _sign_of_names(name: str, attributes: dict[str, str]) -> Sign:
    called = _names(name, attributes)
    found = next((strength for strength, names in _CALLED if called & names), Sign.NONE)
    if name == "form" and "search" in called:
        return Sign.CLEAR
    if found is Sign.NONE and any("footer" in _PART.split(one) for one in called):
        return Sign.FOOT
    if found is Sign.NONE and "copyright" in _PART.split(attributes.get("id", "").lower()):
        return Sign.FOOT
    if found is Sign.NONE and any(not _SIDE_PARTS.isdisjoint(_PART.split(one)) for one in called):
        return Sign.SIDE
    if found is Sign.NONE and name == "aside" and not any(one.startswith("footnote") for one in called):
        return Sign.SIDE
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


def _holds_text(name: str, role: str, attributes: dict[str, str]) -> bool:
    if name == "div":
        called = attributes.get("class", "").lower().split()
        if attributes.get("id", "").lower() in _BODIES or not _BODY_CLASSES.isdisjoint(called):
            return True
    return name == "main" or role == "main"


@lru_cache(maxsize=4096)
def _block_name(written: str) -> str:
    called = attributes(written).get("class", "").lower().split()
    return next((name for name in called if name in _DIVISIONS), "div")


def block_name(name: str, written: str) -> str:
    """What a block is: its name, or of a division that says so `title`, `fragment` (a listing) or `line` (of one)."""
    return _block_name(written) if name == "div" and written and len(written) <= _MAX_REMEMBERED else name


def _is_hidden(attributes: dict[str, str]) -> bool:
    if "hidden" in attributes:
        return attributes["hidden"].lower() != "until-found"
    return "display:none" in attributes.get("style", "").replace(" ", "").lower()


def is_noise(name: str, sign: Sign, content: Content, closed: bool) -> bool:
    """Whether an element is furniture, now that its content is known. closed: by its own end tag."""
    if sign is Sign.CLEAR:
        return content.prose < _MUCH_PROSE and (closed or not content.prose)
    if sign in {Sign.NONE, Sign.BODY} or not closed:
        return False
    if sign is Sign.FOOT:
        return content.prose < _MUCH_PROSE and not content.headings
    if sign is Sign.HIDDEN:
        return content.prose < _MUCH_PROSE
    return sign is Sign.ALWAYS or _is_furniture(name, sign, content)


def _is_furniture(name: str, sign: Sign, content: Content) -> bool:
    if content.sentences or content.prose >= _SOME_PROSE:
        return False
    if (
        sign >= Sign.HINT
        and content.links
        and content.linked * 2 >= content.chars
        and (not content.headings or sign is Sign.SIDE)
    ):
        return True
    # Links to other places of the page in a paragraph are its text; in a list they are a table of contents.
    return _leads_on(sign, content) or (name != "p" and _is_contents(content))


def _leads_on(sign: Sign, content: Content) -> bool:
    """*Previous, Up, Next*, with the titles of those pages."""
    return (
        content.ways >= 2
        and (content.turns > 0 or (content.ways >= 3 and content.chars <= _SHORT_WAYS))
        and content.chars <= _LONG_WAYS
        and (content.linked * 4 >= content.chars or sign >= Sign.HINT or content.ways >= 3)
        and not (content.prose or content.headings)
    )


def _is_contents(content: Content) -> bool:
    """A table of the page's own headings, which come again below."""
    return (
        content.local >= _CONTENTS_LINKS
        and content.local == content.links
        and content.linked * 10 >= content.chars * 9
        and not (content.prose or content.headings or content.asked)
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
    return " ".join(said.lower().split()).rstrip(":") in _CONTENTS_HEADINGS
