"""docker-compose.yml and the Dockerfile: what they say is started here, without Docker, on the embedded servers."""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from services import PostgresServer, RedisServer

from pipeline import Client
from pipeline.settings import load_settings
from workers.embedded.ports import free_port

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = ("postgres", "redis", "qdrant")
STAYING = ("worker", "express", "beat", "flower")
OURS = [name for name, service in SERVICES.items() if "build" in service]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")

PROGRAMS = Path(sys.executable).parent
READY_SECONDS = 60.0
DOT_ENV = {
    "POSTGRES_PASSWORD": "pgpassword",
    "REDIS_PASSWORD": "redispassword",
    "QDRANT_API_KEY": "qdrantkey",
    "FLOWER_AUTH": "person:flowerpassword",
}


def filled_in(value: str, variables: Mapping[str, str]) -> str:
    """The value as Compose reads it: ${NAME:-default}, ${NAME:?message}, and $$ for a dollar."""

    def one(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        given = variables.get(found["name"], "")
        if not given and found["default"] is None:
            raise AssertionError(f"{found[0]} is not in .env")
        return given or found["default"]

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)?\}", one, value)


def environment_of(service: str) -> dict[str, str]:
    return {name: filled_in(value, DOT_ENV) for name, value in SERVICES[service].get("environment", {}).items()}


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def wait_until(what: str, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"not within {READY_SECONDS:.0f} s: {what}"
        time.sleep(0.1)


@dataclass
class Deployment:
    """Our services as processes of this machine, with the files' commands and environment, but for the addresses."""

    directory: Path
    addresses: Mapping[str, str]
    flower_port: int

    def __post_init__(self) -> None:
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, service: str) -> dict[str, str]:
        passed_on = {name: os.environ[name] for name in os.environ if name == "PATH" or name.startswith("COVERAGE_")}
        environment = {**passed_on, **environment_of(service), **self.addresses}
        environment["PATH"] = f"{PROGRAMS}:{environment['PATH']}"
        environment["HOSTNAME"] = socket.gethostname()
        environment["MILLRACE_HOME"] = str(self.directory / service)
        return environment

    def here(self, argument: str) -> str:
        """An argument with the container's places replaced by places of this test."""
        moved = re.sub(r"^/tmp\b", str(self.directory / "tmp"), argument)
        return re.sub(r"\b5555\b", str(self.flower_port), moved)

    def argv(self, service: str) -> list[str]:
        return ["millrace", *(self.here(filled_in(part, DOT_ENV)) for part in SERVICES[service]["command"])]

    def start(self, service: str) -> subprocess.Popen[bytes]:
        home = self.directory / service
        home.mkdir(parents=True)
        with (self.directory / f"{service}.log").open("wb") as log:
            process = subprocess.Popen(
                self.argv(service), env=self.environment(service), cwd=home, stdout=log, stderr=subprocess.STDOUT
            )
        self.running[service] = process
        return process

    def is_healthy(self, service: str) -> bool:
        kind, *words = SERVICES[service]["healthcheck"]["test"]
        words = [self.here(filled_in(word, {})) for word in words]
        argv = ["/bin/sh", "-c", *words] if kind == "CMD-SHELL" else words
        checked = subprocess.run(argv, env=self.environment(service), capture_output=True, check=False)
        return checked.returncode == 0

    def log(self, service: str) -> str:
        return (self.directory / f"{service}.log").read_text("utf-8", "replace")

    def stop_all(self) -> dict[str, int]:
        """Sends SIGTERM to the main processes alone; returns their exit statuses, -9 where the grace ran out."""
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        statuses = {}
        for service, process in self.running.items():
            try:
                statuses[service] = process.wait(seconds(SERVICES[service].get("stop_grace_period", "10s")))
            except subprocess.TimeoutExpired:
                process.kill()
                statuses[service] = process.wait()
        self.running.clear()
        return statuses


@pytest.fixture
def deployment(
    postgres_server: PostgresServer, redis_server: RedisServer, qdrant_url: str, tmp_path: Path
) -> Iterator[Deployment]:
    redis_server.flush()
    database = postgres_server.create()  # empty: the schema is migrate's to make
    addresses = {
        "MILLRACE_POSTGRES__URL": database,
        "MILLRACE_REDIS__URL": redis_server.url,
        "MILLRACE_QDRANT__URL": qdrant_url,
    }
    (tmp_path / "tmp").mkdir()
    found = Deployment(tmp_path, addresses, free_port())
    yield found
    for process in found.running.values():
        process.kill()
        process.wait()
    postgres_server.drop(database)


def flower_answers(port: int, path: str, auth: str | None = None) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if auth is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(auth.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_the_services_of_compose_start_work_and_stop_in_order(deployment: Deployment) -> None:
    # Given an empty database that migrate has brought up to date
    assert deployment.start("migrate").wait(READY_SECONDS) == 0, deployment.log("migrate")
    del deployment.running["migrate"]

    # When every other service of ours runs
    for service in STAYING:
        deployment.start(service)

    # Then they work together: workers take the queues, a document is indexed and found, beat's duties are done
    database = deployment.addresses["MILLRACE_POSTGRES__URL"]
    urls = {name: {"url": deployment.addresses[f"MILLRACE_{name.upper()}__URL"]} for name in SERVERS}
    with Client(load_settings(home=deployment.directory / "client", **urls)) as client:
        job = client.ingest([("note", "The mill race carries water to the wheel.")], collection="compose")
        status = client.wait(job.job_id, timeout=READY_SECONDS)
        assert status.state == "succeeded", status.errors
        assert [result.uri for result in client.search("water wheel", collection="compose").results] == ["note"]
        wait_until("both workers are there", lambda: len(client.status()["workers"]) == 2)
        queues = sorted(sorted(worker["queues"]) for worker in client.status()["workers"])
        assert queues == [["control", "high"], ["control", "high", "low", "normal"]]
    wait_until("a duty is done", lambda: duties_done(database) > 0)

    # and each is healthy by its own check
    for service in STAYING:
        wait_until(f"{service} is healthy", partial(deployment.is_healthy, service))
        assert deployment.running[service].poll() is None, deployment.log(service)

    # and Flower shows itself to nobody without the password
    assert flower_answers(deployment.flower_port, "/workers") == 401
    assert flower_answers(deployment.flower_port, "/workers", DOT_ENV["FLOWER_AUTH"]) == 200

    # And each stops by itself on SIGTERM, within its grace
    assert deployment.stop_all() == dict.fromkeys(STAYING, 0)


def duties_done(database: str) -> int:
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT count(*) FROM duties WHERE ran_at IS NOT NULL AND NOT failed").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("service", OURS)
def test_the_environment_of_a_service_is_one_that_the_settings_take(
    service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment_of(service).items():
        monkeypatch.setenv(name, value)
    settings = load_settings(home=tmp_path)
    assert settings.postgres.url.get_secret_value() == "postgresql://millrace:pgpassword@postgres:5432/millrace"
    assert settings.redis.url.get_secret_value() == "redis://:redispassword@redis:6379/0"
    assert settings.qdrant.url.get_secret_value() == "grpc://:qdrantkey@qdrant:6334"


def test_our_services_wait_for_the_schema_and_the_servers() -> None:
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for service in set(OURS) - {"migrate"}:
        assert SERVICES[service]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "redis": {"condition": "service_healthy"},
            "qdrant": {"condition": "service_healthy"},
        }


def test_images_are_pinned_and_every_service_that_stays_has_a_health_check() -> None:
    for name, service in SERVICES.items():
        tag = service["image"].partition(":")[2]
        assert re.search(r"\d+\.\d+", tag), f"{name}: {service['image']}"
        stays = service.get("restart") != "no"
        assert ("healthcheck" in service) == stays, name
    assert all(re.match(r"python:3\.\d+-slim", base) for base in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))


def test_no_password_is_in_the_file_and_every_variable_is_in_the_example() -> None:
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    example = (ROOT / ".env.example").read_text("utf-8")
    used = set(re.findall(r"\$\{(\w+)", text))
    assert used == set(re.findall(r"^(\w+)=", example, re.MULTILINE))
    assert set(DOT_ENV) == set(re.findall(r"\$\{(\w+):\?", text)), "what has no default must be asked for"
    for name in DOT_ENV:
        assert re.search(rf"^{name}=$", example, re.MULTILINE), f"{name} must be left to be filled in"


def test_the_image_runs_as_nobody_special_and_installs_from_the_lock() -> None:
    final = DOCKERFILE.split("FROM ")[-1]
    assert re.search(r"^USER millrace$", final, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["millrace"\]$', final, re.MULTILINE)
    assert "--no-deps --require-hashes -r requirements.lock" in DOCKERFILE
    copied = {word for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()}
    kept = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE))
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
