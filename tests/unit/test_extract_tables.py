"""Tables as one document: text that says in every row what its values are."""

from __future__ import annotations

import io
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DocumentTooLarge, ExtractionFailed
from pipeline.extract import extract, tables


def parquet(columns: dict[str, object]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_every_row_of_a_csv_file_names_its_columns(delimiter: str) -> None:
    text = 'id,name,note\n1,One,"two\nlines"\n\n2,Two,\n'.replace(",", delimiter)

    found = extract(text.encode("utf-16"), None, "a.csv")

    assert found.text == "id: 1\nname: One\nnote: two\nlines\n\nid: 2\nname: Two"
    assert found.markup == "plain"


@pytest.mark.parametrize(
    "text",
    [
        "one column\nonly",
        "a, text\nwith commas, here, and, there\nand none\nat all",
        "a,b",
        'a,b\n"never closed',
        "a;b,c\nd",
    ],
)
def test_what_is_no_table_under_a_header_stays_as_it_is(text: str) -> None:
    assert extract(text.encode(), None, "a.csv").text == text


def test_a_row_with_more_fields_than_the_header_loses_none() -> None:
    rows = "\n".join(f"{number},x" for number in range(20))

    assert extract(f"a,b\n{rows}\n1,2,3".encode(), None, "a.csv").text.endswith("a: 1\nb: 2\ncolumn_3: 3")


def test_the_rows_of_a_parquet_file_are_paragraphs() -> None:
    data = parquet(
        {
            "id": [1, 2],
            "day": [date(2020, 1, 2), None],
            "nested": [{"a": [1, 2], "b": "x"}, None],
            "score": [float("nan"), 0.5],
            "raw": [b"\0", b"\1"],
            "at": pa.array([1, None], pa.timestamp("ns")),
        }
    )

    found = extract(data, None, "a.parquet")

    assert (
        found.text
        == "id: 1\nday: 2020-01-02\nnested: a: 1, 2; b: x\nat: 1970-01-01 00:00:00.000000001\n\nid: 2\nscore: 0.5"
    )


def test_a_parquet_file_is_known_by_its_content_and_one_that_is_none_is_named() -> None:
    assert extract(parquet({"a": ["x"]}), None, "table").text == "a: x"
    with pytest.raises(ExtractionFailed, match=r"a\.parquet cannot be read as Parquet"):
        extract(b"PAR1 and nothing else PAR1", None, "a.parquet")


def test_a_table_that_becomes_too_long_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MAX_CHARACTERS", 100)

    with pytest.raises(DocumentTooLarge, match=r"a\.csv .*make a document of each row \(--id-column\)"):
        extract(b"name,value\n" + b"abc,1\n" * 50, None, "a.csv")
