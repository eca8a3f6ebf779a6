"""A real worker is killed before, during and after the call of each step that costs money or leads to it: nothing is
lost, and what was paid for is what the ledger says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from command_line import eventually
from nursery import MODEL, Nursery, opened
from openai_server import OpenAIServer
from services import RedisServer

TEXTS = 12  # of a job; 5 are harvested at a time

# Where the worker that has the remote batch of one job dies, and dies again when it is taken up.
LIVES = {
    "upload": ["upload: intended", "upload: during", "upload: asked", "upload: told"],
    "fence": ["create: intended", "delete: asked", "delete: told", "search: told"],
    "create": ["create: during", "search: asked"],
    "answer": ["create: asked", "search: told"],
    "submit": ["create: told", "retrieve: during", "look: asked", "look: told"],
    "harvest": ["read: intended", "content: during", "read: stored 1", "read: asked"],
    "lines": ["read: stored 2", "read: told"],
    "clean": ["delete_file: during", "clean: asked", "clean: told"],
}


@pytest.fixture(scope="module")
def nursery(
    tmp_path_factory: pytest.TempPathFactory,
    module_postgres_url: str,
    redis_server: RedisServer,
    qdrant_url: str,
    openai_process: OpenAIServer,
) -> Iterator[Nursery]:
    redis_server.flush()
    openai_process.control.reset()
    addresses = {
        "MILLRACE_POSTGRES__URL": module_postgres_url,
        "MILLRACE_REDIS__URL": redis_server.url,
        "MILLRACE_QDRANT__URL": qdrant_url,
    }
    with (
        pytest.MonkeyPatch.context() as patch,
        opened(tmp_path_factory.mktemp("nursery"), addresses, openai_process, patch) as made,
        made.workers(),
    ):
        yield made


def assert_nothing_is_left(nursery: Nursery, *collections: str) -> None:
    """Nobody buys, waits, or holds back money; nothing lies about at the provider; the index is as the ledger says."""
    assert nursery.planned() == []
    assert nursery.value("SELECT count(*) AS n FROM purchases") == 0
    # What was held back for one that died, and was not needed by the one after it, is given back by a duty.
    eventually(lambda: nursery.value("SELECT count(*) AS n FROM reservations") == 0)
    assert nursery.value("SELECT count(*) AS n FROM batches WHERE attempts > 0") == 0, "nobody is to blame"
    assert nursery.server.control.files() == []
    assert nursery.server.control.batches(unfinished=True) == []
    for collection in collections:
        assert nursery.client.audit(collection).clean
        assert nursery.found(collection) == TEXTS


def test_a_worker_killed_at_any_step_of_a_remote_batch_loses_nothing_and_pays_nothing_twice(nursery: Nursery) -> None:
    # Given a job for each life, and a remote batch for each job
    jobs = {}
    for number, (name, places) in enumerate(LIVES.items()):
        job, _ = jobs[name] = nursery.put(name, "openai_batch", TEXTS, 16 + number)
        nursery.plan(job, *places)

    # When they are done
    nursery.finish([job for job, _ in jobs.values()])

    # Then there was a new worker after each death
    assert nursery.births() == 1 + sum(map(len, LIVES.values()))
    assert_nothing_is_left(nursery, *LIVES)
    assert len(nursery.server.control.batches()) == len(nursery.rows()) == len(LIVES)
    # And each text was paid for once, and has its vector
    for name, (job, texts) in jobs.items():
        assert nursery.times_billed(texts) == {1: TEXTS}, name
        assert nursery.doubtful(job) == 0, name
        assert nursery.row_of(job).done == TEXTS


@pytest.mark.parametrize("place", ["buy: begun", "buy: during", "buy: answered", "buy: stored"])
def test_a_worker_killed_while_it_buys_online_pays_twice_only_what_the_ledger_says(
    nursery: Nursery, place: str
) -> None:
    # Given a job whose worker dies where it buys
    name = place.replace(": ", "")
    births = nursery.births()
    job, texts = nursery.put(name, "openai", TEXTS, 16)
    nursery.plan(name, place)

    # When it is done
    nursery.finish([job])

    # Then each text was paid for, and again only what is told as doubtful
    assert nursery.births() == births + 1
    assert_nothing_is_left(nursery, name)
    billed = nursery.times_billed(texts)
    besides = sum((times - 1) * number for times, number in billed.items())
    assert besides <= nursery.doubtful(job) <= TEXTS
    assert billed[0] == 0


def test_what_was_spent_is_what_was_billed(nursery: Nursery) -> None:
    billed = {"openai": 0, "openai_batch": 0}
    for entry in nursery.server.control.billing():
        each = entry.tokens // entry.times
        billed["openai_batch"] += each * entry.by_batch
        billed["openai"] += each * (entry.times - entry.by_batch)
    price = nursery.settings.cost.prices[MODEL]
    spent = {
        row["provider"]: row
        for row in nursery.sql(
            """SELECT provider, sum(cost) AS cost, sum(doubtful_cost) AS doubtful FROM usage GROUP BY provider"""
        )
    }

    assert spent["openai_batch"]["cost"] == pytest.approx(billed["openai_batch"] * price.batch / 1e6)
    assert spent["openai_batch"]["doubtful"] == 0
    online = billed["openai"] * price.online / 1e6
    assert spent["openai"]["cost"] <= online <= spent["openai"]["cost"] + spent["openai"]["doubtful"] + 1e-12
