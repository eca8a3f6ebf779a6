"""Embeddings that go, by age and by size."""

from __future__ import annotations

from command_line import eventually
from sweeping import collected, expired, kept, with_ages
from workshop import Workshop

from pipeline import Settings
from pipeline.cached_embedding import embed_cached
from pipeline.duties import Bounds
from pipeline.ledger import garbage as rows
from tasks import garbage


def test_embeddings_go_by_age_unless_something_needs_them_or_they_were_paid_for(settings: Settings) -> None:
    workshop = Workshop(kept(settings, embeddings_days=30.0, paid_embeddings_days=0.0))
    workshop.index({"a": "ash"})
    workshop.put({"b": "birch"})
    workshop.prepare()
    texts = ["ash", "birch", "old", "old and paid for", "young"]
    embed_cached(workshop.services.ledger, workshop.embedder, texts, "passage")
    workshop.sql("UPDATE embeddings SET last_used = now() - interval '31 days'")
    embed_cached(workshop.services.ledger, workshop.embedder, ["young"], "passage")
    (paid,) = workshop.sql("SELECT key FROM embeddings ORDER BY tokens DESC LIMIT 1")
    workshop.sql("UPDATE embeddings SET cost = 0.01 WHERE key = %(key)s", key=paid["key"])

    assert expired(workshop) == {"embeddings": 1}
    with_ages(workshop, settled_seconds=900.0, paid_embeddings_days=30.0)
    assert collected(workshop) == {"embeddings": 1}

    before = len(workshop.embedded())
    workshop.work()
    assert workshop.texts() == {"a": ["ash"], "b": ["birch"]}
    assert workshop.embedded()[before:] == []
    workshop.close()


def test_an_age_of_zero_keeps_embeddings_for_ever(settings: Settings) -> None:
    workshop = Workshop(kept(settings, embeddings_days=0.0))
    embed_cached(workshop.services.ledger, workshop.embedder, ["old"], "passage")
    workshop.sql("UPDATE embeddings SET last_used = now() - interval '10 years'")
    assert (collected(workshop), expired(workshop)) == ({}, {})
    workshop.close()


def test_embeddings_go_by_size_the_longest_unused_first_and_none_that_is_needed(settings: Settings) -> None:
    # Given a few thousand embeddings, the oldest of which a chunk has, and of the others the oldest paid for
    workshop = Workshop(kept(settings, embeddings_days=0.0, embeddings_mb=1))
    workshop.index({"a": "ash"})
    workshop.sql(
        """INSERT INTO embeddings (key, vector, tokens, cost, last_used)
           SELECT sha256(n::text::bytea), repeat('x', 1356)::bytea, n, CASE n WHEN 1 THEN 0.01 ELSE 0 END,
                  now() - interval '1 hour' + make_interval(secs => n) FROM generate_series(1, 2000) AS n"""
    )
    workshop.sql("UPDATE embeddings SET last_used = now() - interval '1 year' WHERE vector <> repeat('x', 1356)::bytea")

    def known() -> tuple[int, float] | None:
        """The size, when Postgres has counted what each connection of ours has written."""
        workshop.sql("SELECT pg_stat_force_next_flush()")
        workshop.sql("SELECT 1")
        with workshop.services.ledger.transaction() as connection:
            found = rows.embeddings_size(connection)
        return found if found[0] == 2001 else None

    # When it is told what would go, and then it goes
    _, size = eventually(known)
    assert round(size, -2) == 1500
    left = int(1024 * 1024 / size)
    assert (
        abs(garbage.expire(workshop.services, Bounds(100, 20.0, dry_run=True))["excess_embeddings"] - 2001 + left) < 20
    )
    taken = expired(workshop)["excess_embeddings"]
    assert abs(taken - (2001 - left)) < 20, "the size is told by a sample"

    # Then what is left is needed, paid for or the last used
    found = {row["tokens"] for row in workshop.sql("SELECT tokens FROM embeddings WHERE cost = 0 AND tokens > 9")}
    assert found == set(range(taken + 2, 2001))
    assert workshop.value("SELECT count(*) FROM embeddings WHERE tokens = 1 AND cost > 0") == 1
    assert workshop.audit() == {"expected": 1, "present": 1}
    workshop.close()
