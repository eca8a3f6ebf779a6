from __future__ import annotations

import io
import zipfile

import docx
import openpyxl  # type: ignore[import-untyped]
import pptx
import pytest
from docx.oxml import parse_xml
from office_files import (
    WORD,
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
from pipeline.errors import ExtractionFailed, InvalidDocument, UnsupportedFormat
from pipeline.extract import extract

SEEDS = seeds()
OLE = bytes.fromhex("d0cf11e0a1b11ae1") + bytes(500)


def text_of(data: bytes, name: str) -> str:
    return extract(data, None, name).text


def saved(file: object) -> bytes:
    buffer = io.BytesIO()
    file.save(buffer)  # type: ignore[attr-defined]
    return buffer.getvalue()


def word(body: str, **parts: str) -> str:
    """The text of a Word document with this body and these other parts (numbering="...", footnotes="...")."""
    names = {f"word/{name}.xml": f'<w:{name} xmlns:w="{WORD}">{inner}</w:{name}>' for name, inner in parts.items()}
    kinds = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    relations = "".join(f'<Relationship Id="x{name}" Type="{kinds}/{name}" Target="{name}.xml"/>' for name in parts)
    relation_part = (
        f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{relations}'
        "</Relationships>"
    )
    package = {"[Content_Types].xml": "<Types/>", "word/document.xml": word_part(body), **names}
    return text_of(make_zip({**package, "word/_rels/document.xml.rels": relation_part}), "a.docx")


def run(text: str, properties: str = "") -> str:
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


# -- what a format gives -----------------------------------------------------------------------------------------------


def test_a_word_document_gives_headings_lists_and_tables_and_no_running_heads() -> None:
    found = extract(make_docx(), None, "a.docx")

    assert found.text == (
        "# First\n\nA sentence with <angles> & more.\n\n- red\n- green\n\n## Second\n\n"
        "| Name | Value |\n| --- | --- |\n| a\\|b | 7 |"
    )
    assert found.title == "The Title"
    assert found.metadata["authors"] == ["Ann", "Bob"]
    assert found.metadata["subject"] == "About it"
    assert found.metadata["keywords"] == ["one", "two"]
    assert found.metadata["created"] == found.metadata["modified"] == "2024-01-02T03:04:05Z"


def test_what_is_deleted_hidden_or_an_instruction_is_no_text_of_a_word_document() -> None:
    body = (
        f"<w:p>{run('kept')}<w:del><w:r><w:delText>deleted</w:delText></w:r></w:del><w:ins>{run(' added')}</w:ins>"
        + run("hidden", "<w:vanish/>")
        + run(" shown", "<w:vanish w:val='0'/>")
        + '<w:r><w:fldChar w:fldCharType="begin"/></w:r><w:r><w:instrText>PAGEREF x</w:instrText></w:r>'
        '<w:r><w:fldChar w:fldCharType="separate"/></w:r>' + run(" 12") + '<w:r><w:fldChar w:fldCharType="end"/></w:r>'
        "</w:p><w:sdt><w:sdtPr><w:docPartObj><w:docPartGallery w:val='Table of Contents'/></w:docPartObj></w:sdtPr>"
        f"<w:sdtContent><w:p>{run('Contents')}</w:p></w:sdtContent></w:sdt>"
        f"<w:sdt><w:sdtContent><w:p>{run('in a control')}</w:p></w:sdtContent></w:sdt>"
    )

    assert word(body) == "kept added shown 12\n\nin a control"


def test_lists_of_word_are_counted_as_word_counts_them() -> None:
    levels = "".join(
        f'<w:lvl w:ilvl="{level}"><w:start w:val="1"/><w:numFmt w:val="{kind}"/><w:lvlText w:val="{text}"/></w:lvl>'
        for level, kind, text in ((0, "decimal", "%1."), (1, "lowerLetter", "%2)"), (2, "upperRoman", "%1.%3"))
    )
    numbering = f'<w:abstractNum w:abstractNumId="7">{levels}</w:abstractNum>' + "".join(
        f'<w:num w:numId="{number}"><w:abstractNumId w:val="7"/>{override}</w:num>'
        for number, override in (
            (1, ""),
            (2, '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="5"/></w:lvlOverride>'),
        )
    )
    body = "".join(
        f'<w:p><w:pPr><w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr></w:pPr>{run(text)}</w:p>'
        for number, level, text in (
            (1, 0, "one"),
            (1, 1, "one a"),
            (1, 1, "one b"),
            (1, 0, "two"),
            (1, 1, "two a"),
            (1, 2, "deep"),
            (2, 0, "five"),
        )
    )

    assert word(body, numbering=numbering) == (
        "1. one\n  a) one a\n  b) one b\n2. two\n  a) two a\n    2.I deep\n5. five"
    )


def test_notes_and_text_boxes_of_word_follow_their_paragraph() -> None:
    box = f"<w:txbxContent><w:p>{run('In a box.')}</w:p></w:txbxContent>"
    body = (
        f"<w:p>{run('A claim')}<w:r><w:footnoteReference w:id='2'/></w:r>{run('.')}<w:r>"
        "<mc:AlternateContent xmlns:mc='http://schemas.openxmlformats.org/markup-compatibility/2006'>"
        f"<mc:Choice>{box}</mc:Choice><mc:Fallback>{box}</mc:Fallback></mc:AlternateContent></w:r></w:p>"
        f"<w:p>{run('Next.')}</w:p>"
    )
    notes = f'<w:footnote w:id="2"><w:p>{run("The proof.")}</w:p></w:footnote>'

    assert word(body, footnotes=notes) == "A claim[^1].\n\nIn a box.\n\n[^1]: The proof.\n\nNext."


def test_merged_cells_of_word_keep_their_columns_and_a_page_in_a_cell_is_no_table() -> None:
    file = docx.Document()
    table = file.add_table(2, 3)
    table.cell(0, 0).merge(table.cell(0, 1)).text = "wide"
    table.cell(0, 2).text = "last"
    for column in range(3):
        table.cell(1, column).text = str(column)
    file.add_table(1, 2).cell(0, 0).text = "word " * 400
    table.cell(1, 2)._tc.append(
        parse_xml(f'<w:sdt xmlns:w="{WORD}"><w:sdtContent><w:p>{run("too")}</w:p></w:sdtContent></w:sdt>')
    )

    text = text_of(saved(file), "a.docx")

    assert text.startswith("| wide |  | last |\n| --- | --- | --- |\n| 0 | 1 | 2 too |\n\nword word")
    assert text.count("|") == 12


def test_slides_are_pages_with_their_titles_tables_and_notes() -> None:
    found = extract(make_pptx(), None, "a.pptx")

    assert found.text == (
        "# Slide 1\n\n- alpha\n- beta\n\n# Slide 2\n\ngamma <x> & y\n\n| left | right |\n| --- | --- |\n\n"
        "Speaker notes: Say this aloud."
    )
    assert [found.text[start:] for start in found.pages][1].startswith("# Slide 2")
    assert found.title == "The Deck"
    assert found.metadata["pages"] == 2


def test_a_hidden_slide_and_the_slides_footer_are_left_out_and_the_count_stays() -> None:
    file = pptx.Presentation()
    for number in range(3):
        slide = file.slides.add_slide(file.slide_layouts[5])
        slide.shapes.title.text = f"Slide {number + 1}"
        slide.shapes.add_textbox(0, 0, 9144, 9144).text_frame.text = f"Text {number + 1}"
    file.slides[1]._element.set("show", "0")

    found = extract(saved(file), None, "a.pptx")

    assert found.text == "# Slide 1\n\nText 1\n\n# Slide 3\n\nText 3"
    assert found.pages == (0, 19, 19)


def test_a_workbook_shows_values_as_a_person_sees_them() -> None:
    found = extract(make_xlsx(), None, "a.xlsx")

    assert found.text == (
        "# Prices\n\n| Name | Day | Price |\n| --- | --- | --- |\n| pear | 2024-01-02 | 0.3 |\n"
        "| plum | 2024-01-02 03:04:05 | 7 |\n\n# More\n\nlonely | cell"
    )
    assert found.title == "The Book"
    assert found.metadata["authors"] == ["Ann"]


@pytest.mark.parametrize(
    ("value", "code", "shown"),
    [
        (1.5000000001, "General", "1.5"),
        (1234567.891, "#,##0.00", "1234567.89"),
        (0.125, "0.0%", "12.5%"),
        (0.5, "0%", "50%"),
        (2.0, "0.00", "2"),
        (45293, "d/m/yy", "2024-01-02"),
        (45293.25, 'dddd", "mmmm dd hh:mm', "2024-01-02 06:00:00"),
        (0.5, "h:mm AM/PM", "12:00:00"),
        (1.5, "[h]:mm", "36:00:00"),
        (1, "yyyy-mm-dd", "1900-01-01"),
        (61, "yyyy-mm-dd", "1900-03-01"),
        (7, '"Day "0', "7"),
        (3e20, "General", "3e+20"),
        (12345678901234, "General", "12345678901234"),
        (0.001, "0.00", "0.001"),
        (-3.25, "[Red]0.00;(0.00)", "-3.25"),
        (5, "@", "5"),
    ],
)
def test_a_number_is_shown_as_its_format_says(value: float, code: str, shown: str) -> None:
    file = openpyxl.Workbook()
    sheet = file.active
    assert sheet is not None
    sheet["A1"] = value
    sheet["A1"].number_format = code

    assert text_of(saved(file), "a.xlsx") == f"# Sheet\n\n{shown}"


def test_empty_and_hidden_parts_of_a_workbook_are_left_out_and_a_far_cell_costs_nothing() -> None:
    file = openpyxl.Workbook()
    sheet = file.active
    assert sheet is not None
    sheet["B2"] = "The name of the table"
    sheet["B4"], sheet["D4"] = "left", "right"
    sheet["B9"], sheet["D9"] = True, "=1+1"
    sheet["XFD1048576"] = "far"
    file.create_sheet("Secret")["A1"] = "hidden"
    file["Secret"].sheet_state = "hidden"
    file.create_sheet("Empty")

    assert text_of(saved(file), "a.xlsx") == (
        "# Sheet\n\nThe name of the table\n\n| left | right |  |\n| --- | --- | --- |\n| TRUE |  |  |\n|  |  | far |"
    )


def test_a_book_is_read_in_the_order_of_its_spine_without_its_contents() -> None:
    found = extract(make_epub(), None, "a.epub")

    assert found.text == "# Chapter One\n\nIt was a dark night.\n\n# Chapter Two\n\n- wind\n- rain"
    assert found.title == "The Novel"
    assert found.metadata == {"authors": ["Ann"], "language": "en", "created": "2024-01-02"}


def test_a_page_of_contents_is_left_out_of_a_book_unless_it_says_more_than_that() -> None:
    with zipfile.ZipFile(io.BytesIO(make_epub())) as archive:
        package = archive.read("OEBPS/package.opf").decode()
    guide = '<guide><reference type="toc" title="Contents" href="text/one.xhtml"/></guide></package>'
    book = changed(make_epub(), {"OEBPS/package.opf": package.replace("</package>", guide)})
    page = f'<html><body><h1>Front</h1><p>{"A license. " * 30}</p><ul><li><a href="x">One</a></li></ul></body></html>'

    assert text_of(book, "a.epub") == "# Chapter Two\n\n- wind\n- rain"
    assert "A license." in text_of(changed(book, {"OEBPS/text/one.xhtml": page}), "a.epub")


def test_an_open_document_is_read_and_an_encrypted_one_refused() -> None:
    found = extract(make_odt(), None, "a.odt")
    names = 'xmlns:manifest="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"'
    entry = "<manifest:file-entry><manifest:encryption-data/></manifest:file-entry>"
    locked = f"<manifest:manifest {names}>{entry}</manifest:manifest>"

    assert found.text == "# First\n\nA sentence with spaces & <angles>.\n\n- red\n\n| left | right |\n| --- | --- |"
    assert (found.title, found.metadata) == ("The Letter", {"authors": ["Ann"]})
    with pytest.raises(ExtractionFailed, match=r"file:///a\.odt is encrypted"):
        extract(changed(make_odt(), {"META-INF/manifest.xml": locked}), None, "file:///a.odt")


def test_rich_text_is_read_with_its_charsets_tables_and_without_what_is_hidden() -> None:
    data = (
        rb"{\rtf1\ansi\ansicpg1251\deff0{\fonttbl{\f0\fcharset204 Arial;}{\f1\fcharset0 X;}}"
        rb"{\info{\title T}{\author A; B}}{\header Running}"
        rb"{\pard\outlinelevel0 Head\par}\pard \'cf\'f0\'e8 {\v hidden}\u8364?\u-10179?\u-8704? <x>\par"
        rb"{\*\unknown x}{\field{\*\fldinst HYPERLINK}{\fldrslt link}} {\pict 00ff}\{b\}\par"
        rb"\trowd\intbl a\cell b\cell\row\intbl 1\cell 2\cell\row\pard end\par}"
    )

    found = extract(data, None, "a.rtf")

    assert found.text == "# Head\n\nПри €😀 <x>\n\nlink {b}\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\nend"
    assert (found.title, found.metadata) == ("T", {"authors": ["A", "B"]})


# -- which format it is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_the_content_of_a_container_outweighs_its_name(name: str) -> None:
    data, right = SEEDS[name], media.detect(name, SEEDS[name])

    assert media.format_of(right) is not None
    if data.startswith((b"PK", b"{\\rtf")):
        for wrong in ("a", "a.txt", "a.docx", "a.doc", "a.xls", "a.epub", "a.html"):
            assert media.format_of(media.detect(wrong, data)) == media.format_of(right), wrong


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%PDF-1.4", "application/pdf"),
        (b"<html><table>", "text/html"),
        (b"a,b\n1,2\n", "text/plain"),
        (make_zip({"a.txt": "x"}), "application/zip"),
        (make_docx()[:2000], DOCX),
        (b"\x00\x01\x02\x03" * 99, DOCX),
    ],
)
def test_what_only_calls_itself_a_word_document_is_found_out(data: bytes, kind: str) -> None:
    assert media.detect("a.docx", data) == kind


@pytest.mark.parametrize(
    ("streams", "error", "said"),
    [
        (["EncryptedPackage", "EncryptionInfo"], ExtractionFailed, "is encrypted; save it without a password"),
        (["WordDocument"], UnsupportedFormat, "before 2007; save it as .docx"),
        (["PowerPoint Document"], UnsupportedFormat, "before 2007; save it as .pptx"),
    ],
)
def test_encrypted_and_legacy_office_files_are_named_with_the_remedy(
    streams: list[str], error: type[InvalidDocument], said: str
) -> None:
    data = OLE + b"".join(name.encode("utf-16-le") + bytes(64) for name in streams)

    for name in ("x.docx", "x.doc", "x.xlsx", "x.xls", "x.bin", "x"):
        with pytest.raises(error, match=f"file:///{name} .*{said}"):
            extract(data, None, f"file:///{name}")
