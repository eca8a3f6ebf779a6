"""Tables and archives that were damaged in every way: something is said of each, nothing is raised, nothing hangs."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import random
import tarfile
import time
import zipfile
from collections.abc import Callable

import openpyxl  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.document import Document
from pipeline.settings import SourceSettings
from pipeline.sources import Bundle, Rejected, Rows, check_document
from pipeline.sources.seen import Seen

SETTINGS = SourceSettings(max_bytes=1 << 20)
RECORDS = [{"id": number, "body": f"text {number}", "nested": {"a": [1, None]}} for number in range(20)]
ROUNDS = 60
SECONDS = 5.0  # that one input may take on a busy machine


def csv_file() -> bytes:
    return b'id,body,n\n1,"a\nb",2\n2,c,3\n3,\xff\xfe,4\n'


def json_file() -> bytes:
    return json.dumps(RECORDS).encode()


def json_lines_file() -> bytes:
    return b"\n".join(json.dumps(record).encode() for record in RECORDS)


def parquet_file() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), file)
    return file.getvalue()


def workbook_file() -> bytes:
    workbook, file = openpyxl.Workbook(), io.BytesIO()
    for row in (["id", "body"], *([record["id"], record["body"]] for record in RECORDS)):
        workbook.active.append(row)
    workbook.save(file)
    return file.getvalue()


def zip_file() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (
            ("a.txt", b"text"),
            ("b.csv", csv_file()),
            ("c.tar", tar_file()),
            ("d.jsonl", json_file()),
        ):
            archive.writestr(name, content)
    return file.getvalue()


def tar_file() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in (("a.txt", b"text"), ("long/" * 50 + "b.csv", csv_file()), ("c.json", json_file())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "x.csv": csv_file,
    "x.json": json_file,
    "x.jsonl": json_lines_file,
    "x.parquet": parquet_file,
    "x.xlsx": workbook_file,
    "x.zip": zip_file,
    "x.tar": tar_file,
    "x.tar.gz": lambda: gzip.compress(tar_file(), mtime=0),
    "x.tar.xz": lambda: lzma.compress(tar_file()),
}


def damaged(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        place = chance.randrange(len(changed) + 1)
        match chance.randrange(4):
            case 0:
                changed[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del changed[place : place + chance.randrange(1, 50)]
            case 2:
                changed[place:place] = chance.randbytes(chance.randrange(1, 20))
            case _:
                changed[place:place] = changed[chance.randrange(len(changed) + 1) :][: chance.randrange(1, 100)]
    return bytes(changed[: chance.randrange(len(changed) + 1)] if chance.random() < 0.1 else changed)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_gives_valid_documents_and_reasons(name: str) -> None:
    chance = random.Random(name)
    data = FILES[name]()
    for _ in range(ROUNDS):
        started = time.process_time()
        for item in Bundle(io.BytesIO(damaged(data, chance)), "x:" + name, name, SETTINGS, rows=Rows("id", ("body",))):
            if isinstance(item, Document) and "#" in item.uri:
                check_document(item, SETTINGS.max_bytes)
            elif isinstance(item, Rejected):
                assert item.error
        assert time.process_time() - started < SECONDS


@pytest.mark.parametrize(("place", "value"), [(6, 99), (28, 0), (28, 255)])  # version needed; length of the name
def test_a_directory_of_a_zip_that_says_what_cannot_be_is_told_as_damage(place: int, value: int) -> None:
    data = bytearray(zip_file())
    data[data.index(b"PK\1\2") + place] = value

    found = list(Bundle(io.BytesIO(bytes(data)), "x:x.zip", "x.zip", SETTINGS))

    assert found


def test_names_that_were_seen_are_told_in_little_memory() -> None:
    seen = Seen()

    assert [seen.add(str(number)) for number in range(5000)] == [True] * 5000
    assert [seen.add(str(number)) for number in range(4990, 5010)] == [False] * 10 + [True] * 10
