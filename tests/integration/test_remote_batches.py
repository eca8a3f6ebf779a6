"""The Batch API through the real service: the main path, every place where a process may die, cancelling, limits."""

from __future__ import annotations

import openai
import pytest
from remote_scene import CrashAt, RemoteScene

from pipeline.ledger import remote

TEXTS = [f"text number {number}" for number in range(12)]
# Where a process may die: the boundary, and how often it is passed before.
WINDOWS = [
    ("upload: intended", 1),
    ("upload: asked", 1),
    ("upload: told", 1),
    ("create: asked", 1),
    ("create: told", 1),
    ("look: asked", 1),
    ("look: told", 1),
    ("read: intended", 1),
    ("read: stored", 1),
    ("read: stored", 2),
    ("read: asked", 1),
    ("read: told", 1),
    ("clean: asked", 1),
    ("clean: asked", 2),
    ("clean: told", 1),
]


def test_texts_of_several_jobs_are_bought_as_one_batch_and_wake_whoever_waits(scene: RemoteScene) -> None:
    # Given two jobs of two tenants that want some of the same texts
    first = scene.order(TEXTS[:8], tenant="a")
    second = scene.order(TEXTS[4:], tenant="b", priority=0)

    # When they are packed and gone on with
    (remote_id,) = scene.pack()
    packed = scene.row(remote_id)
    scene.finish()

    # Then one batch held each text once, in the queue of the more urgent, and all is as it should be
    assert (packed.inputs, packed.priority, len(packed.jobs)) == (12, 0, 2)
    (sent,) = scene.server.control.batches()
    assert sent["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
    scene.assert_bought_once(TEXTS)
    assert scene.states(first, second) == ["ready", "ready"]

    # And what it cost is known to the last token, by job
    row = scene.row(remote_id)
    tokens = sent["usage"]["total_tokens"]
    assert (row.state, row.done, row.failed, row.missing) == ("closed", 12, 0, 0)
    assert scene.usage()["tokens"] == tokens
    assert row.cost == pytest.approx(tokens * 0.01 / 1e6)
    assert scene.value("SELECT sum(cost) FROM jobs") == pytest.approx(row.cost)
    assert scene.value("SELECT sum(cost) FROM embeddings") == pytest.approx(row.cost)
    assert scene.value("SELECT sum(batch_saved) FROM usage") == pytest.approx(row.cost)
    assert [row["chunks_embedded"] for row in scene.sql("SELECT chunks_embedded FROM jobs ORDER BY tenant")] == [8, 4]


@pytest.mark.parametrize(("boundary", "nth"), WINDOWS)
def test_a_process_that_dies_anywhere_loses_nothing_and_nothing_is_paid_twice(
    scene: RemoteScene, boundary: str, nth: int
) -> None:
    # Given a process that dies at this boundary
    batch = scene.order(TEXTS)
    (remote_id,) = scene.pack()
    crash = CrashAt(boundary, nth)
    while crash.seen[boundary] < nth:
        assert scene.visit(remote_id, crash) != "closed" or boundary == "clean: told"

    # When its lease is over, and another one goes on
    scene.bury()
    scene.finish()

    # Then everything was bought once, by one batch of one file
    scene.assert_bought_once(TEXTS)
    assert scene.states(batch) == ["ready"]
    assert len(scene.server.control.batches()) == 1
    assert scene.row(remote_id).attempt == 1


def test_a_creation_that_was_intended_and_never_sent_is_begun_again_when_that_is_known(scene: RemoteScene) -> None:
    # Given a process that dies between the commit of its intent and the request
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    scene.visit(remote_id, CrashAt("create: intended"))
    scene.bury()

    # When others go on
    scene.finish()

    # Then they looked for it three times: at once, after the request's time and grace, and after its file was deleted
    asked = [request.operation for request in scene.server.control.requests()]
    searching = asked[: asked.index("batches.create")]
    assert searching.count("batches.list") == 3
    assert searching.index("files.delete") < len(searching) - searching[::-1].index("batches.list")
    # And it was begun again; nobody can know that nothing was paid
    assert scene.billed(TEXTS) == {1: 12}
    assert scene.vectors(TEXTS) == 12
    row = scene.row(remote_id)
    assert (row.attempt, row.doubtful, row.state) == (2, True, "closed")


def test_a_paused_process_that_comes_back_changes_nothing(scene: RemoteScene) -> None:
    # Given a process that is stopped after its creation was answered, until its lease is over and others have gone on
    scene.order(TEXTS)
    (remote_id,) = scene.pack()

    def stopped(boundary: str) -> None:
        if boundary == "create: asked":
            scene.bury()
            scene.finish()

    # When it comes back
    scene.visit(remote_id, stopped)

    # Then the others have adopted its batch, and it was in vain
    scene.assert_bought_once(TEXTS)
    assert len(scene.server.control.batches()) == 1


def test_a_paused_harvester_that_comes_back_stores_nothing(scene: RemoteScene) -> None:
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    scene.until(remote_id, "submitted")

    def stopped(boundary: str) -> None:
        if boundary == "read: stored" and scene.row(remote_id).state == "harvesting":
            scene.bury()
            scene.finish()

    scene.visit(remote_id, stopped)

    scene.assert_bought_once(TEXTS)
    assert scene.row(remote_id).done == 12


_MADE_OF = ("completion_window", "endpoint", "input_file_id", "metadata")


def create_again(scene: RemoteScene) -> None:
    """The creation of the only batch reaches the server a second time."""
    (made,) = scene.server.control.batches()
    with openai.OpenAI(base_url=scene.server.url, api_key=scene.server.key, max_retries=0) as client:
        client.batches.create(**{name: made[name] for name in _MADE_OF})


def test_a_duplicate_under_our_key_is_cancelled_and_harvested_and_shown(scene: RemoteScene) -> None:
    # Given a creation that reached the server twice, as its process died
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    scene.visit(remote_id, CrashAt("create: asked"))
    scene.bury()
    scene.server.control.timing(cancelling=0.0)
    create_again(scene)

    # When others go on
    scene.finish()

    # Then everything is there, and what was paid for twice is what the ledger shows
    assert scene.vectors(TEXTS) == 12
    paid = sum(entry.times for entry in scene.server.control.billing())
    row = scene.row(remote_id)
    assert row.doubtful
    assert len(row.others) == 1
    assert scene.usage() == {**scene.usage(), "texts": 12, "doubtful": paid - 12}
    assert scene.server.control.files() == []


def test_a_duplicate_of_a_row_that_a_worker_died_closing_is_taken_in_by_whoever_sees_it(scene: RemoteScene) -> None:
    # Given a batch that was created twice, the second time late; its worker dies when the row is closed
    scene.server.control.timing(in_progress=None)
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    scene.visit(remote_id, CrashAt("create: asked"))
    scene.bury()
    scene.until(remote_id, "submitted")
    create_again(scene)
    scene.server.control.finish()
    scene.server.control.timing(in_progress=0.0)
    closing = CrashAt("clean: told")
    while not closing.seen["clean: told"]:
        scene.visit(remote_id, closing)
    scene.sql("UPDATE remote_batches SET lease_until = to_timestamp(0) WHERE owner IS NOT NULL")

    # When another batch is searched for
    scene.order(["another text"])
    (another,) = scene.pack()
    scene.visit(another, CrashAt("create: asked"))
    scene.bury()
    scene.finish()

    # Then what was paid for twice is shown
    assert scene.row(remote_id).doubtful
    assert scene.usage() == {**scene.usage(), "texts": 13, "doubtful": 12}
    assert sum(entry.times for entry in scene.server.control.billing()) == 25


# -- cancelling ------------------------------------------------------------------------------------------------------


def test_a_shared_batch_goes_on_while_anybody_needs_one_of_its_texts(scene: RemoteScene) -> None:
    # Given a batch for two jobs at the server
    scene.server.control.timing(in_progress=None)
    first, second = scene.order(TEXTS[:8]), scene.order(TEXTS[4:])
    (remote_id,) = scene.pack()
    scene.until(remote_id, "submitted")

    # When one is cancelled, it goes on
    scene.end(first)
    scene.visit(remote_id)
    assert scene.row(remote_id).cancel_reason is None

    # When both are, it is cancelled, and what it had finished is kept
    (made,) = scene.server.control.batches()
    scene.server.control.change(made["id"], done=0.5)
    scene.end(second)
    scene.finish()
    row = scene.row(remote_id)
    assert (row.status, row.done) == ("cancelled", 6)
    assert "nobody needs" in (row.cancel_reason or "")
    assert scene.vectors(TEXTS) == 6
    assert scene.pack() == []
    assert scene.value("SELECT count(*) FROM purchases") == 0


def test_what_nobody_needs_any_more_is_not_packed_and_not_uploaded(scene: RemoteScene) -> None:
    first, second = scene.order(TEXTS[:6]), scene.order(TEXTS[6:])
    scene.end(first)

    (remote_id,) = scene.pack()
    assert scene.row(remote_id).inputs == 6
    scene.end(second)
    scene.finish()

    assert scene.row(remote_id).status == "withdrawn"
    assert scene.server.control.requests("files.create") == []
    assert scene.value("SELECT count(*) FROM purchases") == 0


def test_a_batch_that_is_cancelled_gives_its_finished_part_and_the_rest_is_ordered_anew(scene: RemoteScene) -> None:
    # Given a batch of which a half is finished
    scene.server.control.timing(in_progress=None)
    batch = scene.order(TEXTS)
    (remote_id,) = scene.pack()
    scene.until(remote_id, "submitted")
    (made,) = scene.server.control.batches()
    scene.server.control.change(made["id"], done=0.5)

    # When somebody cancels it
    with scene.services.ledger.transaction() as connection:
        assert remote.cancel(connection, remote_id, "somebody asked for it")
        assert not remote.cancel(connection, remote_id, "and again")
    scene.until(remote_id, "closed")
    assert (scene.row(remote_id).done, scene.row(remote_id).status) == (6, "cancelled")

    # Then a second batch has the rest, and nobody was blamed
    assert scene.value("SELECT max(attempts) FROM purchases") == 0
    scene.server.control.timing()
    scene.finish()
    scene.assert_bought_once(TEXTS)
    assert scene.states(batch) == ["ready"]
    assert [row.inputs for row in scene.rows()] == [12, 6]


def test_a_batch_that_is_cancelled_before_it_was_created_never_is(scene: RemoteScene) -> None:
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    scene.visit(remote_id, CrashAt("upload: told"))
    scene.bury()
    with scene.services.ledger.transaction() as connection:
        remote.cancel(connection, remote_id, "somebody asked for it")

    scene.until(remote_id, "closed")

    assert scene.row(remote_id).status == "withdrawn"
    assert scene.server.control.requests("batches.create") == []
    assert scene.server.control.files() == []
    scene.finish()
    scene.assert_bought_once(TEXTS)


# -- limits ----------------------------------------------------------------------------------------------------------


def test_full_batches_go_at_once_and_the_rest_lingers(scene: RemoteScene) -> None:
    scene.with_batch(inputs=5, linger_seconds=120.0)
    scene.order(TEXTS)

    assert [scene.row(remote_id).inputs for remote_id in scene.pack()] == [5, 5]
    scene.pass_time(60)
    assert scene.pack() == []
    scene.pass_time(61)
    assert [scene.row(remote_id).inputs for remote_id in scene.pack()] == [2]


def test_tokens_are_reserved_for_all_unfinished_batches_together(scene: RemoteScene) -> None:
    # Given an account that may have ten texts enqueued
    scene.with_batch(enqueued_tokens=100)
    scene.order(TEXTS, tokens=10)
    scene.order([f"more {text}" for text in TEXTS], tokens=10)

    # When they are packed, then no more is begun until that one has ended
    (first,) = scene.pack()
    assert scene.row(first).inputs == 10
    scene.until(first, "submitted")
    assert scene.pack() == []
    scene.until(first, "closed")
    (second,) = scene.pack()
    assert scene.row(second).inputs == 10


def test_no_more_batches_are_begun_in_an_hour_than_the_account_may(scene: RemoteScene) -> None:
    scene.with_batch(inputs=2, creates_per_hour=3)
    scene.order(TEXTS)

    assert len(scene.pack()) == 3
    scene.pass_time(3601)
    assert len(scene.pack()) == 3


def test_a_file_is_never_larger_than_the_limit_and_what_does_not_fit_goes_into_another(scene: RemoteScene) -> None:
    # Given texts whose lines are longer than they were taken for: what U+2028 becomes is longer than it is
    scene.with_batch(bytes=30_000)
    texts = [f"{number} " + "\u2028" * 2500 for number in range(6)]
    scene.order(texts)

    # When they are bought
    scene.finish()

    # Then no file was larger, and all is there
    scene.assert_bought_once(texts)
    uploaded = [row.bytes or 0 for row in scene.rows()]
    assert len(uploaded) > 2
    assert max(uploaded) <= 30_000


def test_the_soonest_needed_go_first(scene: RemoteScene) -> None:
    scene.with_batch(inputs=4, creates_per_hour=1)
    scene.order(TEXTS[:4])
    scene.order(TEXTS[4:8], need_by=scene.value("SELECT now() + interval '3 days'"))
    scene.order(TEXTS[8:], need_by=scene.value("SELECT now() + interval '2 days'"))

    (remote_id,) = scene.pack()

    found = scene.sql("SELECT text FROM purchases WHERE remote_batch_id = %(id)s", id=remote_id)
    assert {row["text"] for row in found} == set(TEXTS[8:])
    assert scene.row(remote_id).need_by == scene.value("SELECT max(need_by) FROM jobs WHERE need_by < now() + '60 h'")


def test_what_a_paused_job_has_ordered_is_not_packed_until_it_is_resumed(scene: RemoteScene) -> None:
    paused, going = scene.order(TEXTS[:6]), scene.order(TEXTS[6:])
    scene.sql("UPDATE jobs SET state = 'paused' WHERE id = (SELECT job_id FROM batches WHERE id = %(id)s)", id=paused)

    scene.finish()
    assert scene.states(paused, going) == ["waiting", "ready"]
    assert scene.vectors(TEXTS) == 6
    scene.sql("UPDATE jobs SET state = 'running'")
    scene.finish()
    scene.assert_bought_once(TEXTS)


def test_texts_of_a_key_that_was_changed_are_bought_with_the_new_one(scene: RemoteScene) -> None:
    # Given texts that were ordered with another key of the account
    scene.order(TEXTS)
    scene.sql("UPDATE purchases SET spec_hash = %(other)s", other=b"of another key")

    # When they are packed, then their model is known by the keys of the texts
    scene.finish()
    scene.assert_bought_once(TEXTS)


def test_texts_of_another_endpoint_wait(scene: RemoteScene) -> None:
    scene.order(TEXTS)
    elsewhere = scene.settings.openai.model_copy(update={"base_url": "http://127.0.0.1:1/v1"})
    scene.settings = scene.settings.model_copy(update={"openai": elsewhere})

    assert scene.pack() == []


def test_a_batch_at_another_endpoint_is_left_alone(scene: RemoteScene) -> None:
    # Given a batch at the server, and workers that are set to another one
    scene.server.control.timing(in_progress=None)
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    scene.until(remote_id, "submitted")
    own = scene.settings
    openai = own.openai.model_copy(update={"base_url": "http://127.0.0.1:1/v1"})
    scene.settings = own.model_copy(update={"openai": openai})

    # When they look after it, then it waits, and says why
    assert scene.visit(remote_id) == "submitted"
    assert "127.0.0.1:1" in (scene.row(remote_id).error or "")

    # When the settings are as they were, it goes on
    scene.settings = own
    scene.server.control.timing()
    scene.finish()
    scene.assert_bought_once(TEXTS)
