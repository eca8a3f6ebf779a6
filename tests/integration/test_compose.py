"""docker-compose.yml: what it says is started here, without Docker, on the embedded servers."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from databases import PostgresServer
from deployment import Deployment

from pipeline import Client
from pipeline.embedding.bundled import model_directory
from pipeline.settings import load_settings
from workers.embedded.ports import free_port

READY_SECONDS = 90.0
WORKERS = ("worker-1", "worker-2")
SECRETS = {
    "redis_password": "redispassword",
    "flower_auth": "person:flower,password",
    "webhooks_secret": "whsec_" + 32 * "A",
    "openai_api_key": "sk-of-nobody",
}


def wait_until(what: str, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"not within {READY_SECONDS:.0f} s: {what}"
        time.sleep(0.3)  # a look may be a whole program


def without_password(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    assert parts.password is not None
    user = f"{parts.username}@" if parts.username else ""
    return urlunsplit(parts._replace(netloc=f"{user}{parts.hostname}:{parts.port}")), parts.password


@pytest.fixture
def deployment(postgres_server: PostgresServer, qdrant_url: str, tmp_path: Path) -> Iterator[Deployment]:
    database = postgres_server.create()  # empty: the schema is migrate's to make
    postgres, postgres_password = without_password(database)
    qdrant, key = without_password(qdrant_url)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name, value in {**SECRETS, "postgres_password": postgres_password, "qdrant_api_key": key}.items():
        (secrets / name).write_text(f"{value}\n")
    model_directory(tmp_path / "models", "float32")
    ports = {5555: free_port(), 6379: free_port()}
    urls = {
        "MILLRACE_POSTGRES__URL": postgres,
        "MILLRACE_REDIS__URL": f"redis://127.0.0.1:{ports[6379]}/0",
        "MILLRACE_QDRANT__URL": qdrant,
        "MILLRACE_FLOWER__URL": f"http://127.0.0.1:{ports[5555]}",
        "MILLRACE_METRICS__PORT": "0",  # one machine for all: not every worker can have the same
    }
    found = Deployment(tmp_path, secrets, tmp_path / "models", urls, ports, {"MILLRACE_CONCURRENCY": "1"})
    yield found
    for _, process in found.running.values():
        process.kill()
        process.wait()
    postgres_server.drop(database)


def flower_answers(port: int, path: str, auth: str | None = None, data: bytes | None = None) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data)
    if auth is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(auth.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def count(database: str, query: str) -> int:
    with psycopg.connect(database) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def client_of(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Client:
    """An application beside the containers, with the same variables."""
    for name, value in deployment.environment("millrace", "application").items():
        if name.startswith("MILLRACE_"):
            monkeypatch.setenv(name, value)
    return Client(load_settings())


def test_the_services_of_compose_start_work_and_stop_in_order(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given Redis as the file starts it, and an empty database that migrate has brought up to date
    deployment.start("redis")
    wait_until("redis is healthy", partial(deployment.is_healthy, "redis"))
    deployment.run("migrate")

    # When every other service of ours runs, with one worker
    for service, container in (("worker", WORKERS[0]), *((name, name) for name in ("express", "beat", "flower"))):
        deployment.start(service, container)
    with client_of(deployment, monkeypatch) as client:
        database = client.settings.postgres.url.get_secret_value()

        # Then they work together: a document is indexed and found, beat's duties are done
        job = client.ingest([("note", "The mill race carries water to the wheel.")], collection="compose")
        status = client.wait(job.job_id, timeout=READY_SECONDS)
        assert status.state == "succeeded", status.errors
        assert [result.uri for result in client.search("water wheel", collection="compose").results] == ["note"]
        done = "SELECT count(*) FROM duties WHERE ran_at IS NOT NULL AND NOT failed"
        wait_until("a duty is done", lambda: count(database, done) > 0)

        # and when workers are scaled to two
        for container in WORKERS[1:]:
            deployment.start("worker", container)
        wait_until("all are there", lambda: len(client.status()["workers"]) == 3)
        queues = sorted(sorted(worker["queues"]) for worker in client.status()["workers"])
        assert queues == [["control", "high"], *[["control", "high", "low", "normal"]] * 2]
        texts = [(f"leaf/{number}", f"Leaf {number} of the book of mills.") for number in range(60)]
        assert (
            client.wait(client.ingest(texts, collection="compose").job_id, timeout=READY_SECONDS).state == "succeeded"
        )

        # Then each is healthy by its own check
        for container in deployment.running:
            wait_until(f"{container} is healthy", partial(deployment.is_healthy, container))

        # and each worker tells Prometheus about itself
        with psycopg.connect(database) as connection:
            told = [urlsplit(url).port for (url,) in connection.execute("SELECT metrics_url FROM workers")]
        assert len(told) == 3
        for port in told:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                assert b"\nmillrace_" in answer.read()

        # and no secret is among what anybody sees of a process, nor was anything written where nothing can be
        shown = deployment.shown()
        for secret in deployment.secrets.iterdir():
            assert secret.read_text().strip() not in shown, secret.name
        assert deployment.written() == set()

        # and Flower shows itself to nobody without the password, and does nothing
        auth, port = SECRETS["flower_auth"], deployment.ports[5555]
        assert flower_answers(port, "/workers") == 401
        assert flower_answers(port, "/workers", "person:flower") == 401, "a comma is part of the password"
        assert flower_answers(port, "/workers", auth) == 200
        assert flower_answers(port, "/api/task/send-task/embed.batch", auth, b'{"args": [1]}') == 403

        # And when they are stopped in the middle of work, each ends by itself within its grace
        client.ingest([(f"late/{number}", f"Late leaf {number}.") for number in range(200)], collection="compose")
        ours = [container for container in deployment.running if container != "redis"]
        assert deployment.stop(*ours) == dict.fromkeys(ours, 0)

        # Then nobody holds work any more, and the index is what the ledger says
        assert count(database, "SELECT count(*) FROM batches WHERE state = 'running'") == 0
        assert count(database, "SELECT count(*) FROM workers") == 0
        audit = json.loads(deployment.run("millrace", "audit", "--collection", "compose", "--json"))
        assert audit["expected"] >= 61
        assert not any(audit[name] for name in ("missing", "orphaned", "duplicate", "stale", "wrong")), audit
    assert deployment.stop() == {"redis": 0}
