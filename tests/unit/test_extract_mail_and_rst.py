from __future__ import annotations

import base64
import json
from contextlib import suppress
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from office_files import RST, changed, make_eml, make_notebook, make_xlsx
from pdf_files import make_pdf

from pipeline.errors import EmptyDocument, ExtractionFailed, InvalidDocument
from pipeline.extract import Extracted, extract
from pipeline.extract.found import join
from pipeline.extract.text import clean, clean_pages


def rst(text: str) -> str:
    return extract(text.encode(), None, "a.rst").text


def mail(text: str) -> Extracted:
    return extract(text.encode("latin-1"), None, "a.eml")


# -- mails -------------------------------------------------------------------------------------------------------------


def test_a_mail_gives_its_plain_part_and_names_what_is_attached() -> None:
    found = extract(make_eml(), None, "a.eml")

    assert found.text == "# Größe und Gewicht\n\nGrüße, the plain text = it.\n\nAttachments: data.bin"
    assert found.title == "Größe und Gewicht"
    assert found.metadata == {
        "authors": ["Ann Änderson <ann@example.org>"],
        "recipients": ["Bob <bob@example.org>", "carol@example.org"],
        "created": "2024-01-02T03:04:05+01:00",
        "message_id": "<1@example.org>",
        "attachments": ["data.bin"],
    }


def test_a_mail_without_plain_text_gives_its_html() -> None:
    message = EmailMessage()
    message["Subject"] = "Hello"
    message.set_content("\n")
    message.add_alternative("<h2>Head</h2><p>Some <b>bold</b> text.</p>", subtype="html")

    assert extract(message.as_bytes(), None, "a.eml").text == "# Hello\n\n## Head\n\nSome bold text."


def test_a_mail_in_a_mail_is_read_and_named() -> None:
    inner = EmailMessage()
    inner["Subject"], inner["From"] = "The first", "Ann <ann@example.org>"
    inner.set_content("What I wrote.")
    outer = EmailMessage()
    outer["Subject"] = "Fwd"
    outer.set_content("See below.")
    outer.add_attachment(inner)

    assert extract(outer.as_bytes(), None, "a.eml").text == (
        "# Fwd\n\nSee below.\n\n## The first\n\nFrom: Ann <ann@example.org>\n\nWhat I wrote."
    )


@pytest.mark.parametrize(
    ("headers", "body", "text"),
    [
        ("Content-Type: text/plain; charset=iso-8859-1", "caf\xe9", "café"),
        (
            "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable",
            "caf=C3=A9 =\nau",
            "café au",
        ),
        ("Content-Type: text/plain; charset=no-such", "plain", "plain"),
        (
            "Content-Type: text/plain; format=flowed",
            "one \ntwo\nthree\n> a \n> b\n-- \nme",
            "one two\nthree\n> a b\n--\nme",
        ),
        ("Content-Transfer-Encoding: base64", base64.b64encode(b"hidden in base64").decode(), "hidden in base64"),
        ("Content-Transfer-Encoding: base64", "%%% not base64", None),
        ("Subject: =?utf-8?b?R3LDvMOfZQ==?=", "x", "# Grüße\n\nx"),
        ("Subject: =?no-such?q?x?=", "y", "# =?no-such?q?x?=\n\ny"),
        ("Subject: caf\xe9", "y", "# café\n\ny"),
        ("Date: nonsense\nFrom: @@@\nContent-Type: /;;;", "still read", "still read"),
    ],
)
def test_a_mail_is_decoded_as_it_says_and_where_it_lies_as_well_as_can_be(
    headers: str, body: str, text: str | None
) -> None:
    if text is None:
        assert mail(f"Subject: s\n{headers}\n\n{body}").text.startswith("# s")
    else:
        assert mail(f"{headers}\n\n{body}\n").text == text


def test_an_encrypted_mail_is_refused_with_the_remedy() -> None:
    for kind in ("multipart/encrypted; boundary=b", "application/pkcs7-mime; smime-type=enveloped-data"):
        with pytest.raises(ExtractionFailed, match=r"file:///a\.eml is encrypted; save it decrypted"):
            extract(f"Subject: s\nContent-Type: {kind}\n\n--b\n\nx\n--b--\n".encode(), None, "file:///a.eml")


def test_parts_in_parts_without_end_are_refused() -> None:
    message = "Content-Type: text/plain\n\nx"
    for number in range(40):
        message = f"Content-Type: multipart/mixed; boundary=b{number}\n\n--b{number}\n{message}\n--b{number}--\n"

    with pytest.raises(ExtractionFailed, match="more parts, or parts deeper"):
        mail(message)


@given(st.binary(max_size=600))
def test_any_bytes_that_call_themselves_a_mail_are_read_or_refused(data: bytes) -> None:
    try:
        assert extract(b"Content-Type: multipart/mixed; boundary=b\n\n--b\n" + data, "message/rfc822", "u").text
    except InvalidDocument as error:
        assert str(error).startswith("u")  # noqa: PT017


# -- notebooks ---------------------------------------------------------------------------------------------------------


def test_a_notebook_gives_its_cells_and_what_they_print_and_no_pictures() -> None:
    found = extract(make_notebook(), None, "a.ipynb")

    assert found.text == "# The Study\n\nSome prose.\n\n```python\nprint('hello')\n```\n\n```\nhello\n```"
    assert found.title == "The Study"


def test_pictures_in_the_text_of_a_notebook_and_logs_are_cut() -> None:
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "source": f"see ![it](data:image/png;base64,{'A' * 5000}) here"},
        {
            "cell_type": "code",
            "source": ["x"],
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": "line\n" * 5000},
                {"output_type": "stream", "name": "stderr", "text": "warning"},
                {"output_type": "execute_result", "data": {"text/plain": "<Axes: title>"}},
            ],
        },
    ]

    text = extract(json.dumps({"cells": cells}).encode(), None, "a.ipynb").text

    assert text.startswith("see ![it]() here\n\n```\nx\n```\n\n```\nline")
    assert len(text) < 4100
    assert "warning" not in text
    assert "Axes" not in text


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"a": 1}', b"null", b"[" * 100_000, b'{"cells": 3}'])
def test_what_is_no_notebook_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(ExtractionFailed, match=r"file:///a\.ipynb is not a notebook"):
        extract(data, None, "file:///a.ipynb")


# -- reStructuredText --------------------------------------------------------------------------------------------------


def test_a_page_of_rst_becomes_what_a_reader_sees() -> None:
    found = extract(RST, None, "a.rst")

    assert found.text == (
        "# The Guide\n\n- Author: Ann\n- Date: 2024-01-02\n\n## Install\n\nCall `run` with `x`.\n\n"
        "Note: Mind the gap.\n\n```python\nrun(1)\n```"
    )
    assert found.title == "The Guide"
    assert found.metadata == {"authors": ["Ann"], "created": "2024-01-02"}


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (":py:func:`~a.b.c` and :class:`X <y.Z>`", "`c` and `X`"),
        (":ref:`the label <here>`, :doc:`/guide`, :pep:`8`", "the label, /guide, PEP 8"),
        ("`a link <https://example.org>`_ and `other`__", "a link and other"),
        ("``lit`eral`` and ``__init__``", "``lit`eral`` and `__init__`"),
        (
            "see Known_ and not_known and snake_case_ [1]_\n\n.. _Known: https://example.org",
            "see Known and not_known and snake_case_ [1]",
        ),
        ("|name| is |unknown|\n\n.. |name| replace:: The *thing*", "The *thing* is |unknown|"),
        ("\\*not emphasised\\* a\\ b", "*not emphasised* ab"),
        (".. a comment\n   of two lines\n\ntext", "text"),
        (".. toctree::\n   :maxdepth: 2\n\n   one\n   two\n\ntext", "text"),
        (
            ".. include:: /etc/passwd\n\n.. literalinclude:: /etc/hosts\n\n.. csv-table::\n   :file: /x\n\ntext",
            "text",
        ),
        (".. raw:: html\n\n   <script>\n\ntext", "text"),
        (
            ".. figure:: a.png\n   :alt: A plot of speed over time\n\n   The caption.",
            "A plot of speed over time\n\nThe caption.",
        ),
        (".. versionadded:: 3.2 The flag.", "Added in version 3.2: The flag."),
        (".. py:function:: f(a)\n              g(b)\n   :module: x\n\n   Does it.", "`f(a)`\n\n`g(b)`\n\nDoes it."),
        (".. unknown:: Some words\n\n   The body.", "`Some words`\n\nThe body."),
        (".. [CIT] A book\n   of note.", "[CIT] A book\nof note."),
        ("Example::\n\n   x = *1*\n\n   y\n\nafter", "Example:\n\n```\nx = *1*\n\ny\n```\n\nafter"),
        ("- one\n\n- two\n  goes on\n\n  - deep\n\n3. three", "- one\n- two\n  goes on\n\n  - deep\n3. three"),
        ("A. Name wrote it\nin a book.", "A. Name wrote it\nin a book."),
        ("term\n   its meaning", "term\n\nits meaning"),
        ("   quoted", "> quoted"),
        ("| first\n| second", "first\nsecond"),
        (":param x: the `value`", "- param x: the value"),
        (">>> f()\n1\n\ntext", "```python\n>>> f()\n1\n```\n\ntext"),
        ("one\n\n----\n\ntwo", "one\n\ntwo"),
        (
            "=====  =====\nA      B\n=====  =====\n1      2\n       more\n=====  =====",
            "| A | B |\n| --- | --- |\n| 1 | 2 more |",
        ),
        (
            "+---+-----+\n| A | B   |\n+===+=====+\n| 1 | two |\n|   | l.  |\n+---+-----+",
            "| A | B |\n| --- | --- |\n| 1 | two l. |",
        ),
        ("+---+---+\n| wide  |\n+---+---+\n| 1 | 2 |\n+---+---+", "| wide |  |\n| --- | --- |\n| 1 | 2 |"),
        (
            ".. list-table:: T\n   :header-rows: 1\n\n   * - A\n     - B\n   * - 1\n     - 2",
            "T\n\n| A | B |\n| --- | --- |\n| 1 | 2 |",
        ),
        ('.. csv-table::\n   :header: "A", "B"\n\n   "x, y", 2', "| A | B |\n| --- | --- |\n| x, y | 2 |"),
    ],
)
def test_the_parts_of_rst(written: str, shown: str) -> None:
    assert rst(written) == shown


def test_sections_of_rst_have_the_levels_of_their_first_use() -> None:
    text = "###\nTop\n###\n\nOne\n===\n\nDeep\n----\n\nTwo\n===\n"

    assert rst(text) == "# Top\n\n## One\n\n### Deep\n\n## Two"


@given(st.text(alphabet="ab \n\t.:_`|*-=+<>\\[]1#\"'>~é", max_size=400))
def test_any_text_is_read_as_rst(text: str) -> None:
    with suppress(EmptyDocument):
        extract(text.encode(), None, "u.rst")


@pytest.mark.parametrize(
    "piece",
    ["- ", " " * 2 + "x\n", ".. a::\n   ", "`", "``", "|", ":a:`", "+-+\n| |\n", "a_ ", "\\", "[", "=\n", "* - x\n"],
)
def test_the_time_for_hostile_rst_grows_with_its_length_only(piece: str) -> None:
    # 200 kB: what is quadratic would not end within the time limit of a test.
    with suppress(EmptyDocument):
        rst(piece * (200_000 // len(piece)))


# -- pages -------------------------------------------------------------------------------------------------------------


def test_pages_of_a_pdf_are_told_by_their_offsets_also_where_a_sentence_goes_on_and_a_page_is_empty() -> None:
    pages = [["A sentence that goes"], ["on here. Another one."], [], ["Last page."], []]

    found = extract(make_pdf(pages), None, "a.pdf")

    ends = [*found.pages[1:], len(found.text)]
    assert [found.text[start:end].strip() for start, end in zip(found.pages, ends, strict=True)] == [
        "A sentence that goes",
        "on here. Another one.",
        "",
        "Last page.",
        "",
    ]
    assert found.metadata["pages"] == 5


@given(st.lists(st.text(alphabet="a\n \r\x00é\xad", max_size=6), max_size=6))
def test_offsets_of_pages_hold_in_the_cleaned_text(pages: list[str]) -> None:
    text, starts = join(pages)

    cleaned, moved = clean_pages(text, starts)

    assert cleaned == clean(text)
    assert len(moved) == len(pages)
    assert list(moved) == sorted(moved)
    for start, offset in zip(starts, moved, strict=True):
        assert clean(text[start:]) == clean(cleaned[offset:])


def test_strings_that_sheets_share_are_found() -> None:
    sheet = (
        '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData><row>'
        '<c r="A1" t="s"><v>1</v></c><c r="B1" t="s"><v>0</v></c><c t="s"><v>9</v></c><c t="b"><v>1</v></c>'
        '<c t="e"><v>#N/A</v></c><c t="str"><v>made</v></c><c t="d"><v>2024-01-02T00:00:00</v></c></row></sheetData>'
        "</worksheet>"
    )
    shared = (
        '<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><si><t>zero</t></si><si><r><t>on</t></r>'
        "<r><t>e</t></r><rPh><t>reading</t></rPh></si></sst>"
    )
    relations = (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        '<Relationship Id="rId1" Type="http://x/worksheet" Target="/xl/worksheets/sheet1.xml"/>'
        '<Relationship Id="s" Type="http://x/sharedStrings" Target="sharedStrings.xml"/></Relationships>'
    )
    parts = {
        "xl/worksheets/sheet1.xml": sheet,
        "xl/sharedStrings.xml": shared,
        "xl/_rels/workbook.xml.rels": relations,
    }

    text = extract(changed(make_xlsx(), parts), None, "a.xlsx").text

    assert text == "# Prices\n\n| one | zero | TRUE | made | 2024-01-02 |\n| --- | --- | --- | --- | --- |"
