from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys

import kreuzberg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pdf_files import make_pdf

from pipeline import media
from pipeline.errors import EmptyDocument, ExtractionFailed, InvalidDocument, UnsupportedFormat
from pipeline.extract import _READERS, EXTRACTOR, Extracted, extract, name_title
from pipeline.extract.pdf import translate

# -- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", "plain"),
        ("naïve – 日本".encode(), "naïve – 日本"),
        (b"\xef\xbb\xbfwith a mark", "with a mark"),
        ("größer".encode("utf-16"), "größer"),
        ("größer".encode("utf-16-be"), "größer"),
        ("größer als".encode("utf-16-le"), "größer als"),
        ("größer".encode("utf-32"), "größer"),
        (b"caf\xe9 \x93quoted\x94", "café “quoted”"),
        (b"bytes \x81 of no charset \xe9", "bytes  of no charset é"),
        ("a long German sentence, größer und schöner, ".encode() * 20 + b"\xff", None),
    ],
)
def test_text_is_decoded_whatever_its_encoding(data: bytes, text: str | None) -> None:
    found = extract(data, "text/plain", "note:a").text

    if text is None:
        assert found.startswith("a long German sentence, größer und schöner, ")
        assert found.endswith("\ufffd")
    else:
        assert found == text


def test_a_declared_charset_is_used_where_it_fits() -> None:
    data = "Привет, мир".encode("cp1251")

    assert extract(data, "text/plain; charset=windows-1251", "u").text == "Привет, мир"
    assert extract("größer".encode(), "text/plain; charset=ascii", "u").text == "größer"


@pytest.mark.parametrize("charset", ["no-such", "base64", "rot13", "unicode_escape", "idna", "zlib", "\u0130"])
def test_a_charset_that_is_none_is_not_believed(charset: str) -> None:
    assert extract(b"caf\xc3\xa9 \\u0041", f"text/plain; charset={charset}", "u").text == "café \\u0041"


def test_newlines_are_one_kind_and_control_characters_are_gone() -> None:
    data = "one\r\ntwo\rthree\x0cfour\u2028five\x00\x1b[0m\x07 soft\xadhyphen\ufeff\ttab".encode()

    assert extract(data, "text/plain", "u").text == "one\ntwo\nthree\nfour\nfive[0m softhyphen\ttab"


def test_indentation_of_the_first_line_survives() -> None:
    assert extract(b"\n  \n    indented\nnot\n\n", "text/x-python", "u").text == "    indented\nnot"


def test_half_a_surrogate_pair_does_not_get_through() -> None:
    data = "a\ud800b".encode("utf-16-le", "surrogatepass")

    extract(b"\xff\xfe" + data, "text/plain", "u").text.encode()


@pytest.mark.parametrize("data", [b"", b"   \n\t\n", b"\xef\xbb\xbf", b"<html><body></body></html>"])
def test_a_document_without_text_is_empty_by_name(data: bytes) -> None:
    with pytest.raises(EmptyDocument, match=r"note:empty\.txt"):
        extract(data, "text/html" if data.startswith(b"<") else "text/plain", "note:empty.txt")


# -- media types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "declared", "kind"),
    [
        ("a.py", b"import os", None, "text/x-python"),
        ("a.rs", b"fn main() {}", None, "text/x-rust"),
        ("A.MD", b"# x", None, "text/markdown"),
        ("file:///x/Makefile", b"all:", None, "text/x-makefile"),
        ("file:///x/Dockerfile", b"FROM x", None, "text/x-dockerfile"),
        ("https://example.org/a.html?b=.png#c", b"<p>x", None, "text/html"),
        ("README", b"plain", None, "text/plain"),
        ("page", b"\n <!DOCTYPE html><p>x", None, "text/html"),
        ("document", b"%PDF-1.4", None, "application/pdf"),
        ("wrong.txt", b"%PDF-1.4", None, "application/pdf"),
        ("wrong.txt", b"PK\x03\x04....", None, "application/zip"),
        ("wrong.html", b"\x89PNG\r\n\x1a\n", None, "image/png"),
        ("junk.txt", bytes(range(256)) * 10, None, "application/octet-stream"),
        ("utf16.txt", "plain latin text".encode("utf-16-le"), None, "text/plain"),
        ("nul.txt", b"a text with a NUL" + b" and more words" * 20 + b"\0", None, "text/plain"),
        ("a.png", b"anything", None, "image/png"),
        ("a.bin", b"readable text", "application/octet-stream", "application/octet-stream"),
        ("a", b"x", "text/html; charset=latin1", "text/html; charset=latin1"),
        ("a.md", b"# x", "text/plain", "text/markdown"),
        ("a", b"<html>", "text/plain; charset=utf-8", "text/html; charset=utf-8"),
    ],
)
def test_the_media_type_is_told_from_declaration_name_and_content(
    name: str, data: bytes, declared: str | None, kind: str
) -> None:
    assert media.detect(name, data, declared) == kind


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.png", b"\x89PNG\r\n\x1a\n123"),
        ("a.mp3", b"ID3\x03"),
        ("a.txt", b"\x00\x01\x02\x03" * 99),
        ("a.svg", b"<svg/>"),
    ],
)
def test_a_format_that_no_extractor_knows_is_named_with_the_uri(name: str, data: bytes) -> None:
    with pytest.raises(UnsupportedFormat, match=f"file:///{name}: no extractor knows [a-z]+/"):
        extract(data, None, f"file:///{name}")


def test_every_format_has_a_reader_and_every_reader_a_format() -> None:
    assert set(media.FORMATS.values()) == set(_READERS)


# -- Markdown ----------------------------------------------------------------------------------------------------------


def test_front_matter_becomes_metadata_and_not_text() -> None:
    data = b"""---
title: "The \\"Title\\""
tags: [a, "b, c", 3]
authors:
  - Ann
  - Bob
draft: true
version: 1.5
count: 7
date: 2024-01-02   # a comment
empty:
summary: >
  folded
  text
nested:
  deep: 1
---

# Heading

Text.
"""

    found = extract(data, None, "a.md")

    assert found == Extracted(
        "# Heading\n\nText.",
        "markdown",
        'The "Title"',
        {
            "tags": ["a", "b, c", 3],
            "authors": ["Ann", "Bob"],
            "draft": True,
            "version": 1.5,
            "count": 7,
            "date": "2024-01-02",
            "summary": "folded text",
        },
    )


def test_toml_front_matter_is_read_too() -> None:
    found = extract(b'+++\ntitle = "T"\ndate = 2024-01-02\ntags = ["a"]\n[deep]\nx = 1\n+++\nText', None, "a.md")

    assert found == Extracted("Text", "markdown", "T", {"date": "2024-01-02", "tags": ["a"]})


@pytest.mark.parametrize(
    "text",
    [
        "---\n\nA rule, and text.\n\n---\n\nmore",
        "---\nno end: here\n",
        "+++\nnot toml\n+++\nx",
        "---\n---\nx",
        "text\n---\na: b\n---",
    ],
)
def test_what_only_looks_like_front_matter_stays_text(text: str) -> None:
    found = extract(text.encode(), "text/markdown", "u")

    assert found.text == text.strip()
    assert found.metadata == {}


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("intro\n\n## The `code` title ##\n\n# Later", "The `code` title"),
        ("Underlined\n==========\n\n# Later", "Underlined"),
        ("no heading at all", ""),
    ],
)
def test_the_title_of_markdown_is_its_first_heading(text: str, title: str) -> None:
    assert extract(text.encode(), "text/markdown", "u").title == title


def test_source_code_is_plain_text_as_it_stands() -> None:
    code = 'def f(x):\n    """Doc."""\n    return x & 0xFF  # <b>\n'

    assert extract(code.encode(), None, "file:///a.py") == Extracted(code.rstrip(), "plain", "")


# -- PDF ---------------------------------------------------------------------------------------------------------------


def test_a_pdf_gives_its_text_its_title_and_the_number_of_its_pages() -> None:
    found = extract(make_pdf([["First <page> & (text)."], ["Second page."]], title="The Title"), None, "a.pdf")

    assert found == Extracted("First <page> & (text).\n\nSecond page.", "plain", "The Title", {"pages": 2}, (0, 24))


def test_running_heads_feet_and_page_numbers_of_a_pdf_are_left_out() -> None:
    pages = [
        ["A Manual, Chapter 1", f"Unique sentence {word} begins", "and ends.", f"- {number} -"]
        for number, word in enumerate(["one", "two", "three", "four", "five"], 1)
    ]

    text = extract(make_pdf(pages), None, "a.pdf").text

    assert "A Manual" not in text
    assert "- 3 -" not in text
    for word in ("one", "two", "three", "four", "five"):
        assert f"Unique sentence {word} begins\nand ends." in text


def test_page_numbers_are_known_by_counting_along_whatever_stands_beside_them() -> None:
    heads = ["Introduction 7", "8 The First Topic", "A Second Topic 9", "10 Another", "Annex 11"]
    pages = [[head, f"In {1990 + number} it was so, says page {number + 7}"] for number, head in enumerate(heads)]

    text = extract(make_pdf(pages), None, "a.pdf").text

    assert text.split("\n") == [f"In {1990 + number} it was so, says page {number + 7}" for number in range(5)]


def test_a_sentence_that_runs_over_two_pages_stays_together() -> None:
    text = extract(make_pdf([["A sentence that goes"], ["on here. Another one."], ["A new page."]]), None, "a.pdf").text

    assert text == "A sentence that goes\non here. Another one.\n\nA new page."


GOOD_PDF = make_pdf([["some text"]])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (make_pdf([["secret"]], password="pw"), "is encrypted"),
        (GOOD_PDF[:200], "broken, cut off"),
        (b"%PDF-1.7 and then nothing", "broken, cut off"),
        (b"not a pdf at all", "broken, cut off"),
        (make_pdf([]), "without a page"),
        (make_pdf([["one"], ["two"], ["three"]]).replace(b"6 0 obj", b"60 obj"), "damaged: only 1 of its 3 pages"),
    ],
)
def test_a_pdf_that_does_not_open_says_why_and_which(data: bytes, said: str) -> None:
    with pytest.raises(ExtractionFailed, match=rf"file:///bad\.pdf .*{said}"):
        extract(data, "application/pdf", "file:///bad.pdf")


def test_a_pdf_of_pictures_is_empty() -> None:
    with pytest.raises(EmptyDocument, match=r"scan\.pdf"):
        extract(make_pdf([[]]), None, "scan.pdf")


def test_a_pdf_in_a_process_forked_from_one_that_read_a_pdf_is_refused_and_does_not_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extract(GOOD_PDF, None, "a.pdf")
    monkeypatch.setattr(os, "getpid", lambda: 1)  # what a forked child sees: another id, and no threads of the reader

    with pytest.raises(ExtractionFailed, match=r"b\.pdf was not read: this process was forked"):
        extract(GOOD_PDF, None, "b.pdf")


def test_every_error_of_kreuzberg_is_translated_and_names_the_document() -> None:
    modules = [kreuzberg.exceptions, importlib.import_module("kreuzberg._internal_bindings")]
    errors = {
        found
        for module in modules
        for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, BaseException)
    }
    assert len(errors) >= 12

    for error in errors:
        translated = translate(error("something happened"), "file:///a.pdf")
        assert isinstance(translated, InvalidDocument), error
        assert "file:///a.pdf" in str(translated)


def test_a_panic_in_the_reader_is_translated_and_other_exceptions_are_not() -> None:
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    assert "broke down" in str(translate(panic("index out of bounds"), "u"))
    assert translate(KeyboardInterrupt(), "u") is None
    assert translate(SystemExit(), "u") is None


@given(st.integers(0, len(GOOD_PDF) - 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_pdf_is_read_or_refused_and_nothing_else(position: int, damage: bytes) -> None:
    data = GOOD_PDF[:position] + damage + GOOD_PDF[position + len(damage) :]

    try:
        assert extract(data, "application/pdf", "u").text
    except InvalidDocument as error:
        assert str(error).startswith("u")  # noqa: PT017


# -- the whole ---------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=2000), st.sampled_from([None, "text/plain", "text/markdown", "text/html", "text/x-c"]))
def test_any_bytes_become_clean_text_or_a_refusal_that_names_them(data: bytes, media_type: str | None) -> None:
    try:
        found = extract(data, media_type, "note:u")
    except InvalidDocument as error:
        assert "note:u" in str(error)  # noqa: PT017
        return
    assert found.text.strip()
    found.text.encode()  # no halves of surrogate pairs
    assert not set(found.text) & set(map(chr, [*range(9), *range(11, 32), 127]))
    assert extract(data, media_type, "note:u") == found


def test_a_title_is_one_line_of_reasonable_length() -> None:
    found = extract(("# " + "word \t" * 500).encode(), "text/markdown", "u")

    assert len(found.title) <= 300
    assert "\t" not in found.title


@pytest.mark.parametrize(
    ("uri", "title"),
    [
        ("file:///srv/My notes.md", "My notes"),
        ("https://example.org/guide/start.html?x=1", "start"),
        ("https://example.org/", ""),
        ("note:17", "note:17"),
        ("file:///a/.profile", ".profile"),
    ],
)
def test_a_name_can_stand_in_for_a_title(uri: str, title: str) -> None:
    assert name_title(uri) == title


def test_the_version_of_the_extractor_names_what_it_depends_on() -> None:
    assert f"millrace-2 kreuzberg-{kreuzberg.__version__}" == EXTRACTOR


def test_a_process_that_reads_no_pdf_does_not_load_the_reader() -> None:
    code = (
        "import sys; from pipeline.extract import extract; extract(b'<p>x</p>', 'text/html', 'u'); "
        "from pipeline.sources import open_source; print('kreuzberg' in sys.modules, 'httpx' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "False"]
