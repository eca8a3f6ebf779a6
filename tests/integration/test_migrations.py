"""The migrations against the tables that the code is written for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from databases import PostgresServer

from pipeline import Client, Settings
from pipeline.errors import LedgerUnavailable, SchemaMismatch
from pipeline.ledger import migrate
from pipeline.ledger.migrate import current, head, upgrade
from pipeline.ledger.tables import metadata
from pipeline.settings import load_settings
from workers.embedded.ports import free_port


@pytest.fixture
def empty_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database without tables."""
    url = postgres_server.create()
    yield url
    postgres_server.drop(url)


def _definitions(url: str) -> list[tuple[str, ...]]:
    """Every column, index and constraint, as Postgres has it."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            """SELECT table_name, column_name, data_type, is_nullable, coalesce(column_default, '')
                 FROM information_schema.columns WHERE table_schema = 'public'
               UNION ALL SELECT tablename, indexname, indexdef, '', '' FROM pg_indexes WHERE schemaname = 'public'
               UNION ALL SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', ''
                 FROM pg_constraint WHERE connamespace = 'public'::regnamespace
               UNION ALL SELECT relname, 'options', reloptions::text, '', '' FROM pg_class WHERE reloptions IS NOT NULL
                 AND relnamespace = 'public'::regnamespace"""
        ).fetchall()
    return sorted(row for row in rows if not row[0].startswith("alembic"))


def test_the_migrations_make_the_tables_of_the_code(postgres_url: str, empty_url: str) -> None:
    # Given one database that was migrated, and one that was made from the tables
    engine = sqlalchemy.create_engine(empty_url.replace("postgresql://", "postgresql+psycopg://"))
    metadata.create_all(engine)
    engine.dispose()

    # Then Alembic finds no difference between the first and the tables, and Postgres none between the two
    engine = sqlalchemy.create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()
    assert _definitions(postgres_url) == _definitions(empty_url)


def test_upgrading_again_changes_nothing(postgres_url: str) -> None:
    before = _definitions(postgres_url)
    assert current(postgres_url) == head()

    upgrade(postgres_url)

    assert _definitions(postgres_url) == before
    assert current(postgres_url) == head()


def test_what_was_published_before_validators_were_kept_stays_and_has_none(empty_url: str) -> None:
    # Given a ledger of the first schema with a published document
    with migrate._connect(empty_url) as connection:
        command.upgrade(migrate._config(connection), "0001")
        connection.commit()
    with psycopg.connect(empty_url) as old:
        old.execute(
            """WITH c AS (INSERT INTO collections (name, physical) VALUES ('notes', 'notes-1') RETURNING id),
                    j AS (INSERT INTO jobs (id, kind, collection_id, tenant, priority, provider, state)
                          SELECT gen_random_uuid(), 'ingest', id, 'default', 1, 'local', 'succeeded' FROM c
                          RETURNING id, collection_id),
                    d AS (INSERT INTO documents (collection_id, tenant, uri)
                          SELECT collection_id, 'default', 'a' FROM j RETURNING id)
               INSERT INTO versions (document_id, collection_id, job_id, kind, state, priority)
               SELECT d.id, j.collection_id, j.id, 'ingest', 'published', 1 FROM d, j"""
        )

    upgrade(empty_url)

    assert current(empty_url) == head()
    with psycopg.connect(empty_url) as new:
        assert new.execute("SELECT state, validators FROM versions").fetchall() == [("published", None)]


def test_two_that_upgrade_at_once_do_it_once(empty_url: str) -> None:
    assert current(empty_url) is None
    failures: list[BaseException] = []

    def run() -> None:
        try:
            upgrade(empty_url)
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert failures == []
    assert current(empty_url) == head()


def test_a_database_without_the_schema_is_told_from_one_that_is_away(empty_url: str, settings: Settings) -> None:
    with Client(load_settings(postgres={"url": empty_url}, home=settings.home)) as client:
        for call in (client.jobs, client.collections, lambda: client.search("words"), client.status):
            with pytest.raises(SchemaMismatch, match=r"does not exist.*Run `millrace migrate`"):
                call()

    away = f"postgresql://nobody:secret@127.0.0.1:{free_port()}/none"
    with pytest.raises(LedgerUnavailable, match=r"nobody:\*\*\*@127"):
        upgrade(away)
    with (
        Client(load_settings(postgres={"url": away, "connect_timeout": 0.5}, home=settings.home)) as client,
        pytest.raises(LedgerUnavailable, match=r"nobody:\*\*\*@127"),
    ):
        client.jobs()


def test_a_schema_that_is_too_old_is_told_by_name(postgres_url: str, settings: Settings) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("ALTER TABLE jobs DROP COLUMN chunks_embedded")

    with Client(settings) as client, pytest.raises(SchemaMismatch, match=r"chunks_embedded.*Run `millrace migrate`"):
        client.ingest([("a", "words")], collection="notes")
