"""A ledger that takes its time to store embeddings, so that every machine has time to look at a job in its middle."""

from __future__ import annotations

import psycopg

_INSTALL = """
CREATE TABLE IF NOT EXISTS test_slowness (seconds float8 NOT NULL);
CREATE OR REPLACE FUNCTION test_be_slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(seconds) FROM test_slowness;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER test_be_slow BEFORE INSERT ON embeddings FOR EACH STATEMENT EXECUTE FUNCTION test_be_slow();
"""


def install(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_INSTALL)
        connection.execute("INSERT INTO test_slowness VALUES (0)")


def slow(url: str, seconds: float) -> None:
    """From now on each batch of embeddings is stored in so many seconds."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE test_slowness SET seconds = %s", (seconds,))
