"""Object stores as sources, over the real S3 protocol (moto's server)."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Iterator
from typing import IO

import pytest
from object_store import Asked, ObjectStore
from workshop import COLLECTION, Workshop

from pipeline import Document, Settings
from pipeline.settings import SourceSettings
from pipeline.sources import Rejected, Rows, Source, Unchanged, open_source
from pipeline.sources.base import Item
from pipeline.sources.stores import objects
from pipeline.sources.stores.buckets import Listed, Received
from pipeline.sources.stores.objects import ObjectSource

SETTINGS = SourceSettings(store_timeout=60, max_bytes=10_000)


def uris(items: list[Item] | list[Document | Rejected]) -> list[str]:
    return [item.uri for item in items]


def error_of(source: Source, uri: str) -> str:
    found = {item.uri: item for item in source}[uri]
    assert isinstance(found, Rejected), found
    return found.error


def test_the_objects_below_a_prefix_become_documents_named_by_their_url(store: ObjectStore) -> None:
    store.bucket("docs", {"guide/b.md": b"# B", "guide/a.txt": b"a", "guide/sub/c.txt": b"c", "guide2/d.txt": b"d"})

    for spec in ("s3://docs/guide", "s3://docs/guide/", "S3://docs/guide"):
        source = open_source(spec, SETTINGS)
        found = list(source)

        assert isinstance(source, Source)
        assert uris(found) == ["s3://docs/guide/a.txt", "s3://docs/guide/b.md", "s3://docs/guide/sub/c.txt"]
        assert source.scope == "s3://docs/guide/"
        assert source.complete
        assert source.unreadable == ()
    document = found[1]
    assert isinstance(document, Document)
    assert (document.data, document.media_type) == (b"# B", "text/markdown")
    assert document.metadata == {"source": "s3", "path": "b.md"}


def test_a_whole_bucket_and_a_single_object_are_sources_too(store: ObjectStore) -> None:
    store.bucket("docs", {"a.txt": b"a", "a.txt.bak/b.txt": b"b", "c": b"c"})

    assert len(list(open_source("s3://docs", SETTINGS))) == 3
    single = open_source("s3://docs/a.txt", SETTINGS)
    assert uris(list(single)) == ["s3://docs/a.txt"]
    assert (single.scope, single.complete) == (None, True)


def test_a_name_with_anything_in_it_is_found_again_by_its_uri(store: ObjectStore) -> None:
    keys = ["a b.txt", "50% off?.txt", "c#1.txt", "größe/ß.txt", "+plus.txt"]
    store.bucket("docs", {key: key.encode() for key in keys})

    for document in open_source("s3://docs", SETTINGS):
        assert isinstance(document, Document)
        assert document.uri.isprintable()
        [again] = list(open_source(document.uri, SETTINGS))
        assert isinstance(again, Document)
        assert (again.uri, again.data) == (document.uri, document.data)
        keys.remove(document.data.decode())
    assert keys == []


def test_what_the_patterns_and_the_formats_leave_out_is_not_read(store: ObjectStore) -> None:
    names = ("a.md", "b.txt", "c.png", "drafts/d.md", "drafts/", ".git/config", "unknown")
    store.bucket("docs", {f"x/{name}": b"\x00\x01\x02" if name == "unknown" else b"text" for name in names})

    source = open_source("s3://docs/x/", SETTINGS, exclude=["drafts/"])
    assert isinstance(source, ObjectSource)
    assert uris(list(source)) == ["s3://docs/x/a.md", "s3://docs/x/b.txt"]
    assert source.skipped == 2
    assert store.read() == ["x/a.md", "x/b.txt", "x/unknown"]

    assert uris(list(open_source("s3://docs/x", SETTINGS, include=["*.md"]))) == [
        "s3://docs/x/a.md",
        "s3://docs/x/drafts/d.md",
    ]


def test_the_type_that_the_store_tells_counts_where_the_name_says_nothing(store: ObjectStore) -> None:
    store.bucket("docs")
    store.put("docs", "page", b"<p>hello", ContentType="text/html")
    store.put("docs", "notes.md", b"hello", ContentType="image/png")

    kinds = {item.uri: item.media_type for item in open_source("s3://docs", SETTINGS) if isinstance(item, Document)}

    assert kinds == {"s3://docs/page": "text/html", "s3://docs/notes.md": "text/markdown"}


def test_an_object_that_cannot_be_had_is_rejected_by_name_and_the_others_go_on(store: ObjectStore) -> None:
    store.bucket("docs", {f"{name}.txt": name.encode() for name in ("denied", "good", "last", "vanishing")})
    store.put("docs", "archived.txt", b"cold", StorageClass="GLACIER")
    store.put("docs", "large.txt", b"x" * 10_001)

    def misbehave(asked: Asked) -> None:
        if asked.key == "vanishing.txt":
            store.remove("docs", asked.key)

    store.before = misbehave
    store.answer = lambda asked: (403, "AccessDenied") if asked.key == "denied.txt" else None
    source = open_source("s3://docs", SETTINGS)

    found = {item.uri.removeprefix("s3://docs/"): item for item in source}

    errors = {name: item.error for name, item in found.items() if isinstance(item, Rejected)}
    assert sorted(found) == ["archived.txt", "denied.txt", "good.txt", "large.txt", "last.txt", "vanishing.txt"]
    assert sorted(errors) == ["archived.txt", "denied.txt", "large.txt", "vanishing.txt"]
    assert all(f"s3://docs/{name}" in error for name, error in errors.items())
    assert "restore it first" in errors["archived.txt"]
    assert "s3:GetObject" in errors["denied.txt"]
    assert "10,001 bytes; the limit is 10,000" in errors["large.txt"]
    assert "gone since it was listed" in errors["vanishing.txt"]
    assert source.complete
    assert "large.txt" not in store.read()


def test_an_object_that_grew_since_it_was_listed_is_cut_off_at_the_limit(store: ObjectStore) -> None:
    store.bucket("docs", {"a.txt": b"small"})

    def grow(asked: Asked) -> None:
        if asked.key == "a.txt":
            store.put("docs", "a.txt", b"x" * 50_000)

    store.before = grow

    assert "the limit is 10,000" in error_of(open_source("s3://docs/", SETTINGS), "s3://docs/a.txt")


def test_a_store_in_trouble_is_asked_once_more(store: ObjectStore) -> None:
    store.bucket("docs", {"a.txt": b"a"})
    troubles = [(503, "SlowDown"), (500, "InternalError")]
    store.answer = lambda asked: troubles.pop() if asked.key == "a.txt" and troubles else None

    assert [type(item) for item in open_source("s3://docs/", SETTINGS)] == [Document]


def test_a_listing_is_paged_and_one_that_breaks_off_is_not_complete(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "LISTED_AT_ONCE", 4)
    store.bucket("docs", {f"{number}.txt": b"text" for number in range(9)})
    source = open_source("s3://docs/", SETTINGS)
    store.asked.clear()
    assert len(list(source)) == 9
    assert store.listings() == 3

    store.answer = lambda asked: (403, "AccessDenied") if "continuation-token" in asked.query else None
    *documents, broken = list(source)

    assert len(documents) == 4
    assert isinstance(broken, Rejected)
    assert broken.uri == "s3://docs/"
    assert "could not be listed to its end" in broken.error
    assert not source.complete
    assert source.unreadable == ("s3://docs/",)


def test_the_memory_does_not_grow_with_the_number_of_objects() -> None:
    number = 20_000

    class Large:
        """As much of a store as listing takes."""

        def __init__(self, bucket: str, settings: SourceSettings) -> None:
            pass

        def pages(self, prefix: str, size: int) -> Iterator[list[Listed]]:
            for start in range(0, number, size):
                keys = (f"docs/{key:08}.txt" for key in range(start, start + size))
                yield [Listed(key, 10_000, {"etag": f'"{key}"'}) for key in keys]

        def read(self, key: str, limit: int, into: IO[bytes]) -> Received:
            raise AssertionError(f"{key} is as it was")

        def close(self) -> None:
            pass

    source = ObjectSource("s3://many/docs/", SETTINGS, Large)

    def known(asked: object) -> dict[str, dict[str, str]]:
        return {uri: {"etag": f'"{uri.removeprefix("s3://many/")}"'} for uri in asked}  # type: ignore[attr-defined]

    next(source.since(known))  # what is made once does not count
    tracemalloc.start()
    try:
        count = sum(isinstance(item, Unchanged) for item in source.since(known))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert count == number
    assert peak < 3_000_000


@pytest.fixture
def workshop(settings: Settings, store: ObjectStore) -> Iterator[Workshop]:
    made = Workshop(settings)
    yield made
    made.close()


def _counts(workshop: Workshop, spec: str = "s3://docs/x/") -> dict[str, int]:
    job = workshop.client.sync(spec, collection=COLLECTION)
    workshop.work()
    return {name: count for name, count in workshop.client.job(job.job_id).documents.items() if count}


def test_a_sync_reads_what_changed_and_deletes_what_is_gone(store: ObjectStore, workshop: Workshop) -> None:
    store.bucket("docs", {f"x/{name}.txt": f"about {name}".encode() for name in "abcd"})
    assert _counts(workshop) == {"total": 4, "indexed": 4}
    store.put("docs", "x/b.txt", b"about b, changed")
    store.remove("docs", "x/d.txt")
    store.put("docs", "x/c.txt", b"about c")  # written anew, the same
    store.asked.clear()

    assert _counts(workshop) == {"total": 4, "indexed": 1, "unchanged": 2, "deleted": 1}

    assert store.read() == ["x/b.txt"]
    assert workshop.texts() == {
        "s3://docs/x/a.txt": ["about a"],
        "s3://docs/x/b.txt": ["about b, changed"],
        "s3://docs/x/c.txt": ["about c"],
    }


def test_nothing_is_deleted_after_a_listing_that_broke_off(store: ObjectStore, workshop: Workshop) -> None:
    store.bucket("docs", {f"x/{name}.txt": f"about {name}".encode() for name in "abc"})
    _counts(workshop)
    store.remove("docs", "x/c.txt")
    listings = iter(range(100))
    store.answer = lambda asked: (500, "InternalError") if not asked.key and next(listings) > 0 else None

    job = workshop.client.sync("s3://docs/x/", collection=COLLECTION)
    workshop.work()

    done = workshop.client.job(job.job_id)
    assert (done.state, done.documents["deleted"], done.documents["failed"]) == ("failed", 0, 1)
    assert "could not be listed" in done.errors[0]["error"]
    assert len(workshop.texts()) == 3


def test_an_object_replaced_between_listing_and_reading_is_known_by_what_was_read(
    store: ObjectStore, workshop: Workshop
) -> None:
    """Were the listed tag kept with the newer content, an object that went back to the older one would stay wrong."""
    store.bucket("docs", {"x/a.txt": b"first"})
    pending = [b"second"]

    def replace(asked: Asked) -> None:
        if asked.key == "x/a.txt" and pending:
            store.put("docs", "x/a.txt", pending.pop())

    store.before = replace
    _counts(workshop)
    assert workshop.texts() == {"s3://docs/x/a.txt": ["second"]}

    store.put("docs", "x/a.txt", b"first")
    _counts(workshop)

    assert workshop.texts() == {"s3://docs/x/a.txt": ["first"]}


def test_archives_and_tables_in_a_bucket_are_opened(store: ObjectStore, workshop: Workshop) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("in/a.txt", "about a")
        archive.writestr("b.md", "about b")
    table = b"id,text,lang\n1,one,en\n2,two,de\n"
    store.bucket("docs", {"x/pack.zip": packed.getvalue(), "x/rows.csv": table, "x/c.txt": b"about c"})

    source = open_source("s3://docs/x/", SETTINGS, rows=Rows(id_column="id", text_columns=("text",)))
    job = workshop.client.sync(source, collection=COLLECTION)
    workshop.work()

    assert workshop.client.job(job.job_id).documents["indexed"] == 5
    assert sorted(workshop.texts()) == [
        "s3://docs/x/c.txt",
        "s3://docs/x/pack.zip!/b.md",
        "s3://docs/x/pack.zip!/in/a.txt",
        "s3://docs/x/rows.csv#1",
        "s3://docs/x/rows.csv#2",
    ]
    assert list(workshop.texts(filters={"lang": "de"})) == ["s3://docs/x/rows.csv#2"]
    single = open_source("s3://docs/x/pack.zip", SETTINGS)
    assert single.scope == "s3://docs/x/pack.zip!/"
    assert len(list(single)) == 2


def test_an_archive_that_cannot_be_read_protects_what_was_in_it(store: ObjectStore, workshop: Workshop) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", "about a")
    store.bucket("docs", {"x/b.txt": b"about b", "x/pack.zip": packed.getvalue()})
    _counts(workshop)
    store.answer = lambda asked: (403, "AccessDenied") if asked.key == "x/pack.zip" else None

    assert _counts(workshop) == {"total": 2, "unchanged": 1, "failed": 1}
    assert len(workshop.texts()) == 2
