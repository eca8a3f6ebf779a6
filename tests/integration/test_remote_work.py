"""Who asks for work on remote batches, who sees them, and the whole path from a document to a search."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harvesting_process import harvest_alone, killed_at
from openai_server import OpenAIServer
from pydantic import SecretStr
from remote_scene import CrashAt, RemoteScene, batch_settings
from services import RedisServer, enter
from workshop import COLLECTION, Workshop, paragraphs

from pipeline import Client, Settings
from pipeline.broker import REMOTE_TASK
from pipeline.errors import InvalidSettings, UnknownBatch, WebhookRejected
from pipeline.ledger import remote
from tasks import leaving
from tasks.base import Skipped, Waiting
from tasks.duties import DUTIES, run_duty
from tasks.duty import Duty
from tasks.maintenance import reconcile
from tasks.openai_batch import perform, poll
from workers.cli import main

TEXTS = [f"text number {number}" for number in range(6)]
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
POLL = next(duty for duty in DUTIES if duty.run is poll)
RECONCILE = next(duty for duty in DUTIES if duty.run is reconcile)


@pytest.fixture
def scene(settings: Settings, openai_server: OpenAIServer, redis_server: RedisServer) -> Iterator[RemoteScene]:
    redis_server.flush()
    made = RemoteScene(batch_settings(settings, openai_server), openai_server)
    yield made
    made.close()


def duty(scene: RemoteScene, wanted: Duty = POLL) -> dict[str, int]:
    scene.sql("UPDATE duties SET due_at = now() WHERE name = %(name)s", name=wanted.name)
    counts = run_duty(scene.services, wanted)
    assert counts is not None
    assert "error" not in counts
    return dict(counts)


# -- who asks for it ---------------------------------------------------------------------------------------------------


def test_the_duty_packs_and_sends_ids_to_the_queue_of_their_priority(
    scene: RemoteScene, redis_server: RedisServer
) -> None:
    # Given texts that wait
    scene.order(TEXTS, priority=0)

    # When the duty runs, then they are packed, and one message is sent, however often it runs
    assert {"packed": 1, "sent": 1}.items() <= duty(scene).items()
    assert {"packed": 0, "sent": 0}.items() <= duty(scene).items()
    broker = scene.services.broker
    assert {name: depth for name, depth in broker.depths().items() if depth} == {"high": 1}
    (row,) = scene.rows()
    assert broker.carried((REMOTE_TASK,)) == {row.id}

    # When Redis is flushed, it is sent again; when it was taken and lost, too
    redis_server.flush()
    scene.sql("UPDATE remote_batches SET sent_at = sent_at - interval '6 seconds'")
    assert {"lost_messages": 1, "sent": 1}.items() <= duty(scene).items()
    scene.sql("UPDATE remote_batches SET sent_at = sent_at - interval '61 seconds'")
    assert duty(scene)["sent"] == 1

    # When it was done, nothing is sent before its time has come
    perform(scene.services, row.id)
    assert duty(scene)["sent"] == 0
    scene.pass_time(60)
    assert duty(scene)["sent"] == 1


def test_a_remote_batch_whose_worker_died_is_taken_over(scene: RemoteScene) -> None:
    # Given one that a worker holds, and another one does not get
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    with scene.services.ledger.transaction() as connection:
        held = remote.claim(connection, remote_id, "worker@away#1/1", 9.0)
    assert held is not None
    assert isinstance(perform(scene.services, remote_id), Skipped)
    assert duty(scene)["expired"] == 0

    # When its lease is over, then it goes on, and the loss is counted
    scene.sql("UPDATE remote_batches SET lease_until = now() - interval '1 second'")
    assert {"expired": 1, "sent": 1}.items() <= duty(scene).items()
    assert scene.row(remote_id).losses == 1
    with scene.services.ledger.transaction() as connection:
        assert not remote.heartbeat(connection, held, 9.0)
    scene.finish()
    scene.assert_bought_once(TEXTS)
    assert scene.row(remote_id).losses == 0


def test_a_process_that_is_killed_between_the_creation_and_its_commit_pays_nothing_twice(scene: RemoteScene) -> None:
    scene.order(TEXTS)
    (remote_id,) = scene.pack()

    killed_at(scene, remote_id, "create: asked")

    assert scene.row(remote_id).state == "creating"
    scene.bury()
    scene.finish()
    scene.assert_bought_once(TEXTS)


def test_a_worker_that_leaves_hands_it_back_at_once(scene: RemoteScene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.order(TEXTS)
    (remote_id,) = scene.pack()

    def told(boundary: str) -> None:
        if boundary == "upload: told":
            monkeypatch.setattr(leaving, "leaving", lambda: True)

    assert isinstance(perform(scene.services, remote_id, scene.service(told)), Waiting)
    monkeypatch.undo()

    row = scene.row(remote_id)
    assert (row.state, row.owner, row.losses) == ("uploaded", None, 0)
    assert (row.due_seconds or 0.0) <= 0
    scene.finish()
    scene.assert_bought_once(TEXTS)


def test_a_fault_of_our_own_is_told_and_tried_again_later(scene: RemoteScene) -> None:
    scene.order(TEXTS)
    (remote_id,) = scene.pack()

    def broken(boundary: str) -> None:
        raise RuntimeError("a fault of our own")

    perform(scene.services, remote_id, scene.service(broken))

    row = scene.row(remote_id)
    assert "a fault of our own" in (row.error or "")
    assert 50 < (row.due_seconds or 0.0) <= 60
    scene.finish()
    scene.assert_bought_once(TEXTS)


def test_batches_that_were_not_seen_waiting_are_woken_by_reconcile_alone(scene: RemoteScene) -> None:
    # Given a batch that waits for what nobody brings any more
    batch = scene.order(TEXTS)
    scene.sql("DELETE FROM purchases")

    # When the duty of the Batch API runs, then it is none of its business
    assert "woken" not in duty(scene)
    assert scene.states(batch) == ["waiting"]

    # When reconcile runs, which looks after everything that was left behind, then it goes on
    assert duty(scene, RECONCILE)["woken"] == 1
    assert scene.states(batch) == ["ready"]


# -- who sees it -------------------------------------------------------------------------------------------------------


def test_the_command_lists_shows_and_cancels(
    scene: RemoteScene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(scene.settings, monkeypatch)

    def said(*arguments: str, status: int = 0) -> str:
        assert main.run(["batches", *arguments]) == status
        return capsys.readouterr().out

    def told(*arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(said(*arguments, "--json"))
        return found

    # Given a batch at the server, and one that is done
    assert told() == {"batches": []}
    scene.order(TEXTS[:2])
    scene.finish()
    scene.server.control.timing(in_progress=None)
    scene.order(TEXTS[2:])
    (remote_id,) = scene.pack()
    scene.until(remote_id, "submitted")
    scene.visit(remote_id)

    # When they are listed, then each says how far it is, what it cost and what it waits for
    found = told()["batches"]
    assert [one["state"] for one in found] == ["submitted", "closed"]
    assert [one["inputs"] for one in found] == [4, 2]
    assert [one["done"] for one in found] == [0, 2]
    assert found[0]["waiting"]["reason"].startswith("the provider (")
    assert found[1]["waiting"] is None
    assert found[1]["cost"] > 0
    assert len(found[0]["jobs"]) == 1
    assert [line.split("\t")[1] for line in said().splitlines()] == ["submitted, in_progress", "closed, completed"]
    assert [one["batch_id"] for one in told("--closed", "0")["batches"]] == [remote_id]

    # When one is shown, then all of it
    shown = said(str(remote_id))
    assert f"job        {found[0]['jobs'][0]}" in shown
    assert "waits for  the provider" in shown
    assert told(str(remote_id))["remote_id"] == scene.row(remote_id).remote_id

    # When it is cancelled, then it says so, once
    assert "is being cancelled" in said("--cancel", str(remote_id), "--reason", "too dear")
    assert "already" in said("--cancel", str(remote_id))
    assert told(str(remote_id))["cancel_reason"] == "too dear"
    scene.server.control.timing()
    scene.finish()
    scene.assert_bought_once(TEXTS)

    # And what is not there is named
    assert said("999", status=2) == ""
    assert said("1", "--cancel", "1", status=2) == ""


def test_an_application_sees_the_same(scene: RemoteScene) -> None:
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    client = Client(services=scene.services)

    # Given a batch for which a worker is to do something now
    (found,) = client.batches()
    told = found.to_json()
    assert told == {**client.batch(remote_id).to_json(), "age_seconds": found.age_seconds}
    assert (told["batch_id"], told["state"], told["inputs"]) == (remote_id, "planned", 6)
    assert told["waiting"] == {"reason": "a worker", "until": None}
    assert client.cancel_batch(remote_id)
    assert not client.cancel_batch(remote_id)
    with pytest.raises(UnknownBatch, match="no batch 17 of the Batch API"):
        client.cancel_batch(17)


def signed(body: bytes, *, secret: str = SECRET, at: float | None = None) -> dict[str, str]:
    """The headers of a webhook as OpenAI sends it."""
    stamp = str(int(at if at is not None else time.time()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.new(key, f"evt_1.{stamp}.".encode() + body, hashlib.sha256).digest()).decode()
    return {"webhook-id": "evt_1", "webhook-timestamp": stamp, "webhook-signature": f"v1,{signature}"}


def test_a_webhook_is_a_hint_that_makes_its_batch_due_and_a_forged_one_is_refused(scene: RemoteScene) -> None:
    # Given a batch that is looked at in a while, and an application that hands on what OpenAI posts
    scene.server.control.timing(in_progress=None)
    scene.with_batch(poll_seconds=200.0)
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    scene.until(remote_id, "submitted")
    row = scene.row(remote_id)
    assert (row.due_seconds or 0.0) > 5
    event = {"id": "evt_1", "object": "event", "created_at": 1, "type": "batch.completed"}
    body = json.dumps({**event, "data": {"id": row.remote_id}}).encode()
    with pytest.raises(InvalidSettings, match="WEBHOOK_SECRET"):
        Client(services=scene.services).openai_webhook(signed(body), body)
    scene.with_batch(webhook_secret=SecretStr(SECRET))
    client = Client(services=scene.services)

    # When it is none of OpenAI's, then nothing changes
    for headers in (signed(body, secret="whsec_" + "A" * 32), signed(body, at=time.time() - 3600), {}):
        with pytest.raises(WebhookRejected):
            client.openai_webhook(headers, body)
    assert (scene.row(remote_id).due_seconds or 0.0) > 5

    # When it is, then its batch is due now
    assert client.openai_webhook(signed(body), body)
    assert (scene.row(remote_id).due_seconds or 0.0) <= 0
    other = json.dumps({**event, "data": {"id": "batch_of_somebody_else"}}).encode()
    assert not client.openai_webhook(signed(other), other)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_harvesting_takes_little_memory_however_large_the_output_is(
    settings: Settings, openai_server: OpenAIServer, redis_server: RedisServer
) -> None:
    # Given a batch of full-size vectors that has ended
    openai_server.control.set(pool=8)
    scene = RemoteScene(batch_settings(settings, openai_server, harvest_lines=100), openai_server, dimensions=1536)
    texts = [f"text number {number}" for number in range(1500)]
    scene.order(texts)
    (remote_id,) = scene.pack()
    scene.visit(remote_id, CrashAt("look: told"))
    scene.visit(remote_id, CrashAt("look: told"))
    scene.bury()
    assert scene.row(remote_id).state == "ended"

    # When a process of its own harvests it
    told = harvest_alone(scene, remote_id)

    # Then it took a part of the output's size: what is stored at a time, and no more
    assert scene.row(remote_id).done == 1500
    assert sum(scene.row(remote_id).harvested.values()) > 30e6
    assert told["peak"] - told["before"] < 15e6, told
    scene.close()


# -- the whole path ----------------------------------------------------------------------------------------------------


def test_documents_are_ordered_harvested_indexed_and_found(settings: Settings, openai_server: OpenAIServer) -> None:
    # Given documents for the Batch API
    made = batch_settings(settings, openai_server)
    workshop = Workshop(made.model_copy(update={"chunking": made.chunking.model_copy(update={"max_tokens": 16})}))
    names = [["one", "two", "three"], ["three", "four"]]
    documents = {f"doc/{number}": paragraphs(*found) for number, found in enumerate(names)}
    job = workshop.put(documents, provider="openai_batch", model="text-embedding-3-small", dimensions=8)

    # When workers have done what they can, then the job waits, and nobody with it
    workshop.work()
    assert workshop.value("SELECT count(*) FROM batches WHERE state = 'waiting'") > 0
    run_duty(workshop.services, POLL)
    (row,) = workshop.client.batches()
    assert row.inputs == 4
    deadline = time.monotonic() + 60
    while workshop.client.batch(row.id).closed_at is None:
        assert time.monotonic() < deadline
        workshop.sql("UPDATE remote_batches SET next_at = now()")
        perform(workshop.services, row.id)
    workshop.work()

    # Then all of it is found, and each text was paid for once
    status = workshop.client.job(job.job_id)
    assert (status.state, status.chunks["embedded"], status.chunks["indexed"]) == ("succeeded", 4, 5)
    assert workshop.texts() == {uri: sorted(text.split("\n\n")) for uri, text in documents.items()}
    assert {entry.times for entry in openai_server.control.billing() if entry.by_batch} == {1}
    assert workshop.client.search("two", collection=COLLECTION).results[0].uri == "doc/0"
    workshop.close()
