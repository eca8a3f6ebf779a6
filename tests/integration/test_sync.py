"""Deleting, by name, by filter, and because the source no longer has it; and what protects documents from that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from workshop import Workshop

from pipeline import Document, Settings
from pipeline.errors import DeletionRefused, InvalidRequest
from pipeline.sources import Rejected
from pipeline.status import JobStatus


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(settings)
    yield made
    made.close()


@dataclass
class Shelf:
    """A source that says of itself what the test wants to hear. A text None: the document cannot be read."""

    texts: dict[str, str | None]
    complete: bool = True
    unreadable: tuple[str, ...] = ()
    scope: str | None = "shelf/"
    dies: bool = False
    also: Sequence[Document] = field(default_factory=list)

    def __iter__(self) -> Iterator[Document | Rejected]:
        for uri, text in self.texts.items():
            yield Rejected(uri, "cannot be read") if text is None else Document(uri, text)
        yield from self.also
        if self.dies:
            raise OSError("the shelf fell down")


def _shelf(*names: str) -> dict[str, str | None]:
    return {f"shelf/{name}": f"about {name}" for name in names}


def _sync(workshop: Workshop, shelf: Shelf, *, force: bool = False) -> JobStatus:
    job = workshop.client.sync(shelf, collection="notes", force=force)
    workshop.work()
    return workshop.client.job(job.job_id)


def test_a_file_that_is_gone_is_deleted_and_the_rest_is_left_alone(workshop: Workshop, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "sub/c.txt"):
        (tmp_path / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / name).write_text(f"about {name}")
    (tmp_path / "docs2").mkdir()
    (tmp_path / "docs2" / "d.txt").write_text("a directory whose name begins the same")
    workshop.index(str(tmp_path / "docs2"))
    workshop.index({"elsewhere": "not of this directory"})
    workshop.client.sync(str(tmp_path / "docs"), collection="notes")
    workshop.work()
    assert len(workshop.texts()) == 5

    (tmp_path / "docs" / "sub" / "c.txt").unlink()
    (tmp_path / "docs" / "b.txt").write_text("about b, changed")
    job = workshop.client.sync(str(tmp_path / "docs"), collection="notes")
    workshop.work()

    done = workshop.client.job(job.job_id)
    assert (done.kind, done.state) == ("sync", "succeeded")
    assert {name: done.documents[name] for name in ("total", "indexed", "unchanged", "deleted")} == {
        "total": 3,
        "indexed": 1,
        "unchanged": 1,
        "deleted": 1,
    }
    assert sorted(text for texts in workshop.texts().values() for text in texts) == [
        "a directory whose name begins the same",
        "about a.txt",
        "about b, changed",
        "not of this directory",
    ]


def test_a_sync_that_would_delete_more_than_half_is_refused_and_ingests_what_is_there(workshop: Workshop) -> None:
    _sync(workshop, Shelf(_shelf("a", "b", "c", "d")))
    left = {"shelf/a": "about a, changed"}

    with pytest.raises(DeletionRefused, match="3 of the 4 documents below shelf/"):
        workshop.client.sync(Shelf(left), collection="notes")
    workshop.work()
    assert sorted(workshop.texts()) == ["shelf/a", "shelf/b", "shelf/c", "shelf/d"]
    assert workshop.texts()["shelf/a"] == ["about a, changed"]
    (refused,) = workshop.client.jobs(limit=1)
    assert refused.state == "succeeded"

    assert _sync(workshop, Shelf(left), force=True).documents["deleted"] == 3
    assert workshop.texts() == {"shelf/a": ["about a, changed"]}


def test_new_documents_do_not_make_up_for_those_that_would_go(workshop: Workshop) -> None:
    """A wrong directory with as many files as the right one must not empty the collection."""
    _sync(workshop, Shelf(_shelf("a", "b", "c")))

    with pytest.raises(DeletionRefused, match="3 of the 3 documents"):
        workshop.client.sync(Shelf(_shelf("x", "y", "z", "w")), collection="notes")
    workshop.work()

    assert len(workshop.texts()) == 7


def test_exactly_half_may_go(workshop: Workshop) -> None:
    _sync(workshop, Shelf(_shelf("a", "b")))

    assert _sync(workshop, Shelf(_shelf("a"))).documents["deleted"] == 1


def test_nothing_is_deleted_after_a_listing_that_broke_off(workshop: Workshop) -> None:
    _sync(workshop, Shelf(_shelf("a", "b", "c")))

    assert _sync(workshop, Shelf(_shelf("a", "b"), complete=False)).documents["deleted"] == 0
    with pytest.raises(OSError, match="fell down"):
        workshop.client.sync(Shelf(_shelf("a", "b"), dies=True), collection="notes")
    workshop.work()

    assert len(workshop.texts()) == 3


def test_what_lies_below_a_part_that_cannot_be_read_is_not_deleted(workshop: Workshop) -> None:
    _sync(workshop, Shelf(_shelf("open/a", "open/b", "open/c", "locked/a", "locked/deep/b", "lockedout", "file", "d")))

    job = _sync(
        workshop,
        Shelf(
            _shelf("open/a", "open/b", "d"), complete=False, unreadable=("shelf/locked/", "shelf/file")
        ),
    )  # fmt: skip

    assert job.documents["deleted"] == 2
    assert sorted(workshop.texts()) == [
        "shelf/d", "shelf/file", "shelf/locked/a", "shelf/locked/deep/b", "shelf/open/a", "shelf/open/b",
    ]  # fmt: skip


def test_a_document_that_is_there_and_cannot_be_read_keeps_its_last_version(workshop: Workshop) -> None:
    _sync(workshop, Shelf(_shelf("a", "b")))

    job = _sync(workshop, Shelf(_shelf("a") | {"shelf/b": None}))

    assert (job.state, job.documents["failed"], job.documents["unchanged"]) == ("partial", 1, 1)
    assert list(job.errors) == [{"uri": "shelf/b", "error": "cannot be read"}]
    assert workshop.texts() == {"shelf/a": ["about a"], "shelf/b": ["about b"]}
    assert _sync(workshop, Shelf(_shelf("a", "b"))).documents["unchanged"] == 2


def test_a_document_that_is_still_on_its_way_is_deleted_when_it_is_gone_by_then(workshop: Workshop) -> None:
    workshop.client.sync(Shelf(_shelf("a", "b", "c")), collection="notes")
    workshop.prepare()

    assert _sync(workshop, Shelf(_shelf("a", "b"))).documents["deleted"] == 1
    assert sorted(workshop.texts()) == ["shelf/a", "shelf/b"]


def test_documents_without_a_common_place_cannot_be_synchronised(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("about a")

    for source in (str(tmp_path / "a.txt"), Shelf({}, scope=None)):
        with pytest.raises(InvalidRequest, match="cannot be synchronised"):
            workshop.client.sync(source, collection="notes")
    assert workshop.value("SELECT count(*) FROM jobs") == 0


def test_deleting_by_uri_counts_what_is_not_there_as_unchanged(workshop: Workshop) -> None:
    workshop.index({"a": "about a", "b": "about b"})

    job = workshop.remove(["a", "a", "never"])
    again = workshop.remove("a")

    assert (job.state, job.kind) == ("succeeded", "delete")
    assert (job.documents["total"], job.documents["deleted"], job.documents["unchanged"]) == (2, 1, 1)
    assert (again.documents["total"], again.documents["deleted"], again.documents["unchanged"]) == (1, 0, 1)
    assert workshop.texts() == {"b": ["about b"]}
    workshop.contract()
    assert workshop.audit() == {"expected": 1, "present": 1}


def test_deleting_by_filter_takes_what_a_search_with_that_filter_finds(workshop: Workshop) -> None:
    metadata = {
        "a": {"lang": "en", "year": 2024, "tags": ["x", "y"]},
        "b": {"lang": "de", "year": 2024, "tags": ["y"]},
        "c": {"lang": "en", "year": 2025, "rate": 2.0},
        "d": {"lang": "fr", "done": True},
    }
    workshop.index([Document(uri, f"about {uri}", metadata=found) for uri, found in metadata.items()])

    for filters, gone in [
        ({"lang": "en", "year": "2024"}, "a"),
        ({"tags": "y"}, "b"),
        ({"rate": 2}, "c"),
        ({"done": "true", "uri": "d"}, "d"),
    ]:
        assert list(workshop.texts(filters=filters)) == [gone]
        assert workshop.remove(filters=filters, priority="high").documents["deleted"] == 1
        assert gone not in workshop.texts()
    assert workshop.remove(filters={"lang": "en"}).documents["total"] == 0


def test_files_of_unknown_formats_are_counted_and_those_that_only_claim_one_are_named(
    workshop: Workshop, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("about a mill")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "program").write_bytes(b"\x7fELF" + bytes(range(256)) * 4)
    (tmp_path / "notes.md").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))

    for job in (workshop.index(str(tmp_path)), _sync_directory(workshop, tmp_path)):
        assert job.documents["skipped"] == 2
        assert (job.documents["total"], job.documents["failed"], job.state) == (2, 1, "partial")
        assert "notes.md" in job.errors[0]["error"]


def _sync_directory(workshop: Workshop, path: Path) -> JobStatus:
    job = workshop.client.sync(str(path), collection="notes")
    workshop.work()
    return workshop.client.job(job.job_id)
