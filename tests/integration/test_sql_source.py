"""docs/examples/sql_source.py, run: a SQL query as a source, on SQLite and on Postgres."""

from __future__ import annotations

import importlib.util
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from workshop import COLLECTION, Workshop

from pipeline import Client, Document, Settings
from pipeline.sources import Source
from pipeline.sources.base import Conditional

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "sql_source.py"

LISTING = "SELECT id, updated_at, author FROM notes ORDER BY id"


def _example() -> Any:
    specification = importlib.util.spec_from_file_location("sql_source", EXAMPLE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@dataclass
class Database:
    """A table of notes, how to change it, and the example reading it. `read`: the ids whose text was asked for."""

    connect: Callable[[], Any]
    mark: str
    cursor: Callable[[Any], Any]

    def execute(self, statement: str, *values: Any) -> None:
        with closing(self.connect()) as connection:
            connection.cursor().execute(statement.replace("?", self.mark), values)
            connection.commit()

    def source(self) -> Any:
        text = f"SELECT body FROM notes WHERE id = {self.mark}"
        return _example().SqlSource(self.connect, LISTING, text, "sql:notes/", self.cursor)


@pytest.fixture(params=["sqlite", "psycopg", "sqlalchemy"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    engine = None
    if request.param == "sqlite":
        made = Database(partial(sqlite3.connect, tmp_path / "notes.db"), "?", lambda connection: connection.cursor())
    else:
        url = request.getfixturevalue("postgres_url")
        engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        connect = partial(psycopg.connect, url) if request.param == "psycopg" else engine.raw_connection
        made = Database(connect, "%s", lambda connection: connection.cursor("rows"))
    made.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, updated_at INTEGER, author TEXT, body TEXT)")
    for number in range(1, 5):
        made.execute("INSERT INTO notes VALUES (?, 1, ?, ?)", number, "ann" if number % 2 else "bob", f"note {number}")
    yield made
    if engine is not None:
        engine.dispose()


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(settings)
    yield made
    made.close()


def test_the_rows_of_a_query_become_documents(database: Database) -> None:
    source = database.source()

    found = list(source)

    assert isinstance(source, Source)
    assert isinstance(source, Conditional)
    assert source.complete
    assert found[0] == Document("sql:notes/1", "note 1", None, {"author": "ann"}, {"version": "1"})
    assert [item.uri for item in found] == [f"sql:notes/{number}" for number in (1, 2, 3, 4)]


def test_a_sync_reads_the_rows_that_changed_and_deletes_those_that_are_gone(
    database: Database, workshop: Workshop
) -> None:
    def sync() -> dict[str, int]:
        job = workshop.client.sync(database.source(), collection=COLLECTION)
        workshop.work()
        return {name: count for name, count in workshop.client.job(job.job_id).documents.items() if count}

    assert sync() == {"total": 4, "indexed": 4}
    database.execute("UPDATE notes SET body = 'note 2, changed', updated_at = 2 WHERE id = 2")
    database.execute("UPDATE notes SET author = 'eve' WHERE id = 3")
    database.execute("DELETE FROM notes WHERE id = 4")
    # A text that changes without its version is not seen: nothing asked for it.
    database.execute("UPDATE notes SET body = 'in secret' WHERE id = 1")

    assert sync() == {"total": 4, "indexed": 2, "unchanged": 1, "deleted": 1}

    assert workshop.texts() == {
        "sql:notes/1": ["note 1"],
        "sql:notes/2": ["note 2, changed"],
        "sql:notes/3": ["note 3"],
    }
    assert list(workshop.texts(filters={"author": "eve"})) == ["sql:notes/3"]


def test_a_row_without_text_and_one_with_metadata_that_is_not_json_are_rejected_by_name(
    database: Database, workshop: Workshop
) -> None:
    database.execute("UPDATE notes SET body = NULL WHERE id = 2")
    source = database.source()
    if database.mark == "%s":
        source._listing = "SELECT id, updated_at, now() AS today FROM notes"
        wrong = {f"sql:notes/{number}" for number in (1, 2, 3, 4)}
    else:
        wrong = {"sql:notes/2"}

    done = workshop.index(source)

    assert {error["uri"] for error in done.errors} == wrong
    assert done.documents["failed"] == len(wrong)


def test_a_row_published_anew_while_it_was_listed_is_read_after_all(
    database: Database, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.index(database.source())
    source = database.source()
    listed = source.since

    def since(known: Any) -> Iterator[Any]:
        for item in listed(known):
            if item.uri == "sql:notes/2":
                with Client(services=workshop.services) as client:
                    client.ingest([Document("sql:notes/2", "something else")], collection=COLLECTION)
                workshop.work()
            yield item

    monkeypatch.setattr(source, "since", since)

    workshop.index(source)

    assert workshop.texts()["sql:notes/2"] == ["note 2"]
