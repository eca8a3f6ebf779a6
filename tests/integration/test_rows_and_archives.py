"""Tables and archives through the ledger: what a job says of them, and what `sync` deletes and leaves alone."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from workshop import Workshop

from pipeline import Rows, Settings
from pipeline.errors import IdempotencyConflict, InvalidRequest, UnknownCollection
from pipeline.status import JobStatus

ROWS = Rows("id", ("body",))


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(settings)
    yield made
    made.close()


def sync(workshop: Workshop, path: Path, rows: Rows | None = None) -> JobStatus:
    job = workshop.client.sync(path, collection="notes", rows=rows)
    workshop.work()
    return workshop.client.job(job.job_id)


def names(workshop: Workshop, root: Path) -> list[str]:
    return [
        row["uri"].removeprefix(f"file://{root}/") for row in workshop.client.documents(collection="notes", limit=1000)
    ]


def numbers(status: JobStatus) -> dict[str, int]:
    return {name: count for name, count in status.documents.items() if count and name != "total"}


def zip_of(path: Path, files: Mapping[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_rows_are_indexed_with_metadata_that_filters_and_bad_ones_leave_the_job_partial(
    workshop: Workshop, tmp_path: Path
) -> None:
    table = tmp_path / "data.csv"
    table.write_text("id,title,body,year\n1,One,Postgres is the truth,2020\n2,Two,Redis is a broker,2021\n3,few\n")

    job = workshop.index(table, rows=Rows("id", ("title", "body")))

    assert job.state == "partial"
    assert numbers(job) == {"indexed": 2, "failed": 1}
    assert [error["error"] for error in job.errors] == ["data.csv row 4: it has 2 fields, the header has 4"]
    [result] = workshop.client.search("broker", collection="notes", filters={"year": 2021}).results
    assert (result.uri, result.title) == (f"file://{table}#2", "Two")
    assert (result.text, result.metadata["id"]) == ("Two\n\nRedis is a broker", "2")


def test_the_text_of_a_row_is_read_as_text_whatever_its_table_is(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text('id,body\n1,"a,b\nc,d\ne,f"\n')
    (tmp_path / "data.json").write_text('[{"id": 1, "body": "<b>kept</b>"}]')

    workshop.index(tmp_path, rows=ROWS)

    assert sorted(text for texts in workshop.texts().values() for text in texts) == ["<b>kept</b>", "a,b\nc,d\ne,f"]


def test_rows_that_are_gone_are_deleted_and_those_that_moved_cost_nothing(workshop: Workshop, tmp_path: Path) -> None:
    table = tmp_path / "data.csv"
    table.write_text("id,body\n" + "".join(f"{number},text {number}\n" for number in range(6)))
    (tmp_path / "data.csv2").write_text("a file whose name begins the same")
    workshop.index(str(tmp_path / "data.csv2"))
    sync(workshop, table, ROWS)
    workshop.embedder.calls.clear()

    table.write_text("id,body\n" + "".join(f"{number},text {number}\n" for number in (5, 3, 1, 2, 9)))
    job = sync(workshop, table, ROWS)

    assert numbers(job) == {"indexed": 1, "unchanged": 4, "deleted": 2}
    assert names(workshop, tmp_path) == [
        "data.csv#1",
        "data.csv#2",
        "data.csv#3",
        "data.csv#5",
        "data.csv#9",
        "data.csv2",
    ]
    assert [texts for _, texts in workshop.embedder.calls] == [("text 9",)]


def test_a_row_that_cannot_be_read_keeps_every_row_and_one_without_text_keeps_itself(
    workshop: Workshop, tmp_path: Path
) -> None:
    table = tmp_path / "data.csv"
    table.write_text("id,body\n1,a\n2,b\n3,c\n")
    sync(workshop, table, ROWS)

    table.write_text("id,body\n1,a\n2\n")
    broken = sync(workshop, table, ROWS)
    assert numbers(broken) == {"unchanged": 1, "failed": 1}
    assert names(workshop, tmp_path) == ["data.csv#1", "data.csv#2", "data.csv#3"]

    table.write_text("id,body\n1,a\n2,\n")
    empty = sync(workshop, table, ROWS)
    assert numbers(empty) == {"unchanged": 1, "failed": 1, "deleted": 1}
    assert names(workshop, tmp_path) == ["data.csv#1", "data.csv#2"]


def test_a_missing_column_leaves_no_job_and_no_collection_behind(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("id,body\n1,a\n")

    with pytest.raises(InvalidRequest, match="has no column 'key'; it has: id, body"):
        workshop.put(tmp_path / "data.csv", rows=Rows("key"))

    with pytest.raises(UnknownCollection):
        workshop.client.documents(collection="notes")
    assert workshop.client.jobs() == []


def test_the_same_key_with_other_rows_is_another_request(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("id,body,note\n1,a,b\n")
    first = workshop.put(tmp_path / "data.csv", rows=ROWS, idempotency_key="k")

    assert workshop.put(tmp_path / "data.csv", rows=ROWS, idempotency_key="k").job_id == first.job_id
    with pytest.raises(IdempotencyConflict):
        workshop.put(tmp_path / "data.csv", rows=Rows("id", ("note",)), idempotency_key="k")


def test_an_archive_is_synchronised_member_by_member_and_a_broken_one_keeps_what_it_had(
    workshop: Workshop, tmp_path: Path
) -> None:
    archive = zip_of(tmp_path / "x.zip", {"a.txt": "first", "b.txt": "second", "c/d.md": "# Third"})
    sync(workshop, archive)
    assert names(workshop, tmp_path) == ["x.zip!/a.txt", "x.zip!/b.txt", "x.zip!/c/d.md"]

    zip_of(archive, {"a.txt": "first", "c/d.md": "# Third, changed"})
    assert numbers(sync(workshop, archive)) == {"indexed": 1, "unchanged": 1, "deleted": 1}

    archive.write_bytes(archive.read_bytes()[:-10])
    broken = sync(workshop, archive)
    assert (broken.state, numbers(broken)) == ("failed", {"failed": 1})
    assert "x.zip is damaged or cut off" in broken.errors[0]["error"]
    assert names(workshop, tmp_path) == ["x.zip!/a.txt", "x.zip!/c/d.md"]


def test_in_a_directory_a_broken_archive_protects_its_members_and_one_that_is_gone_does_not(
    workshop: Workshop, tmp_path: Path
) -> None:
    for name in ("x.zip", "y.zip"):
        zip_of(tmp_path / name, {"a.txt": f"in {name}"})
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    sync(workshop, tmp_path)

    (tmp_path / "x.zip").write_bytes(b"no zip any more")
    (tmp_path / "y.zip").unlink()
    job = sync(workshop, tmp_path)

    assert numbers(job) == {"unchanged": 4, "deleted": 1, "failed": 1}
    assert "x.zip!/a.txt" in names(workshop, tmp_path)
