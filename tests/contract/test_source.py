"""What every source does, whatever it reads. A source of your own can be added to `SOURCES` here."""

from __future__ import annotations

import csv
import hashlib
import http.server
import io
import json
import sqlite3
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest
from object_store import ENVIRONMENT, ObjectStore

from pipeline.document import Document, Metadata, Validators
from pipeline.settings import SourceSettings
from pipeline.sources import (
    BundleSource,
    DirectorySource,
    FileSource,
    InlineSource,
    Rejected,
    Rows,
    Source,
    Unchanged,
    check_document,
    open_source,
)
from pipeline.sources.base import documents_since
from pipeline.sources.web import WebSource

SETTINGS = SourceSettings(web_private=True, web_timeout=60, max_bytes=1000)
GOOD = {"a.txt": b"first text", "b.md": b"# Second\n\ntext"}
BAD = {"c.txt": b"x" * 2000}  # over the limit of these settings

Opened = AbstractContextManager[Source]
Maker = Callable[[Path, dict[str, bytes]], Opened]


@contextmanager
def inline(_: Path, contents: dict[str, bytes]) -> Iterator[Source]:
    yield InlineSource([(f"note:{name}", content) for name, content in contents.items()], SETTINGS)


@contextmanager
def directory(root: Path, contents: dict[str, bytes]) -> Iterator[Source]:
    for name, content in contents.items():
        (root / name).write_bytes(content)
    yield DirectorySource(root, SETTINGS)


@contextmanager
def web(_: Path, contents: dict[str, bytes]) -> Iterator[Source]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = contents[self.path.lstrip("/")]
            tag = f'"{hashlib.sha256(body).hexdigest()}"'
            if self.headers["If-None-Match"] == tag:
                self.send_response(304)
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # the client hangs up on what is too large

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield WebSource([f"http://127.0.0.1:{server.server_port}/{name}" for name in contents], SETTINGS)
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def table(root: Path, contents: dict[str, bytes]) -> Iterator[Source]:
    with open(root / "notes.csv", "w", newline="") as file:
        csv.writer(file).writerows([("name", "text"), *((name, text.decode()) for name, text in contents.items())])
    yield BundleSource(root / "notes.csv", SETTINGS, rows=Rows("name", ("text",)))


@contextmanager
def records(root: Path, contents: dict[str, bytes]) -> Iterator[Source]:
    lines = [json.dumps({"name": name, "text": text.decode()}) for name, text in contents.items()]
    (root / "notes.jsonl").write_text("\n".join(lines))
    yield BundleSource(root / "notes.jsonl", SETTINGS, rows=Rows("name", ("text",)))


@contextmanager
def zipped(root: Path, contents: dict[str, bytes]) -> Iterator[Source]:
    with zipfile.ZipFile(root / "notes.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    yield BundleSource(root / "notes.zip", SETTINGS)


@contextmanager
def tarred(root: Path, contents: dict[str, bytes]) -> Iterator[Source]:
    with tarfile.open(root / "notes.tar.xz", "w:xz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    yield BundleSource(root / "notes.tar.xz", SETTINGS)


class SqlSource:
    """A source of one's own: the rows of a query, a document each."""

    scope = "notes:"

    def __init__(self, path: Path, query: str) -> None:
        self._path = path
        self._query = query
        self.complete = False

    @property
    def unreadable(self) -> tuple[str, ...]:
        return () if self.complete else (self.scope,)

    def __iter__(self) -> Iterator[Document | Rejected]:
        self.complete = False
        with closing(sqlite3.connect(self._path)) as database:
            for name, content in database.execute(self._query):
                document = Document(f"notes:{name}", content, metadata={"source": "sql"})
                if len(content) > SETTINGS.max_bytes:
                    yield Rejected(document.uri, f"{document.uri} is too long")
                else:
                    yield document
        self.complete = True


@contextmanager
def sql(root: Path, contents: dict[str, bytes]) -> Iterator[Source]:
    with closing(sqlite3.connect(root / "notes.db")) as database, database:
        database.execute("CREATE TABLE notes (name TEXT, content BLOB)")
        database.executemany("INSERT INTO notes VALUES (?, ?)", contents.items())
    yield SqlSource(root / "notes.db", "SELECT name, content FROM notes ORDER BY name")


@contextmanager
def bucket(_: Path, contents: dict[str, bytes]) -> Iterator[Source]:
    with pytest.MonkeyPatch.context() as patch, closing(ObjectStore()) as store:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": store.url}.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        store.bucket("notes", contents)
        yield open_source("s3://notes", SETTINGS)


SOURCES: dict[str, Maker] = {
    "inline": inline,
    "directory": directory,
    "web": web,
    "bucket": bucket,
    "table": table,
    "records": records,
    "zip": zipped,
    "tar": tarred,
    "sql": sql,
}


@pytest.fixture(params=SOURCES)
def make(request: pytest.FixtureRequest) -> Maker:
    return SOURCES[request.param]


def test_a_source_streams_its_documents_in_order_and_is_then_complete(make: Maker, tmp_path: Path) -> None:
    with make(tmp_path, GOOD) as source:
        assert isinstance(source, Source)
        assert not source.complete

        found = list(source)

        assert [item.data for item in found if isinstance(item, Document)] == list(GOOD.values())
        assert source.complete
        assert source.unreadable == ()


def test_every_document_of_a_source_is_valid_and_lies_in_its_scope(make: Maker, tmp_path: Path) -> None:
    with make(tmp_path, GOOD) as source:
        documents = [item for item in source if isinstance(item, Document)]

        assert len({document.uri for document in documents}) == len(GOOD)
        for document in documents:
            check_document(document, SETTINGS.max_bytes)
            assert source.scope is None or document.uri.startswith(source.scope)


def test_iterating_again_gives_the_same_documents_with_the_same_hashes(make: Maker, tmp_path: Path) -> None:
    with make(tmp_path, GOOD) as source:
        first, second = list(source), list(source)

        assert first == second
        assert [item.content_hash() for item in first if isinstance(item, Document)] == [
            item.content_hash() for item in second if isinstance(item, Document)
        ]


def test_a_bad_document_is_rejected_by_name_and_the_others_go_on(make: Maker, tmp_path: Path) -> None:
    with make(tmp_path, GOOD | BAD) as source:
        found = list(source)

        assert [type(item) for item in found] == [Document, Document, Rejected]
        rejected = found[-1]
        assert isinstance(rejected, Rejected)
        assert rejected.uri.endswith("c.txt")
        assert "c.txt" in rejected.error
        assert source.complete


def test_a_listing_that_breaks_off_is_not_complete_and_protects_its_scope(make: Maker, tmp_path: Path) -> None:
    with make(tmp_path, GOOD) as source:
        list(source)

        iterator = iter(source)
        next(iterator)
        iterator.close()  # type: ignore[attr-defined]

        assert not source.complete
        assert source.scope is None or source.scope in source.unreadable


def test_what_is_known_by_its_validators_is_unchanged_and_can_be_read_after_all(make: Maker, tmp_path: Path) -> None:
    with make(tmp_path, GOOD) as source:
        first = {item.uri: item for item in source if isinstance(item, Document)}
        asked: dict[str, object] = {}

        def known(wanted: Mapping[str, Metadata]) -> Mapping[str, Validators]:
            asked.update(wanted)
            return {uri: first[uri].validators for uri in list(wanted)[1:] if first[uri].validators}

        for number, item in enumerate(documents_since(source, known)):
            if number == 0 or not first[item.uri].validators:
                assert item == first[item.uri]
                continue
            assert isinstance(item, Unchanged)
            assert item.read is not None
            assert item.read() == first[item.uri]
        assert source.complete
        # What the ledger compares: the metadata that was asked with is that of the document.
        assert asked == {uri: first[uri].metadata for uri in asked}


def test_a_single_file_is_a_source_of_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"text")
    source = FileSource(tmp_path / "a.txt", SETTINGS)

    [document] = list(source)

    assert isinstance(source, Source)
    assert document.uri == f"file://{tmp_path}/a.txt"
    assert source.scope is None
    assert source.complete
    assert source.unreadable == ()
