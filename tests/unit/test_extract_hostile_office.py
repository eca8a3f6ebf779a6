"""Office files, books and mails that nobody meant to send, or that somebody did."""

from __future__ import annotations

import inspect
import io
import random
import zipfile
from collections.abc import Iterator

import pytest
import python_calamine
from hypothesis import given, settings
from hypothesis import strategies as st
from office_files import (
    changed,
    make_docx,
    make_epub,
    make_odt,
    make_pptx,
    make_xlsx,
    make_zip,
    seeds,
    word_part,
)

from pipeline import media
from pipeline.containers import DOCX
from pipeline.errors import DocumentTooLarge, EmptyDocument, ExtractionFailed, InvalidDocument
from pipeline.extract import extract
from pipeline.extract.office.package import MAX_UNPACKED, resolve
from pipeline.extract.office.workbook import translate

SEEDS = seeds()


def text_of(data: bytes, name: str) -> str:
    return extract(data, None, name).text


BILLION = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]>'


@pytest.mark.parametrize("head", [BILLION, '<!DOCTYPE x [<!ENTITY c SYSTEM "file:///etc/passwd">]>'])
@pytest.mark.parametrize(
    ("data", "name", "part"),
    [
        (make_docx(), "a.docx", "word/document.xml"),
        (make_xlsx(), "a.xlsx", "xl/worksheets/sheet1.xml"),
        (make_pptx(), "a.pptx", "ppt/slides/slide1.xml"),
        (make_odt(), "a.odt", "content.xml"),
        (make_epub(), "a.epub", "OEBPS/package.opf"),
        (make_docx(), "a.docx", "docProps/core.xml"),
    ],
)
def test_xml_entities_are_refused_by_name(data: bytes, name: str, part: str, head: str) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        content = archive.read(part).decode()
    declaration, _, rest = content.partition("?>") if content.startswith("<?xml") else ("", "", content)
    bomb = (declaration + "?>" if declaration else "") + head + rest.replace("</", "&c;</", 1)

    with pytest.raises(ExtractionFailed, match=f"file:///{name} is broken: its part {part} .*declares XML entities"):
        extract(changed(data, {part: bomb}), None, f"file:///{name}")


def test_entities_in_the_chapters_of_a_book_do_not_expand_and_open_nothing() -> None:
    for head in (BILLION, '<!DOCTYPE x [<!ENTITY c SYSTEM "file:///etc/passwd">]>'):
        text = text_of(
            make_epub({"a.xhtml": f"<?xml version='1.0'?>{head}<html><body><p>so: &c;</p></body></html>"}), "a.epub"
        )

        assert len(text) < 200
        assert "root:" not in text


def test_a_part_that_unpacks_to_too_much_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a part of a megabyte that claims to be small, and a limit under that
    monkeypatch.setattr("pipeline.extract.office.package.MAX_UNPACKED", 500_000)
    data = bytearray(changed(make_docx(), {"word/document.xml": word_part("<w:p/>" + " " * 1_000_000)}))

    # Then what it really unpacks to counts
    with pytest.raises(DocumentTooLarge, match=r"file:///bomb\.docx unpacks to more than"):
        extract(bytes(data), None, "file:///bomb.docx")
    assert MAX_UNPACKED == 256 * 2**20


def test_what_the_directory_of_a_zip_claims_about_sizes_is_not_believed() -> None:
    data = bytearray(make_docx())
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        data[at + 24 : at + 28] = (2**31 - 1).to_bytes(4, "little")  # what each part is said to unpack to

    assert text_of(bytes(data), "a.docx") == text_of(make_docx(), "a.docx")


def test_a_directory_of_millions_of_parts_is_not_opened() -> None:
    data = bytearray(make_docx())
    end = data.rfind(b"PK\x05\x06")
    data[end + 12 : end + 16] = (2**30).to_bytes(4, "little")

    with pytest.raises(InvalidDocument, match=r"file:///many\.docx"):
        extract(bytes(data), DOCX, "file:///many.docx")


@pytest.mark.parametrize(
    ("base", "target", "name"),
    [
        ("ppt/presentation.xml", "slides/slide1.xml", "ppt/slides/slide1.xml"),
        ("ppt/slides/slide1.xml", "../notes/n.xml", "ppt/notes/n.xml"),
        ("a/b", "/c/d", "c/d"),
        ("a/b", "../../../etc/passwd", "etc/passwd"),
        ("a/b", "..\\c%20d#top", "c d"),
    ],
)
def test_a_path_in_a_container_never_leads_out_of_it(base: str, target: str, name: str) -> None:
    assert resolve(base, target) == name


def test_a_part_outside_of_the_file_is_not_followed() -> None:
    with zipfile.ZipFile(io.BytesIO(make_pptx())) as archive:
        relations = archive.read("ppt/_rels/presentation.xml.rels").decode()
    outside = relations.replace("slides/slide1.xml", "../../../../../etc/passwd")

    with pytest.raises(ExtractionFailed, match=r"its slide etc/passwd is missing"):
        extract(changed(make_pptx(), {"ppt/_rels/presentation.xml.rels": outside}), None, "a.pptx")


def test_elements_nested_without_end_are_refused_and_no_stack_overflows() -> None:
    for tag in ("w:sdt", "w:tbl", "w:r", "w:smartTag"):
        body = f"<{tag}>" * 5000 + f"</{tag}>" * 5000
        with pytest.raises(ExtractionFailed, match="nested more than"):
            text_of(changed(make_docx(), {"word/document.xml": word_part(body)}), "a.docx")
    for tag in ("w:sdt", "w:tbl", "w:p"):
        body = f"<{tag}>" * 190 + f"</{tag}>" * 190
        with pytest.raises(EmptyDocument):
            text_of(changed(make_docx(), {"word/document.xml": word_part(body)}), "a.docx")


def test_a_locked_book_is_refused_and_one_with_locked_fonts_is_read() -> None:
    listing = (
        '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" '
        'xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:CipherReference URI="{}"/></encryption>'
    )
    font = changed(make_epub(), {"META-INF/encryption.xml": listing.format("OEBPS/font.otf")})
    chapter = changed(make_epub(), {"META-INF/encryption.xml": listing.format("OEBPS/text/one.xhtml")})

    assert "dark night" in text_of(font, "a.epub")
    with pytest.raises(ExtractionFailed, match=r"file:///b\.epub is encrypted \(DRM\)"):
        extract(chapter, None, "file:///b.epub")


def damaged() -> Iterator[tuple[str, bytes]]:
    """Every seed cut at several places, with bytes changed, and with parts of it exchanged; the same every time."""
    chance = random.Random(7)
    for name, data in sorted(SEEDS.items()):
        for _ in range(30):
            bad = bytearray(data)
            for _ in range(chance.randrange(1, 20)):
                bad[chance.randrange(len(bad))] = chance.randrange(256)
            yield name, bytes(bad)
        for share in (0.1, 0.5, 0.9, 0.99):
            yield name, data[: int(len(data) * share)]
        if data.startswith(b"PK"):
            yield from damaged_parts(name, data, chance)


def damaged_parts(name: str, data: bytes, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    for part, content in parts.items():
        if part.endswith((".xml", ".rels", ".opf", ".xhtml")) and "theme" not in part and "Layout" not in part:
            bad = bytearray(content)
            for _ in range(3):
                at = chance.randrange(len(bad))
                bad[at : at + chance.randrange(9)] = b""
            yield name, make_zip({**parts, part: bytes(bad)})
            yield name, make_zip({key: value for key, value in parts.items() if key != part})


def test_a_damaged_document_of_any_format_is_read_or_refused_by_name_and_nothing_else() -> None:
    count = 0
    for name, data in damaged():
        count += 1
        try:
            assert extract(data, None, f"file:///{name}").text
        except InvalidDocument as error:
            assert f"file:///{name}" in str(error)  # noqa: PT017
    assert count > 300


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(kind for kind, name in media.FORMATS.items() if name not in {"pdf"})),
    st.binary(max_size=400),
)
def test_any_bytes_of_any_declared_type_are_read_or_refused(kind: str, data: bytes) -> None:
    try:
        assert extract(data, kind, "u").text
    except InvalidDocument as error:
        assert "u" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_the_same_bytes_give_the_same_text_twice(name: str) -> None:
    assert extract(SEEDS[name], None, name) == extract(SEEDS[name], None, name)


def test_every_error_of_the_workbook_reader_is_translated_and_names_the_document() -> None:
    errors = [
        found for _, found in inspect.getmembers(python_calamine, inspect.isclass) if issubclass(found, Exception)
    ]
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    assert len(errors) >= 5

    for error in [*errors, OSError, MemoryError, panic]:
        assert "file:///a.xls" in str(translate(error("something happened"), "file:///a.xls")), error
    assert translate(KeyboardInterrupt(), "u") is None


@pytest.mark.parametrize("name", ["a.xls", "a.xlsb", "a.ods"])
def test_a_workbook_that_is_none_says_so(name: str) -> None:
    with pytest.raises(ExtractionFailed, match=f"file:///{name} is not a workbook that can be read .*save it as .xlsx"):
        extract(b"\x00\x01\x02\x03" * 99, None, f"file:///{name}")
