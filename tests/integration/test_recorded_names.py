"""What a run of the system records is what the table of metrics has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from reporters import let_them_end
from workshop import COLLECTION, PoisonedEmbedder, Workshop, chunked, paragraphs

from pipeline import Settings
from pipeline.broker import Broker
from pipeline.errors import MillraceError
from pipeline.ledger import duties
from pipeline.ledger.engine import Ledger
from pipeline.monitoring.cluster import ClusterStats
from pipeline.monitoring.metrics import CLUSTER, OPERATIONS, RECORDED
from pipeline.monitoring.whole import Whole
from pipeline.observe import Measured, Series, recorder
from pipeline.settings import PostgresSettings, RedisSettings
from tasks.duties import DEFINITIONS, DUTIES, run_duty


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(chunked(settings), PoisonedEmbedder("poison"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_yet() -> Iterator[None]:
    let_them_end()
    recorder.clear()
    yield
    recorder.clear()


def labels_that_are_not_of_the_table(measured: Measured) -> list[Series]:
    return [
        series
        for kind, found in (("counter", measured.counts), ("histogram", measured.sketches))
        for series in found
        if (known := RECORDED.get(series[0])) is None
        or known.kind != kind
        or len(known.labels) != len(series[1])
        or ("operation" in known.labels and series[1][0] not in OPERATIONS)
    ]


def test_everything_that_is_recorded_is_in_the_table_with_its_labels(workshop: Workshop) -> None:
    # Given documents that come, change, fail and go, searches that work and one that doesn't, and every duty
    workshop.index({"a": paragraphs("one", "two", "three"), "b": paragraphs("four"), "bad": "poison"})
    workshop.index({"a": paragraphs("one", "two", "new")})
    workshop.client.search("one", collection=COLLECTION)
    with pytest.raises(MillraceError):
        workshop.client.search("one", collection="unknown")
    workshop.client.embed(["one is what this paragraph is about", "another"])
    workshop.remove(["b", "absent"])
    workshop.contract()
    for duty in DUTIES:
        run_duty(workshop.services, duty)

    # When what was recorded is looked at, then the table has all of it
    measured = recorder.drain()
    assert labels_that_are_not_of_the_table(measured) == []

    # And it says what happened
    operations = {labels[0] for name, labels in measured.sketches if name == "operation_seconds"}
    bought = {name for name in OPERATIONS if name.startswith(("openai.", "buying.")) or name == "embed.buy"}
    assert operations >= set(OPERATIONS) - {"webhook", "sync.run"} - bought
    counts = measured.counts
    assert counts["documents_enqueued", ("staged",)] == 4
    assert counts["documents_enqueued", ("deleted",)] == 1
    assert counts["documents_enqueued", ("absent",)] == 1
    assert counts["chunks_prepared", ("new",)] == 3 + 1 + 1 + 1
    assert counts["chunks_prepared", ("kept",)] == 2
    assert counts["chunks_prepared", ("removed",)] == 2
    assert counts["points_upserted", ()] == 5
    assert counts["operation_errors", ("search", "UnknownCollection")] == 1
    assert counts["attempts_failed", ("embed",)] >= 1
    # The passages that were embedded for documents, and the one that was not stored yet
    assert counts["embedded_texts", ("local",)] == 5 + 1
    assert counts["cache_lookups", ("embedding", "postgres", "hit")] == 1


def test_the_figures_of_the_whole_are_those_of_the_ledger_and_none_where_it_is_away(
    workshop: Workshop,
) -> None:
    # Given a backlog, a dead letter and duties that have run
    with workshop.services.ledger.transaction() as connection:
        duties.register(connection, DEFINITIONS)
    workshop.index({"good": "text", "bad": "poison"})
    for duty in DUTIES:
        run_duty(workshop.services, duty)
    workshop.client.pause(everything=True)
    workshop.put({"waiting": "text"})

    stats = ClusterStats(workshop.settings.redis)
    stats.add(recorder.drain())

    # When they are read, then all are in the table, and say so
    found = Whole(workshop.services.ledger, workshop.services.broker, stats).read()
    assert [series for series in found if len(CLUSTER[series[0]].labels) != len(series[1])] == []
    assert found["queue_ready_batches", ("normal",)] == 1
    assert found["dead_letters", ()] == 1
    assert found["jobs", ("running",)] + found["jobs", ("queued",)] + found["jobs", ("paused",)] == 1
    assert found["jobs", ("partial",)] == 1
    assert 0 <= found["health_score", ()] < 100  # no worker lives
    assert found["queue_messages", ("normal",)] == workshop.services.broker.depths()["normal"]
    assert {labels[0] for name, labels in found if name == "duty_overdue"} == {duty.name for duty in DUTIES}
    assert [labels[0] for name, labels in found if name == "provider" and found[name, labels]] == ["well"]
    assert found["unpacked_texts", ()] == found["jobs_late", ()] == found["month_dollars", ("spent",)] == 0

    assert found["operation_runs", ("embed",)] >= 2
    assert found["operation_errors", ("embed", "other")] >= 1
    assert found["operation_seconds", ("embed", "0.95")] > 0
    stats.close()

    # And where neither Postgres nor Redis answers there are none, rather than old ones
    nowhere = Ledger(PostgresSettings(url=SecretStr("postgresql://127.0.0.1:1/none"), connect_timeout=1.0))
    nobody = Broker(RedisSettings(url=SecretStr("redis://127.0.0.1:1/0")))
    no_stats = ClusterStats(RedisSettings(url=SecretStr("redis://127.0.0.1:1/0")))
    assert Whole(nowhere, nobody, no_stats).read() == {}
    no_stats.close()
    nowhere.close()
    nobody.close()
