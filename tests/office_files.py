"""Office files, books, mails and notebooks for tests: one small document of every format, and hostile ones."""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from datetime import datetime
from email.message import EmailMessage
from typing import Any

import docx
import openpyxl  # type: ignore[import-untyped]
import pptx

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_CORE = "docProps/core.xml"
MOMENT = datetime(2024, 1, 2, 3, 4, 5)


def make_docx() -> bytes:
    """Headings, a paragraph, lists, a table, a running head."""
    file = docx.Document()
    file.core_properties.title = "The Title"
    file.core_properties.author = "Ann; Bob"
    file.core_properties.subject = "About it"
    file.core_properties.keywords = "one, two"
    file.core_properties.created = MOMENT
    file.core_properties.modified = MOMENT
    file.sections[0].header.paragraphs[0].text = "Running head"
    file.add_heading("First", 1)
    file.add_paragraph("A sentence with <angles> & more.")
    file.add_paragraph("red", style="List Bullet")
    file.add_paragraph("green", style="List Bullet")
    file.add_heading("Second", 2)
    table = file.add_table(2, 2)
    for row, values in enumerate((("Name", "Value"), ("a|b", "7"))):
        for column, value in enumerate(values):
            table.cell(row, column).text = value
    return _saved(file)


def make_pptx() -> bytes:
    """Two slides with titles; the second one with notes and a table."""
    file = pptx.Presentation()
    file.core_properties.title = "The Deck"
    file.core_properties.author = "Ann"
    file.core_properties.created = MOMENT
    file.core_properties.modified = MOMENT
    for number, body in enumerate(("alpha\nbeta", "gamma <x> & y"), 1):
        slide = file.slides.add_slide(file.slide_layouts[1])
        slide.shapes.title.text = f"Slide {number}"
        slide.placeholders[1].text = body
    slide.notes_slide.notes_text_frame.text = "Say this aloud."
    table = slide.shapes.add_table(1, 2, 0, 0, 914400, 914400).table
    table.cell(0, 0).text, table.cell(0, 1).text = "left", "right"
    return _saved(file)


def make_xlsx() -> bytes:
    """Two sheets: one of names, dates and numbers, with an empty row between them; one hidden."""
    file = openpyxl.Workbook()
    file.properties.title = "The Book"
    file.properties.creator = "Ann"
    file.properties.created = file.properties.modified = MOMENT
    sheet = file.active
    assert sheet is not None
    sheet.title = "Prices"
    for row in (
        ["Name", "Day", "Price"],
        ["pear", datetime(2024, 1, 2), 0.1 + 0.2],
        [],
        ["plum", MOMENT, 7],
    ):
        sheet.append(row)
    second = file.create_sheet("More")
    second["B3"] = "lonely | cell"
    saved = _saved(file)
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:  # it writes the time of day, whatever it is told
        core = re.sub(rb"(<dcterms:modified[^>]*>)[^<]*", rb"\g<1>2024-01-02T03:04:05Z", archive.read(_CORE))
    return changed(saved, {_CORE: core})


def make_epub(chapters: Mapping[str, str] | None = None) -> bytes:
    """A book of two chapters, with a table of contents; or of the given ones (name of the file: XHTML)."""
    chapters = chapters or {
        "one.xhtml": _xhtml("One", "<h1>Chapter One</h1><p>It was a <b>dark</b> night.</p>"),
        "two.xhtml": _xhtml("Two", "<h1>Chapter Two</h1><ul><li>wind</li><li>rain</li></ul>"),
    }
    items = "".join(
        f'<item id="c{number}" href="text/{name}" media-type="application/xhtml+xml"/>'
        for number, name in enumerate(chapters)
    )
    spine = "".join(f'<itemref idref="c{number}"/>' for number in range(len(chapters)))
    package = (
        '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="i">'
        '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The Novel</dc:title><dc:creator>Ann'
        "</dc:creator><dc:language>en</dc:language><dc:date>2024-01-02</dc:date></metadata><manifest>"
        '<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
        f'{items}</manifest><spine><itemref idref="nav"/>{spine}</spine></package>'
    )
    container = (
        '<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">'
        '<rootfiles><rootfile full-path="OEBPS/package.opf" media-type="application/oebps-package+xml"/></rootfiles>'
        "</container>"
    )
    links = "".join(f'<li><a href="text/{name}">{name}</a></li>' for name in chapters)
    return make_zip(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": container,
            "OEBPS/package.opf": package,
            "OEBPS/nav.xhtml": _xhtml("Contents", f"<nav><h1>Contents</h1><ol>{links}</ol></nav>"),
            **{f"OEBPS/text/{name}": text for name, text in chapters.items()},
        }
    )


def make_odt() -> bytes:
    """A heading, a paragraph, a list and a table."""
    names = " ".join(
        f'xmlns:{prefix}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for prefix, name in (("office", "office"), ("text", "text"), ("table", "table"), ("meta", "meta"))
    )
    body = (
        '<text:h text:outline-level="1">First</text:h><text:p>A <text:span>sentence</text:span> with <text:s '
        'text:c="2"/>spaces &amp; &lt;angles&gt;.</text:p><text:list><text:list-item><text:p>red</text:p>'
        "</text:list-item></text:list><table:table><table:table-row><table:table-cell><text:p>left</text:p>"
        "</table:table-cell><table:table-cell><text:p>right</text:p></table:table-cell></table:table-row></table:table>"
    )
    return make_zip(
        {
            "mimetype": "application/vnd.oasis.opendocument.text",
            "content.xml": f'<?xml version="1.0"?><office:document-content {names}><office:body><office:text>{body}'
            "</office:text></office:body></office:document-content>",
            "meta.xml": f'<?xml version="1.0"?><office:document-meta {names} '
            'xmlns:dc="http://purl.org/dc/elements/1.1/"><office:meta><dc:title>The Letter</dc:title>'
            "<meta:initial-creator>Ann</meta:initial-creator></office:meta></office:document-meta>",
        }
    )


def make_eml() -> bytes:
    """A mail with a plain part, the same as HTML, and an attachment."""
    mail = EmailMessage()
    mail["Subject"] = "Größe und Gewicht"
    mail["From"] = "Ann Änderson <ann@example.org>"
    mail["To"] = "Bob <bob@example.org>, carol@example.org"
    mail["Date"] = "Tue, 02 Jan 2024 03:04:05 +0100"
    mail["Message-ID"] = "<1@example.org>"
    mail.set_content("Grüße, the plain text = it.\n", charset="iso-8859-1", cte="quoted-printable")
    mail.add_alternative("<p>Grüße, the <b>HTML</b> text.</p>", subtype="html", cte="base64")
    mail.add_attachment(b"\x00\x01", maintype="application", subtype="octet-stream", filename="data.bin")
    mail.set_boundary("outer")
    next(mail.iter_parts()).set_boundary("inner")
    return mail.as_bytes()


def make_notebook() -> bytes:
    """A Markdown cell, and a code cell with a printed line and a picture."""
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# The Study\n", "\n", "Some prose."]},
        {
            "cell_type": "code",
            "execution_count": 1,
            "metadata": {},
            "source": "print('hello')",
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["hello\n"]},
                {
                    "output_type": "display_data",
                    "data": {"image/png": "iVBORw0KGgo=" * 100, "text/plain": ["<Figure>"]},
                    "metadata": {},
                },
            ],
        },
    ]
    kernel = {"kernelspec": {"name": "python3"}, "language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}).encode()


RST = b"""=========
The Guide
=========

:Author: Ann
:Date: 2024-01-02

Install
-------

Call :func:`~pkg.run` with ``x``.

.. note:: Mind the `gap <https://example.org>`_.

.. code-block:: python

   run(1)
"""
RTF = rb"""{\rtf1\ansi\ansicpg1252{\fonttbl{\f0 Arial;}}{\info{\title The Memo}{\author Ann}}
A line.\par caf\'e9 \u8364?.\par}"""


def seeds() -> dict[str, bytes]:
    """One good document of every format: name of the file and bytes."""
    return {
        "seed.docx": make_docx(),
        "seed.pptx": make_pptx(),
        "seed.xlsx": make_xlsx(),
        "seed.epub": make_epub(),
        "seed.odt": make_odt(),
        "seed.eml": make_eml(),
        "seed.ipynb": make_notebook(),
        "seed.rst": RST,
        "seed.rtf": RTF,
    }


def make_zip(files: Mapping[str, str | bytes]) -> bytes:
    """A zip archive with these files in this order, compressed but for `mimetype`, without the time of day."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_STORED if name == "mimetype" else zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return buffer.getvalue()


def changed(data: bytes, files: Mapping[str, str | bytes]) -> bytes:
    """A zip archive with some of its files replaced, or others added."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found: dict[str, str | bytes] = {name: archive.read(name) for name in archive.namelist()}
    return make_zip({**found, **files})


def word_part(body: str, head: str = "") -> str:
    """The main part of a Word document with this body (its namespace is w)."""
    return f'<?xml version="1.0"?>{head}<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>'


def _xhtml(title: str, body: str) -> str:
    return (
        f'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>{title}</title></head>'
        f"<body>{body}</body></html>"
    )


def _saved(file: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        file.save(buffer)
    return changed(buffer.getvalue(), {})
