"""Completion webhooks: told once, signed, again and again until taken, whoever is killed in between."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from command_line import eventually
from webhook_endpoint import Answer, Endpoint, status
from workshop import COLLECTION, Workshop

from pipeline import Settings
from pipeline.errors import BacklogFull, IdempotencyConflict, InvalidRequest
from pipeline.ledger import webhooks as owed
from pipeline.settings import WebhookSettings, load_settings
from pipeline.webhooks import Deliverer, verify
from tasks.duties import DUTIES, run_duty

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()
DUTY = next(duty for duty in DUTIES if duty.name == "webhooks")
PATIENCE_SECONDS = 60.0


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


def with_webhooks(settings: Settings, **given: Any) -> Settings:
    made = load_settings(
        webhooks={"secret": SECRET, "private": True, "timeout": 30.0, "backoff_seconds": 0.01, **given}
    )
    return settings.model_copy(update={"webhooks": made.webhooks})


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(with_webhooks(settings))
    yield made
    made.close()


def run(workshop: Workshop) -> Mapping[str, int]:
    """The duty, when it is due again, and until nothing is under way."""
    workshop.sql("UPDATE duties SET due_at = now() WHERE name = 'webhooks'")
    counts = run_duty(workshop.services, DUTY)
    assert counts is not None
    workshop.services.deliverer.wait(PATIENCE_SECONDS)
    return counts


def run_until(workshop: Workshop, wanted: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not wanted():
        assert time.monotonic() < deadline
        run(workshop)


def delivery(workshop: Workshop) -> dict[str, Any]:
    (row,) = workshop.sql("SELECT state, attempts, status, error, lease_until FROM webhook_deliveries")
    return row


def test_an_application_is_told_once_what_became_of_its_job(workshop: Workshop, endpoint: Endpoint) -> None:
    # Given a job with a webhook that is not done yet
    job = workshop.put({"a": "words", "b": "more words"}, webhook=endpoint.url)
    run(workshop)
    assert endpoint.got == []

    # When it is done
    workshop.work()
    run(workshop)
    run(workshop)

    # Then the application has been told once, by what `millrace job --json` shows
    (message,) = endpoint.got
    told = verify(message.headers, message.body, SECRET)
    assert told == {"type": "job.finished", **workshop.client.job(job.job_id).to_json()}
    assert (told["state"], told["documents"]["indexed"]) == ("succeeded", 2)
    assert message.path == "/done?who=me"
    assert message.headers["content-type"] == "application/json"
    assert delivery(workshop) == {
        "state": "delivered",
        "attempts": 1,
        "status": 200,
        "error": None,
        "lease_until": None,
    }


def test_the_signature_is_that_of_standard_webhooks(workshop: Workshop, endpoint: Endpoint) -> None:
    workshop.index({"a": "words"}, webhook=endpoint.url)
    run(workshop)
    (message,) = endpoint.got

    # As https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md says it
    signed = b".".join([message.id.encode(), message.headers["webhook-timestamp"].encode(), message.body])
    expected = base64.b64encode(hmac.new(bytes(range(32)), signed, hashlib.sha256).digest()).decode()
    assert message.headers["webhook-signature"] == f"v1,{expected}"
    assert abs(time.time() - int(message.headers["webhook-timestamp"])) < 30


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (status(500, b"out of order"), "answered 500 out of order"),
        (status(302, location="/elsewhere"), "answered 302"),
        (lambda _: time.sleep(1.5), "ReadTimeout|TimeoutException|timed out"),
    ],
    ids=["error", "redirect", "silence"],
)
def test_what_is_not_taken_is_told_again_under_the_same_id(
    workshop: Workshop, endpoint: Endpoint, first: Answer, told: str
) -> None:
    endpoint.answers = [first, status(503), status(204)]
    workshop.index({"a": "words"}, webhook=endpoint.url)

    hasty = Workshop(with_webhooks(workshop.settings, timeout=1.0))
    run(hasty)
    hasty.close()
    assert delivery(workshop)["state"] == "ready"
    assert re.search(told, delivery(workshop)["error"])
    run_until(workshop, lambda: delivery(workshop)["state"] == "delivered")

    assert [message.path for message in endpoint.got] == ["/done?who=me"] * 3
    assert len({message.id for message in endpoint.got}) == 1
    assert len({message.body for message in endpoint.got}) == 1
    assert (delivery(workshop)["attempts"], delivery(workshop)["status"]) == (3, 204)
    for message in endpoint.got:
        verify(message.headers, message.body, SECRET)


def test_the_waits_grow_to_about_a_day_in_all(workshop: Workshop, endpoint: Endpoint) -> None:
    settings = WebhookSettings()
    workshop.index({"a": "words"}, webhook=endpoint.url)
    least: list[float] = []
    most: list[float] = []
    clock = "SELECT extract(epoch FROM clock_timestamp())::float8 AS now"
    for _ in range(settings.max_attempts):
        workshop.sql("UPDATE webhook_deliveries SET next_attempt_at = now()")
        with workshop.services.ledger.transaction() as connection:
            (due,) = owed.claim(connection, 10, 30.0, 12)
        before = workshop.value(clock)
        with workshop.services.ledger.transaction() as connection:
            assert owed.fail(connection, due, 500, "no", settings, gone=False)
        after = workshop.value(clock)
        at = workshop.value("SELECT extract(epoch FROM next_attempt_at)::float8 AS at FROM webhook_deliveries")
        least.append(at - after)
        most.append(at - before)
    assert most[0] > 3.5
    assert least[0] < 6.5
    assert sum(most[:-1]) > 0.6 * 86_400
    assert sum(least[:-1]) < 1.4 * 86_400
    assert delivery(workshop)["state"] == "dead"


def test_an_endpoint_that_never_takes_it_is_given_up(settings: Settings, endpoint: Endpoint) -> None:
    workshop = Workshop(with_webhooks(settings, max_attempts=3))
    endpoint.answers = [status(500)]
    workshop.index({"a": "words"}, webhook=endpoint.url)

    run_until(workshop, lambda: delivery(workshop)["state"] == "dead")
    run(workshop)

    assert len(endpoint.got) == 3
    assert delivery(workshop)["error"] == "answered 500"
    assert run(workshop)["dead"] == 1
    workshop.close()


def test_a_delivery_whose_workers_are_lost_each_time_is_given_up(workshop: Workshop, endpoint: Endpoint) -> None:
    workshop.index({"a": "words"}, webhook=endpoint.url)
    for _ in range(3):
        with workshop.services.ledger.transaction() as connection:
            owed.claim(connection, 10, 0.0, 3)

    with workshop.services.ledger.transaction() as connection:
        assert owed.claim(connection, 10, 0.0, 3) == []

    assert (delivery(workshop)["state"], delivery(workshop)["attempts"]) == ("dead", 3)
    assert delivery(workshop)["error"] == "its worker was lost at the last attempt"


def test_an_endpoint_that_is_gone_is_told_nothing_more(workshop: Workshop, endpoint: Endpoint) -> None:
    endpoint.answers = [status(410)]
    workshop.index({"a": "words"}, webhook=endpoint.url)
    run(workshop)
    run(workshop)
    assert len(endpoint.got) == 1
    assert (delivery(workshop)["state"], delivery(workshop)["status"]) == ("dead", 410)


def test_a_delivery_whose_worker_is_killed_is_made_by_another_and_the_first_ones_answer_is_void(
    workshop: Workshop, endpoint: Endpoint
) -> None:
    # Given a worker that was killed between its claim and the answer
    workshop.index({"a": "words"}, webhook=endpoint.url)
    with workshop.services.ledger.transaction() as connection:
        (lost,) = owed.claim(connection, 10, 600.0, workshop.settings.webhooks.max_attempts)
    run(workshop)
    assert endpoint.got == []

    # When its lease has run out
    workshop.sql("UPDATE webhook_deliveries SET lease_until = clock_timestamp() - interval '1 ms'")
    run_until(workshop, lambda: endpoint.got)

    # Then another one has delivered it, under the same id, and what the first might still say changes nothing
    assert (delivery(workshop)["state"], delivery(workshop)["attempts"]) == ("delivered", 2)
    assert endpoint.got[0].id == lost.message_id
    with workshop.services.ledger.transaction() as connection:
        assert not owed.fail(connection, lost, None, "late", workshop.settings.webhooks, gone=True)
        assert not owed.complete(connection, lost, 200)
    assert delivery(workshop)["state"] == "delivered"


def test_two_that_deliver_at_once_deliver_once(workshop: Workshop, endpoint: Endpoint) -> None:
    jobs = [workshop.put({f"a{number}": "words"}, webhook=endpoint.url) for number in range(6)]
    workshop.work()
    others = [Deliverer(workshop.services.ledger, workshop.settings.webhooks) for _ in range(3)]
    start = threading.Barrier(3)

    def deliver(each: Deliverer) -> None:
        start.wait()
        each.run(100)
        each.run(100)
        each.wait(PATIENCE_SECONDS)

    threads = [threading.Thread(target=deliver, args=(each,)) for each in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(json.loads(message.body)["job_id"] for message in endpoint.got) == sorted(
        str(job.job_id) for job in jobs
    )


def test_a_cancelled_job_tells_and_so_does_one_with_nothing_to_do(workshop: Workshop, endpoint: Endpoint) -> None:
    job = workshop.put({"a": "words"}, webhook=endpoint.url)
    workshop.client.cancel(job.job_id)
    workshop.put({}, webhook=endpoint.url)
    run(workshop)
    run(workshop)

    assert sorted(json.loads(message.body)["state"] for message in endpoint.got) == ["cancelled", "succeeded"]


def test_deletions_and_syncs_tell_too(workshop: Workshop, endpoint: Endpoint, tmp_path: Any) -> None:
    workshop.index({"a": "words"})
    (tmp_path / "b.txt").write_text("words")
    workshop.remove(["a"], webhook=endpoint.url)
    workshop.client.sync(tmp_path, collection=COLLECTION, webhook=endpoint.url)
    workshop.work()
    run(workshop)
    assert sorted(json.loads(message.body)["kind"] for message in endpoint.got) == ["delete", "sync"]


def test_a_job_that_goes_on_after_it_was_told_as_done_is_told_again_as_another_message(
    settings: Settings, endpoint: Endpoint
) -> None:
    small = with_webhooks(settings)
    small = small.model_copy(
        update={"ingest": small.ingest.model_copy(update={"group_documents": 1, "max_ready_batches": 1})}
    )
    workshop = Workshop(small)
    wanted = {"a": "words", "b": "more words"}
    with pytest.raises(BacklogFull):
        workshop.put(wanted, webhook=endpoint.url, when_full="refuse", idempotency_key="k")
    workshop.work()
    run(workshop)

    # "wait": how full it was is remembered for a moment
    workshop.put(wanted, webhook=endpoint.url, when_full="wait", idempotency_key="k")
    workshop.work()
    run(workshop)

    assert [json.loads(message.body)["state"] for message in endpoint.got] == ["partial", "succeeded"]
    assert len({message.id for message in endpoint.got}) == 2
    workshop.close()


def test_a_slow_endpoint_holds_up_neither_the_duty_nor_the_others(settings: Settings, endpoint: Endpoint) -> None:
    # Given six deliveries to a server that does not answer for long, and one to a quick one
    workshop = Workshop(with_webhooks(settings, timeout=150.0))
    release = threading.Event()
    slow = Endpoint()

    def stand_still(handler: http.server.BaseHTTPRequestHandler) -> None:
        release.wait(2 * PATIENCE_SECONDS)
        status(200)(handler)

    slow.answers = [stand_still]
    for number in range(6):
        workshop.put({f"s{number}": "words"}, webhook=slow.url)
    workshop.index({"quick": "words"}, webhook=endpoint.url)

    # When the duty runs again and again
    longest = 0.0
    while not endpoint.got:
        workshop.sql("UPDATE duties SET due_at = now() WHERE name = 'webhooks'")
        started = time.monotonic()
        counts = run_duty(workshop.services, DUTY)
        longest = max(longest, time.monotonic() - started)

    # Then the quick one is told while the others are waited for, and no run has waited for them
    assert counts is not None
    assert counts["under_way"] >= 6
    eventually(lambda: len(slow.got) == 6)
    assert longest < PATIENCE_SECONDS / 2
    release.set()
    workshop.services.deliverer.wait(PATIENCE_SECONDS)
    assert workshop.value("SELECT count(*) AS n FROM webhook_deliveries WHERE state = 'delivered'") == 7
    slow.close()
    workshop.close()


def test_without_a_secret_a_webhook_is_refused_and_the_remedy_said(settings: Settings) -> None:
    workshop = Workshop(with_webhooks(settings, secret=""))
    with pytest.raises(InvalidRequest, match=r"MILLRACE_WEBHOOKS__SECRET.*openssl rand"):
        workshop.put({"a": "words"}, webhook="https://example.org/done")
    assert workshop.value("SELECT count(*) AS n FROM jobs") == 0
    workshop.close()


def test_a_name_that_leads_to_a_private_address_is_not_connected_to(
    settings: Settings, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a webhook whose name passes, and turns out to be ours
    url = endpoint.url.replace("http://127.0.0.1", "https://trick.example")
    resolve = socket.getaddrinfo

    def tricked(host: Any, *args: Any, **kwargs: Any) -> Any:
        return resolve("127.0.0.1" if host == "trick.example" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", tricked)
    workshop = Workshop(with_webhooks(settings, private=False))
    workshop.index({"a": "words"}, webhook=url)

    run(workshop)

    assert endpoint.got == []
    assert "is not a public one; MILLRACE_WEBHOOKS__PRIVATE=true allows" in delivery(workshop)["error"]
    assert delivery(workshop)["state"] == "ready"
    workshop.close()


def test_another_webhook_under_the_same_key_is_another_request(workshop: Workshop, endpoint: Endpoint) -> None:
    workshop.put({"a": "words"}, webhook=endpoint.url, idempotency_key="k")
    workshop.put({"a": "words"}, webhook=endpoint.url, idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        workshop.put({"a": "words"}, webhook=f"{endpoint.url}&other", idempotency_key="k")
