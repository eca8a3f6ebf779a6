from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidDocument
from pipeline.extract import Extracted, extract
from pipeline.extract.html.page import read_page


def read(source: str) -> Extracted:
    return extract(source.encode(), "text/html", "https://example.org/page")


def text(body: str) -> str:
    return read(f"<!DOCTYPE html><html><body>{body}</body></html>").text


BODY = "<p>The body has a sentence that is long enough to be taken for prose, and it must never be lost.</p>"
PROSE = "The body has a sentence that is long enough to be taken for prose, and it must never be lost."


def test_a_page_gives_its_text_its_title_and_its_metadata() -> None:
    found = read("""<!DOCTYPE html>
        <html lang="en"><head><meta charset="utf-8"><title>The Title &amp; more</title>
        <meta name="description" content="What it is  about"><meta name="author" content="Ann">
        <meta name="keywords" content="one, two,"><meta property="article:published_time" content="2024-01-02">
        <style>p { color: red }</style><script>var x = "<p>not text</p>";</script></head>
        <body><h1>The Heading</h1><p>Some <b>bold</b> and <a href="/x">linked</a> text.</p></body></html>""")

    assert found == Extracted(
        "# The Heading\n\nSome bold and linked text.",
        "markdown",
        "The Title & more",
        {
            "language": "en",
            "description": "What it is about",
            "authors": ["Ann"],
            "keywords": ["one", "two"],
            "created": "2024-01-02",
        },
    )


def test_the_title_is_the_first_heading_where_the_head_has_none() -> None:
    assert read("<p>x</p><h2>A <i>Heading</i></h2><h1>Other</h1>").title == "A Heading"


def test_a_page_in_an_old_encoding_is_read_by_what_it_declares() -> None:
    page = '<html><head><meta http-equiv="Content-Type" content="text/html; charset=koi8-r"></head><p>Привет</p>'
    xhtml = '<?xml version="1.0" encoding="iso-8859-2"?><html><p>Łódź</p></html>'

    assert extract(page.encode("koi8-r"), "text/html", "u").text == "Привет"
    assert extract(xhtml.encode("iso-8859-2"), "application/xhtml+xml", "u").text == "Łódź"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<h1>A</h1><h3>B</h3>c", "# A\n\n### B\n\nc"),
        ("a<p>b<p>c", "a\n\nb\n\nc"),
        ("one<br>two<br/>three", "one\ntwo\nthree"),
        ("  much \n\t white&nbsp; space  ", "much white space"),
        ("<ul><li>a<li>b<ul><li>c</ul><li>d</ul>", "- a\n- b\n  - c\n- d"),
        ("<ol><li>a</li><li><p>b</p><p>c</p></li></ol>", "1. a\n2. b\n\n   c"),
        ("<blockquote><p>a</p><p>b</p></blockquote>c", "> a\n\n> b\n\nc"),
        ("<dl><dt>term<dd>meaning</dl>", "term\n\nmeaning"),
        ("<pre>  x = 1\n\n    y &lt; 2\n</pre>", "```\n  x = 1\n\n    y < 2\n```"),
        ("<pre><code><span>a</span> <span>b</span>\n</code></pre>", "```\na b\n```"),
        ("<pre>```\nfence\n```</pre>", "````\n```\nfence\n```\n````"),
        ("<div>a<div>b</div>c</div>d", "a\n\nb\n\nc\n\nd"),
        ("x <em>y</em><sub>2</sub> <code>f_x()</code>", "x y2 f_x()"),
        ("5 &lt; 6 &amp;amp; &#233;&#x20AC;&unknown; a < b", "5 < 6 &amp; é€&unknown; a < b"),
        ("a<!-- gone --><!-->b<!doctype x>c<![CDATA[d < e]]>f", "abcd < ef"),
        ('a<img alt="A diagram of the pipeline"><img alt="icon">b', "a A diagram of the pipeline b"),
        ("a<template>x</template><svg><title>t</title></svg><button>b</button><select><option>o</select>c", "ac"),
        ("a<noscript>enable scripts</noscript>b<iframe>old</iframe>c<textarea>d</textarea>", "abcd"),
        ("<p hidden>x</p><p style='display: none'>y</p><p>z</p>", "z"),
    ],
)
def test_markup_becomes_markdown(body: str, expected: str) -> None:
    assert text(body) == expected


def test_a_table_of_values_keeps_its_rows() -> None:
    table = "<table><caption>Sizes</caption><tr><th>Name<th>Size</tr><tr><td>a|b<td><p>1</p><p>2</p></tr></table>"

    assert text(table) == "Sizes\n\n| Name | Size |\n| --- | --- |\n| a|b | 1 2 |"


def test_a_page_laid_out_as_a_table_is_read_as_a_page() -> None:
    page = f"<table><tr><td><table><tr><td><h1>Head</h1>{BODY}<ul><li>a</li></ul></td></tr></table></td></tr></table>"

    assert text(page) == f"# Head\n\n{PROSE}\n\n- a"


def test_a_menu_in_a_cell_beside_the_text_is_left_out() -> None:
    menu = "<b>Main Menu</b><ul>" + "".join(f'<li><a href="{n}.html">Chapter {n}</a></li>' for n in range(9)) + "</ul>"

    found = text(f"<table><tr><td>{menu}</td><td><h2>Head</h2>{BODY}{BODY}{BODY}{BODY}</td></tr></table>")

    assert found == "\n\n".join(["## Head", PROSE, PROSE, PROSE, PROSE])


NAVIGATION = {
    "nav element": "<nav><ul><li><a href=/>Home</a><li>Here</ul></nav>",
    "role": '<div role="navigation"><a href=/>Home</a></div>',
    "page header": "<header><h1>The Site</h1><p>A slogan of some length, as sites have them.</p></header>",
    "page footer": "<footer><p>© 2024 Somebody. All rights reserved.</p></footer>",
    "docbook": """<div class="navheader"><table width="100%" summary="Navigation header"><tr><th colspan="3">Chapter 1
        </th></tr><tr><td><a accesskey="p" href="a">Prev</a></td><td>Up</td><td><a href="b">Next</a></td></tr></table>
        </div>""",
    "nav table": """<table class="nav"><tr><td><a accesskey="p" href="p"><img src="p.png" alt="Prev"></a></td>
        <td><a accesskey="u" href="u"><img alt="Up"></a></td><th>The User Manual</th></tr></table>""",
    "unmarked table": """<table><tr><td><a href="1">Previous</a></td><td><a href="2">Home</a></td>
        <td><a href="3">Next</a></td></tr><tr><td>First Steps</td><td>&nbsp;</td><td>Last Steps</td></tr></table>""",
    "texinfo": """<div class="header"><p>Next: <a href="N" accesskey="n" rel="next">Naming</a>, Previous:
        <a href="P" accesskey="p" rel="prev">Overview</a>, Up: <a href="U" accesskey="u" rel="up">Top</a> &nbsp;
        [<a href="T" rel="contents">Contents</a>][<a href="I" rel="index">Index</a>]</p></div>""",
    "sphinx related": """<div class="related" role="navigation"><h3>Navigation</h3><ul><li><a href="i">index</a> |</li>
        <li><a href="n">next</a> |</li><li>The Docs &#187;</li></ul></div>""",
    "sphinx sidebar": """<div class="sphinxsidebar"><div class="sphinxsidebarwrapper"><h3>Quick search</h3>
        <p>This Page</p><a href="s">Show Source</a></div></div>""",
    "breadcrumbs": '<ol class="breadcrumb"><li><a href="/">Home</a></li><li>Here</li></ol>',
    "sidebar": '<div id="sidebar"><a href="a">One</a> <a href="b">Two</a></div>',
    "footer class": '<div class="footer">Copyright 2024, Somebody. Created using a Tool.</div>',
    "arrows": '<p><a href="a">&lt;&lt;</a> <a href="b">Up</a> <a href="c">&gt;&gt;</a></p>',
    "contents of the page": """<h2>Table of contents</h2><ul><li><a href="#a">One</a></li><li><a href="#b">Two</a>
        </li><li><a href="#c">Three</a></li></ul>""",
    "skip link": '<a href="#main">Skip to main content</a>',
    "edit link": '<a href="https://example.org/edit">Edit this page on GitHub</a>',
    "pilcrow": '<a class="headerlink" href="#x" title="Permalink">¶</a><a href="#y">#</a>',
}


@pytest.mark.parametrize("noise", NAVIGATION.values(), ids=NAVIGATION.keys())
def test_navigation_is_left_out_and_the_body_is_not(noise: str) -> None:
    assert text(f"{noise}<h1>Head</h1>{BODY}{noise}") == f"# Head\n\n{PROSE}"


CONTENT = {
    "a section named like furniture": f'<section id="navigation"><h2>Navigation</h2>{BODY}</section>',
    "an old section named like furniture": f'<div class="section" id="footer"><h2>Footer</h2>{BODY}</div>',
    "the header of an article": f"<article><header><h2>Article</h2>{BODY}</header></article>",
    "prose in a sidebar": f'<div class="sidebar">{BODY}</div>',
    "an aside with prose": f"<aside>{BODY}</aside>",
    "links that are the content": '<ul><li><a href="a.html">Topic</a></li><li><a href="b.html">Second</a></li></ul>',
    "a sentence about pages": '<p>See the <a href="p">previous</a> and the <a href="n">next</a> chapter.</p>',
    "a heading that is a link": '<h2 id="x"><a class="header" href="#x">What is it?</a></h2>',
    "a nav that was never closed": f"<nav><a href='/'>Home</a><main>{BODY}</main>",
    "a form around everything": f"<form><label>Name</label>{BODY}</form>",
    "a tab that is not shown": f'<div role="tabpanel" hidden="true">{BODY}</div>',
}


@pytest.mark.parametrize("content", CONTENT.values(), ids=CONTENT.keys())
def test_content_that_looks_like_furniture_stays(content: str) -> None:
    words = re.sub(r"<[^>]*>", " ", content).split()

    found = text(f"<p>Before.</p>{content}<p>After.</p>")

    assert [word for word in words if word not in found.split()] == []
    assert found.startswith("Before.")
    assert found.endswith("After.")


def test_the_heading_in_a_page_header_stays_where_it_is_the_title_of_the_page() -> None:
    header = "<header><a href=/>Site</a><h1>Pinning</h1></header>"

    assert read(f"<title>Pinning | Site</title>{header}{BODY}").text == f"# Pinning\n\n{PROSE}"
    assert read(f"<title>Other | Site</title>{header}{BODY}").text == PROSE


def test_a_page_that_is_nothing_but_navigation_keeps_it() -> None:
    assert text('<nav><a href="a">One</a> <a href="b">Two</a></nav><script>x</script>') == "One Two"


def test_line_numbers_beside_code_are_left_out() -> None:
    listing = """<table class="highlighttable"><tr><td class="linenos"><pre>1\n2</pre></td>
        <td class="code"><pre>a = 1\nb = 2</pre></td></tr></table>"""

    assert text(listing) == "```\na = 1\nb = 2\n```"


@pytest.mark.parametrize(
    "broken",
    [
        "<p>kept<div></p></span></table></div>kept",
        "<table><tr><td>kept</div></td></tr></table>kept",
        "<b><i>kept</b></i> kept <a href='x>kept",
        'kept <p class="unclosed>kept</p>',
        "kept <",
        "kept </",
        "kept <3",
        "kept <!-- never closed",
        "kept <script>never closed",
        "kept <![CDATA[kept",
        "kept &#99999999999999999999; &#x110000; &#" + "9" * 5000 + ";",
        "</p></p></body></html>kept",
        "<select>kept",
    ],
)
def test_broken_markup_loses_no_text_before_it_breaks(broken: str) -> None:
    assert "kept" in text(f"<p>first</p>{broken}")


@pytest.mark.parametrize(
    "unit",
    [
        "<div>",
        "<div></div>",
        "<a href=x>",
        "<a ",
        "<a b='",
        '<a b="',
        "<!--",
        "<![CDATA[",
        "</div>",
        "<ul><li>",
        "<blockquote>",
        "<table><tr><td>",
        "<td>",
        "<b>x</b>",
        "<nav>",
        "<pre>",
        "<h1>",
        "&amp;",
        "&#",
        "<script>",
        "<title>",
        "<td></b>",
        "<p></div>",
        "<header><h1>x</h1></header>",
        "<tr><td>x<td>y",
        "<pre>\nx</pre>",
        "<table><pre>\nx",
        "<a href=x>x</a><br>",
        "<a href=x>next</a> ",
        "<a href=x>a b c </a>",
        "<div id=content>x",
        "<h2>1.1-",
        "<p>Copyright 1.1.",
        "<p><a href=x>1.1.1.1.1.1.1.1!</a>",
    ],
)
def test_the_time_for_hostile_markup_grows_with_its_length_only(unit: str) -> None:
    def seconds(size: int) -> float:
        source = unit * (size // len(unit)) + "end"
        began = time.thread_time()
        read_page(source)
        return time.thread_time() - began

    seconds(5_000)
    small = min(seconds(20_000) for _ in range(3))
    most = 30 * max(small, 0.005)  # 8 times the length; a square would be 64 times

    # More than once, where a busy machine made it slower
    assert any(seconds(160_000) < most for _ in range(3))


def test_text_nested_a_hundred_thousand_deep_is_kept_and_no_stack_overflows() -> None:
    assert text("<div>" * 100_000 + "deep" + "</div>" * 100_000) == "deep"
    assert text("<ul><li>" * 20_000 + "deep").endswith("- deep")


TAGS = ["div", "p", "ul", "ol", "li", "table", "tr", "td", "th", "pre", "nav", "header", "footer", "h1", "a", "b"]
TAGS += ["script", "style", "title", "blockquote", "br", "img"]
PIECES = st.one_of(
    st.sampled_from([f"<{tag}>" for tag in TAGS] + [f"</{tag}>" for tag in TAGS]),
    st.sampled_from(['<a href="#x">', '<div class="nav">', "<!--", "-->", "<", ">", '"', "&lt;", "&#0;", "<p hidden>"]),
    st.text(max_size=10),
)


@given(st.lists(PIECES, max_size=60))
def test_any_sequence_of_tags_and_texts_is_read_the_same_each_time(pieces: list[str]) -> None:
    source = "".join(pieces)
    try:
        found = read(source)
    except InvalidDocument:
        return
    assert found.text.strip()
    assert read(source) == found


@given(st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta", "epsilon"]), min_size=1, max_size=20), st.data())
def test_no_word_of_the_body_is_lost_whatever_tags_are_around_it(words: list[str], data: st.DataObject) -> None:
    tags = ["div", "p", "li", "ul", "td", "tr", "table", "blockquote", "h2", "pre", "b", "section", "dd", "span"]
    pieces: list[str] = []
    for word in words:
        tag = data.draw(st.sampled_from(tags))
        shape = data.draw(st.sampled_from(["<{0}>{1}</{0}>", "<{0}>{1}", "{1}</{0}>", "<{0}><{0}>{1}</{0}>"]))
        pieces.append(shape.format(tag, f" {word} "))

    found = read("".join(pieces)).text

    assert re.findall(r"[a-z]{4,}", found) == words
