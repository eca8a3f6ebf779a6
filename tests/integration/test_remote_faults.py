"""Whatever a provider of the Batch API may do, through the real service: nothing is lost, nothing wrong is stored, and
what was paid for twice is what the ledger shows."""

from __future__ import annotations

from itertools import pairwise

import pytest
from remote_scene import RemoteScene

from pipeline.ledger import circuits

TEXTS = [f"text number {number:02}" for number in range(12)]


# -- uploading and creating --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["drop", "garbage"])
def test_an_upload_whose_answer_is_lost_is_found_by_its_name(scene: RemoteScene, kind: str) -> None:
    scene.server.control.fault("files.create", kind)
    scene.order(TEXTS)

    scene.finish()

    scene.assert_bought_once(TEXTS)
    assert len(scene.server.control.requests("files.create")) == 1
    assert len(scene.rows()) == 1


@pytest.mark.parametrize("kind", ["drop", "reset", "cut", "garbage", "error_in_200"])
def test_a_creation_whose_answer_is_lost_is_adopted(scene: RemoteScene, kind: str) -> None:
    scene.server.control.fault("batches.create", kind)
    scene.order(TEXTS)

    scene.finish()

    scene.assert_bought_once(TEXTS)
    assert len(scene.server.control.requests("batches.create")) == 1


def test_a_creation_is_adopted_though_it_is_listed_late_among_others_after_lists_that_failed(
    scene: RemoteScene,
) -> None:
    # Given a creation that is answered by nobody, listed after a minute, and lists that fail at first
    control = scene.server.control
    control.fault("batches.create", "foreign", count=120)
    control.fault("batches.create", "lag", seconds=60)
    control.fault("batches.create", "drop")
    control.fault("batches.list", "status", code=500, times=2)
    scene.order(TEXTS)

    # When it is gone on with, then it is found
    scene.finish()
    assert [row.attempt for row in scene.rows()] == [1]
    assert scene.billed(TEXTS) == {1: 12}
    scene.assert_whole(TEXTS)


def test_a_creation_that_comes_late_is_adopted_when_it_is_there(scene: RemoteScene) -> None:
    scene.server.control.fault("batches.create", "late", seconds=100)
    scene.order(TEXTS)

    scene.finish()

    assert scene.billed(TEXTS) == {1: 12}
    assert [row.attempt for row in scene.rows()] == [1]


def test_a_creation_that_comes_too_late_fails_as_its_file_is_gone(scene: RemoteScene) -> None:
    scene.server.control.fault("batches.create", "late", seconds=3600)
    scene.order(TEXTS)

    scene.finish()
    scene.pass_time(7200)

    assert scene.billed(TEXTS) == {1: 12}
    scene.assert_whole(TEXTS)
    assert [(row.attempt, row.doubtful) for row in scene.rows()] == [(2, True)]


@pytest.mark.parametrize(("code", "error_code"), [(429, "rate_limit_exceeded"), (400, "invalid_request_error")])
def test_a_creation_that_is_certainly_refused_is_asked_for_again_or_given_up_by_name(
    scene: RemoteScene, code: int, error_code: str
) -> None:
    scene.server.control.fault(
        "batches.create", "status", code=code, error_code=error_code, message="not this one", times=1
    )
    scene.order(TEXTS)

    scene.finish()

    # Nothing was searched for: it is known that nothing was created
    assert scene.server.control.requests("batches.list") == []
    scene.assert_bought_once(TEXTS)
    assert len(scene.rows()) == (1 if code == 429 else 2)


def test_what_is_refused_every_time_is_given_up_and_whoever_waits_is_told(scene: RemoteScene) -> None:
    scene.server.control.fault("batches.create", "status", code=400, message="not this one", times=None)
    batch = scene.order(TEXTS)

    scene.finish()

    assert scene.states(batch) == ["ready"]
    assert len(scene.rows()) == 3
    errors = {row["error"] for row in scene.sql("SELECT error FROM purchases WHERE attempts >= 3")}
    assert [error for error in errors if "not this one" in error] == list(errors)
    assert scene.server.control.billing() == []


def test_a_file_that_is_not_visible_yet_is_asked_for_again(scene: RemoteScene) -> None:
    scene.server.control.fault("files.create", "invisible", seconds=15)
    scene.order(TEXTS)

    scene.finish()

    scene.assert_bought_once(TEXTS)
    assert len(scene.server.control.requests("files.create")) == 1


def test_too_many_enqueued_tokens_are_nobodys_fault_and_smaller_batches_follow_after_a_rest(scene: RemoteScene) -> None:
    # Given an account whose limit is lower than the setting says
    scene.server.control.set(enqueued_tokens=30)
    scene.order(TEXTS, tokens=4)
    (first,) = scene.pack()
    scene.until(first, "closed")

    # When it was refused, then nothing is packed for a while, and then no more than the server has named
    assert (scene.row(first).error or "").startswith("token_limit_exceeded")
    assert scene.pack() == []
    assert scene.value("SELECT max(attempts) FROM purchases") == 0
    scene.pass_time(400)
    (second,) = scene.pack()
    assert scene.row(second).tokens <= 30
    scene.finish()
    scene.assert_bought_once(TEXTS)


# -- while it waits ----------------------------------------------------------------------------------------------------


def test_polling_takes_longer_and_longer_and_consumes_nothing(scene: RemoteScene) -> None:
    scene.server.control.timing(in_progress=None)
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    waits = []
    for _ in range(14):
        scene.visit(remote_id)
        waits.append(scene.row(remote_id).due_seconds or 0.0)

    assert all(earlier < later * 1.25 for earlier, later in pairwise(waits))
    assert waits[0] < 10.1
    assert 230 < waits[-1] <= 300
    row = scene.row(remote_id)
    assert (row.losses, row.tries, row.error, row.owner) == (0, 0, None, None)


@pytest.mark.parametrize("kind", ["revoked", "forbidden"])
def test_a_key_that_is_rejected_while_it_waits_is_told_and_loses_nothing(scene: RemoteScene, kind: str) -> None:
    # Given a batch at the server, and a key that is not what it was
    scene.server.control.timing(in_progress=None)
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    scene.until(remote_id, "submitted")
    scene.server.control.set_key(scene.server.key, kind)

    # When it is asked for, then it waits, and says why, and so do all
    scene.visit(remote_id)
    row = scene.row(remote_id)
    assert row.state == "submitted"
    assert "MILLRACE_OPENAI__API_KEY" in (row.error or "")
    assert "sk-" not in (row.error or "")
    with scene.services.ledger.transaction() as connection:
        found = circuits.find(connection, circuits.OPENAI)
    assert found is not None
    assert found.cause == "KeyRejected"

    # When it is valid again, it goes on by itself
    scene.server.control.set_key(scene.server.key, "valid")
    scene.server.control.timing()
    scene.finish()
    scene.assert_bought_once(TEXTS)
    with scene.services.ledger.transaction() as connection:
        assert circuits.find(connection, circuits.OPENAI) is None


def test_an_account_without_money_is_told_and_begins_nothing_until_it_has_some(scene: RemoteScene) -> None:
    scene.server.control.set_key(scene.server.key, "exhausted")
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    scene.visit(remote_id)
    row = scene.row(remote_id)
    assert (row.state, row.tries) == ("uploaded", 1)
    assert (row.due_seconds or 0.0) > 50
    with scene.services.ledger.transaction() as connection:
        found = circuits.find(connection, circuits.OPENAI)
    assert found is not None
    assert found.cause == "QuotaExhausted"

    scene.server.control.set_key(scene.server.key, "valid")
    scene.finish()
    scene.assert_bought_once(TEXTS)


def test_a_provider_that_is_away_is_waited_for(scene: RemoteScene) -> None:
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    scene.server.control.fault("*", "refuse", times=6)

    scene.finish()

    scene.assert_bought_once(TEXTS)
    assert scene.row(remote_id).error is None


def test_a_status_that_nobody_knows_is_no_end(scene: RemoteScene) -> None:
    scene.server.control.fault("batch", "status", name="pondering", during="in_progress")
    scene.server.control.timing(in_progress=1000)
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    scene.until(remote_id, "submitted")
    scene.visit(remote_id)
    assert "pondering" in (scene.row(remote_id).error or "")

    scene.finish()
    scene.assert_bought_once(TEXTS)


def test_a_batch_that_is_not_there_any_more_is_waited_for_and_then_bought_anew_as_doubtful(scene: RemoteScene) -> None:
    scene.server.control.fault("batch", "gone", seconds=20)
    scene.server.control.timing(in_progress=None)
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    scene.until(remote_id, "submitted")
    scene.pass_time(3600)
    scene.visit(remote_id)
    assert scene.row(remote_id).state == "submitted"
    scene.server.control.timing()

    # A day and an hour later it is given up
    scene.pass_time(90_000)
    scene.finish()
    assert scene.row(remote_id).doubtful
    assert scene.usage()["doubtful"] == 12
    assert scene.vectors(TEXTS) == 12
