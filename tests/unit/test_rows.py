"""Rows of tables and records of lists as documents."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from table_files import SETTINGS, names, read, write

from pipeline.errors import InvalidRequest, SourceRefused
from pipeline.settings import SourceSettings
from pipeline.sources import Rejected, Rows, open_source

ROWS = Rows("id", ("title", "body"))
CSV = "id,title,body,year,price,lang\n1,First,Postgres is the truth,2020,9.90,en\n2,Second,Redis is a broker,2021,10,\n"


def test_a_row_is_a_document_of_its_text_named_by_its_id_with_the_rest_as_metadata(tmp_path: Path) -> None:
    documents, rejected = read(write(tmp_path / "data.csv", CSV), ROWS)

    assert rejected == {}
    assert [document.uri for document in documents] == [f"file://{tmp_path}/data.csv#{number}" for number in (1, 2)]
    assert documents[0].content == "First\n\nPostgres is the truth"
    assert documents[0].metadata == {
        "source": "file",
        "path": "data.csv",
        "id": "1",
        "title": "First",
        "year": 2020,
        "price": 9.9,
        "lang": "en",
    }
    assert "lang" not in documents[1].metadata
    assert documents[1].metadata["price"] == 10.0


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (Rows("id", ("body",)), "Redis is a broker"),
        (Rows("id", ("body", "title")), "Redis is a broker\n\nSecond"),
        (Rows("id", ("title", "year", "body")), "Second\n\nyear: 2021\n\nbody: Redis is a broker"),
        (Rows("id", ("year", "body"), title_column="year"), "2021\n\nRedis is a broker"),
        (Rows("id"), "title: Second\nbody: Redis is a broker\nyear: 2021\nprice: 10\nlang: de"),
    ],
)
def test_the_text_of_several_columns_says_which_is_which(tmp_path: Path, rows: Rows, text: str) -> None:
    documents, _ = read(write(tmp_path / "data.csv", CSV.replace("10,\n", "10,de\n")), rows)

    # 10.0 is how a column of fractions has it, and 10 how a person reads it.
    assert documents[1].content == text


def test_without_an_id_column_a_row_is_named_by_its_number_as_a_spreadsheet_shows_it(tmp_path: Path) -> None:
    documents, _ = read(write(tmp_path / "data.csv", "\ufeff" + CSV), Rows(text_columns=("body",)))

    assert names(documents) == ["data.csv#row=2", "data.csv#row=3"]
    assert documents[0].metadata["id"] == 1


def test_chosen_metadata_columns_leave_the_others_out(tmp_path: Path) -> None:
    documents, _ = read(write(tmp_path / "data.csv", CSV), Rows("id", ("body",), metadata_columns=("year",)))

    assert documents[0].metadata == {"source": "file", "path": "data.csv", "id": "1", "title": "First", "year": 2020}


def test_an_id_is_readable_in_the_uri_and_only_what_a_uri_cannot_hold_is_encoded(tmp_path: Path) -> None:
    documents, rejected = read(write(tmp_path / "d.csv", "id,body\na/b c#1%,x\nü,y\n007,z\n"), Rows("id", ("body",)))

    assert rejected == {}
    assert [document.uri.partition("/d.csv")[2] for document in documents] == ["#a/b c%231%25", "#ü", "#007"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_delimiter_and_encoding_are_told_from_the_file(tmp_path: Path, delimiter: str, encoding: str) -> None:
    text = CSV.replace(",", delimiter).replace("Second", "Zweité").replace("\n", "\r\n")

    documents, rejected = read(write(tmp_path / "data.csv", text.encode(encoding)), ROWS)

    assert rejected == {}
    assert documents[1].content == "Zweité\n\nRedis is a broker"


def test_windows_1252_is_told_field_by_field(tmp_path: Path) -> None:
    data = b"id,body\n1,plain\n2,caf" + b"\xe9\n3," + "Größe\n".encode()

    documents, _ = read(write(tmp_path / "d.csv", data), Rows("id", ("body",)))

    assert [document.content for document in documents] == ["plain", "café", "Größe"]


def test_quoted_newlines_nul_bytes_and_a_text_of_a_megabyte_are_read(tmp_path: Path) -> None:
    long = "long " * 200_000
    content = f'id,body,note\n1,"two\nlines, ""quoted""",a\0b\n2,"{long}",\n'

    documents, rejected = read(write(tmp_path / "d.csv", content), Rows("id", ("body",)))

    assert rejected == {}
    assert documents[0].content == 'two\nlines, "quoted"'
    assert documents[0].metadata["note"] == "ab"
    assert documents[1].content == long


def test_numbers_stay_numbers_by_column_and_codes_stay_text(tmp_path: Path) -> None:
    content = "id,body,zip,count,share,flag,big\n1,a,01234,1,1,true,12345678901234567890\n2,b,99999,,0.5,FALSE,1\n"

    documents, _ = read(write(tmp_path / "d.csv", content), Rows("id", ("body",)))

    kept = ("zip", "count", "share", "flag", "big")
    assert [documents[0].metadata[key] for key in kept] == ["01234", 1, 1.0, True, "12345678901234567890"]
    assert documents[1].metadata["flag"] is False
    assert isinstance(documents[0].metadata["share"], float)
    assert "count" not in documents[1].metadata


def test_bad_rows_are_rejected_by_number_and_reason_and_the_others_go_on(tmp_path: Path) -> None:
    content = (
        CSV
        + "3,few\n4,Title only,,2020,1,en\n,No id,text,2020,1,en\n1,Again,text,2020,1,en\n,,,,,\n\n5,,,,,\n6,F,g,1,1,\n"
    )

    documents, rejected = read(write(tmp_path / "data.csv", content), ROWS)

    assert names(documents) == ["data.csv#1", "data.csv#2", "data.csv#4", "data.csv#6"]
    assert rejected == {
        "data.csv#row=4": "data.csv row 4: it has 2 fields, the header has 6",
        "data.csv#row=6": "data.csv row 6: the id, column 'id', is empty",
        "data.csv#row=7": "data.csv row 7: another row before it has the same id, 1",
        "data.csv#5": "data.csv row 10: there is no text in 'title', 'body'",
    }


def test_a_row_that_could_be_any_row_protects_them_all_and_one_without_text_only_itself(tmp_path: Path) -> None:
    broken = open_source(write(tmp_path / "a.csv", "id,body\n1,a\n2\n"), SETTINGS, rows=Rows("id", ("body",)))
    empty = open_source(write(tmp_path / "b.csv", "id,body\n1,a\n2,\n"), SETTINGS, rows=Rows("id", ("body",)))
    list(broken), list(empty)

    assert broken.scope == f"file://{tmp_path}/a.csv#"
    assert broken.unreadable == (broken.scope,)
    assert broken.complete
    assert empty.unreadable == ()


def test_a_missing_column_is_named_with_the_file_and_those_that_there_are_before_anything_is_read(
    tmp_path: Path,
) -> None:
    write(tmp_path / "data.csv", CSV)

    with pytest.raises(InvalidRequest, match=r"data\.csv has no column 'key'; it has: id, title, body, year"):
        open_source(tmp_path / "data.csv", SETTINGS, rows=Rows("key", ("body",)))

    [found] = list(open_source(tmp_path, SETTINGS, rows=Rows("key", ("body",))))
    assert isinstance(found, Rejected)
    assert "data.csv has no column 'key'" in found.error


def test_a_file_without_rows_is_refused_when_named_and_taken_as_it_is_in_a_directory(tmp_path: Path) -> None:
    write(tmp_path / "notes.md", "# Notes")
    write(tmp_path / "data.csv", CSV)

    with pytest.raises(InvalidRequest, match=r"notes\.md has no rows or records"):
        open_source(tmp_path / "notes.md", SETTINGS, rows=ROWS)

    found = [item.uri for item in open_source(tmp_path, SETTINGS, rows=ROWS)]
    assert found == [f"file://{tmp_path}/{name}" for name in ("data.csv#1", "data.csv#2", "notes.md")]


def test_without_rows_a_table_is_one_document(tmp_path: Path) -> None:
    [document] = list(open_source(write(tmp_path / "data.csv", CSV), SETTINGS))

    assert document.uri == f"file://{tmp_path}/data.csv"


def test_a_line_that_never_ends_is_rejected_and_held_in_no_memory(tmp_path: Path) -> None:
    settings = SourceSettings(max_bytes=1000)
    endless = "x" * 3_000_000

    documents, rejected = read(
        write(tmp_path / "d.csv", f"id,body\n1,a\n2,{endless}\n3,c\n"), Rows("id", ("body",)), settings
    )
    also, too_long = read(
        write(tmp_path / "d.jsonl", f'{{"id":1,"body":"a"}}\n{{"id":2,"body":"{endless}"}}\n{{"id":3,"body":"c"}}\n'),
        Rows("id", ("body",)),
        settings,
    )

    assert (names(documents), names(also)) == (["d.csv#1", "d.csv#3"], ["d.jsonl#1", "d.jsonl#3"])
    assert "the line is longer than" in rejected["d.csv#row=3"]
    assert "the line is longer than" in too_long["d.jsonl#row=2"]


def test_what_is_no_file_or_outside_the_roots_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link.csv").symlink_to(write(tmp_path / "data.csv", CSV))
    settings = SourceSettings(roots=(tmp_path / "inside",))

    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.extend(open_source(tmp_path / "pipe.csv", SETTINGS, rows=ROWS)))
    reader.start()
    reader.join(60)

    assert not reader.is_alive()
    assert "is a named pipe" in found[0].error
    with pytest.raises(SourceRefused, match="outside the allowed roots"):
        open_source(tmp_path / "inside" / "link.csv", settings, rows=ROWS)


def test_a_table_that_changes_while_it_is_read_says_so_and_protects_its_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", CSV)
    source = open_source(path, SETTINGS, rows=ROWS)

    found = []
    for item in source:
        found.append(item)
        with path.open("a") as file:
            file.write("9,x,y,1,1,\n")

    assert isinstance(found[-1], Rejected)
    assert "changed while it was read" in found[-1].error
    assert source.unreadable == (f"file://{path}",)


def test_rows_come_back_from_json_and_refuse_what_they_do_not_know() -> None:
    rows = Rows("id", ("a", "b"), metadata_columns=(), records="x.y", delimiter=";")

    assert Rows.from_json(json.loads(json.dumps(rows.to_json()))) == rows
    with pytest.raises(InvalidRequest, match="rows have no id_colum"):
        Rows.from_json({"id_colum": "id"})
    with pytest.raises(InvalidRequest, match="is one character"):
        Rows("id", delimiter=";;")
