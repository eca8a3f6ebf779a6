"""Rows of JSON, workbooks and Parquet files as documents."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import openpyxl  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from table_files import SETTINGS, names, read, write

from pipeline.errors import InvalidRequest
from pipeline.settings import SourceSettings
from pipeline.sources import Rejected, Rows, open_source


def test_json_lines_keep_nested_values_and_columns_are_dotted_paths(tmp_path: Path) -> None:
    record = {"meta": {"id": "m/1", "lang": "en"}, "body": {"text": "hello", "n": 1}, "tags": ["a", None], "x": None}

    [document], _ = read(write(tmp_path / "d.jsonl", "\n" + json.dumps(record) + "\n"), Rows("meta.id", ("body.text",)))

    assert document.uri.endswith("d.jsonl#m/1")
    assert document.content == "hello"
    assert {key: document.metadata[key] for key in ("meta", "body", "tags", "meta.id")} == {
        "meta": {"lang": "en"},
        "body": {"n": 1},
        "tags": ["a"],
        "meta.id": "m/1",
    }
    assert "x" not in document.metadata


def test_bad_json_lines_are_rejected_by_line_and_reason(tmp_path: Path) -> None:
    lines = [
        b'{"id":1,"body":"a"}',
        b"{bad",
        b"[1]",
        b'"\xff"',
        b"[" * 100_000,
        b'{"id":{},"body":"a"}',
        b'{"id":2,"body":"b"}',
    ]

    documents, rejected = read(write(tmp_path / "d.jsonl", b"\n".join(lines)), Rows("id", ("body",)))

    assert names(documents) == ["d.jsonl#1", "d.jsonl#2"]
    assert [rejected[f"d.jsonl#row={number}"].partition(": ")[2][:28] for number in range(2, 7)] == [
        "it is not valid JSON: Expect",
        "it is a list, not an object ",
        "it is not UTF-8, as JSON mus",
        "its JSON is nested too deep",
        "the id, column 'id', is no t",
    ]


def test_a_json_array_is_read_as_a_stream_of_records_whatever_its_size(tmp_path: Path) -> None:
    settings = SourceSettings(max_bytes=200_000)
    records = [{"id": number, "body": "word " * (number % 7000)} for number in range(1, 300)]
    path = write(tmp_path / "d.json", json.dumps(records, indent=1))
    assert path.stat().st_size > settings.max_bytes

    documents, rejected = read(path, Rows("id", ("body",)), settings)

    assert rejected == {}
    assert [document.content for document in documents] == [record["body"] for record in records]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"id":1,"body":"a"},{"id":2,', "is not valid JSON at item 2"),
        ('[{"id":1,"body":"a"} {"id":2}]', "is not valid JSON at item 1: , or ] is missing"),
        ('[{"id":1,"body":"a"}] x', "there is more after the end"),
        ('[{"id":1,"body":"a"}', "it breaks off"),
    ],
)
def test_a_json_array_that_breaks_keeps_what_came_before_and_protects_the_rest(
    tmp_path: Path, content: str, problem: str
) -> None:
    source = open_source(write(tmp_path / "d.json", content), SETTINGS, rows=Rows("id", ("body",)))

    first, last = list(source)

    assert first.uri.endswith("#1")
    assert isinstance(last, Rejected)
    assert problem in last.error
    assert source.unreadable == (f"file://{tmp_path}/d.json",)


def test_records_are_found_inside_an_object_and_where_they_are_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", '{"result": {"items": [{"id": 1, "body": "a"}, {"id": 2, "body": "b"}]}}')

    documents, _ = read(path, Rows("id", ("body",), records="result.items"))

    assert names(documents) == ["d.json#1", "d.json#2"]
    with pytest.raises(InvalidRequest, match=r"no list at 'items'; there are lists at: result\.items"):
        open_source(path, SETTINGS, rows=Rows("id", records="items"))
    with pytest.raises(InvalidRequest, match=r"there are lists of objects at: result\.items \(--records"):
        open_source(path, SETTINGS, rows=Rows("id", ("body",)))


def test_an_object_alone_is_one_record_and_too_large_a_one_says_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", '{"id": "a", "body": "text"}')

    [document], _ = read(path, Rows("id", ("body",)))
    _, rejected = read(path, Rows("id", ("body",)), SourceSettings(max_bytes=10))

    assert document.uri.endswith("d.json#a")
    assert "write it as JSON Lines or as an array" in rejected["d.json"]


def test_a_sheet_gives_typed_values_under_its_first_row(tmp_path: Path) -> None:
    workbook = openpyxl.Workbook()
    sheet = workbook.create_sheet("Notes")
    for row in (
        [],
        ["id", "body", "price", "count", "when", ""],
        [1, "a", 2, 3, datetime(2020, 1, 2), "x"],
        [2, "b", 1.5, 4],
    ):
        sheet.append(row)
    workbook.save(tmp_path / "d.xlsx")

    documents, rejected = read(tmp_path / "d.xlsx", Rows("id", ("body",), sheet="Notes"))

    assert rejected == {}
    assert names(documents) == ["d.xlsx#1", "d.xlsx#2"]
    expected = {
        "source": "file",
        "path": "d.xlsx",
        "id": 1,
        "price": 2.0,
        "count": 3,
        "when": "2020-01-02",
        "column_6": "x",
    }
    assert documents[0].metadata == expected
    assert isinstance(documents[0].metadata["price"], float)
    with pytest.raises(InvalidRequest, match=r"d\.xlsx has no sheet 'Nots'; it has: Sheet, Notes"):
        open_source(tmp_path / "d.xlsx", SETTINGS, rows=Rows("id", sheet="Nots"))


def test_a_workbook_whose_grid_or_content_is_too_much_is_rejected_and_says_what_to_do(tmp_path: Path) -> None:
    workbook = openpyxl.Workbook()
    assert workbook.active is not None
    workbook.active["A1"], workbook.active["XFD1000000"] = "id", "far"
    workbook.save(tmp_path / "far.xlsx")

    _, far = read(tmp_path / "far.xlsx", Rows("id"))
    _, large = read(tmp_path / "far.xlsx", Rows("id"), SourceSettings(max_bytes=100))
    _, junk = read(write(tmp_path / "junk.xlsx", b"PK\3\4junk"), Rows("id"))

    assert "1,000,000 rows and 16,384 columns" in far["far.xlsx"]
    assert "save it as CSV" in large["far.xlsx"]
    assert "cannot be read as a workbook" in junk["junk.xlsx"]


def test_parquet_keeps_its_types_and_leaves_out_what_json_has_not(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": [1, 2],
            "body": ["a", "b"],
            "score": [0.5, float("nan")],
            "price": [Decimal("1.00"), Decimal("2.50")],
            "at": pa.array([1_600_000_000_000_000_001, None], pa.timestamp("ns", "UTC")),
            "day": [date(2020, 1, 2), None],
            "far": pa.array([300_000_000_000, None], pa.timestamp("s")),
            "nested": [{"tags": ["x"], "n": None}, None],
            "raw": [b"\0", b"\1"],
        }
    )
    pq.write_table(table, tmp_path / "d.parquet")

    documents, rejected = read(tmp_path / "d.parquet", Rows("id", ("body",)))

    assert rejected == {}
    metadata = dict(documents[0].metadata)
    assert str(metadata.pop("far")).startswith("11476-")
    assert metadata == {
        "source": "file",
        "path": "d.parquet",
        "id": 1,
        "score": 0.5,
        "price": 1.0,
        "at": datetime.fromtimestamp(1_600_000_000, UTC).isoformat(),
        "day": "2020-01-02",
        "nested": {"tags": ["x"]},
    }
    assert documents[1].metadata == {"source": "file", "path": "d.parquet", "id": 2, "price": 2.5}


def test_parquet_that_is_none_is_rejected_by_name(tmp_path: Path) -> None:
    _, rejected = read(write(tmp_path / "d.parquet", b"PAR1 but not really PAR1"), Rows("id"))

    assert "d.parquet cannot be read as Parquet" in rejected["d.parquet"]
