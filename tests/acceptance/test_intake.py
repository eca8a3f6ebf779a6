"""How an application meets a stack that has enough to do, and how it is told of the end, by the real program."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import CommandLine, eventually
from webhook_endpoint import Endpoint, status

from pipeline import Client
from pipeline.settings import load_settings
from pipeline.webhooks import verify

PATIENCE_SECONDS = 60.0
# Short waits: an endpoint that fails is told again within the test.
ENVIRONMENT = {"MILLRACE_WEBHOOKS__PRIVATE": "true", "MILLRACE_WEBHOOKS__BACKOFF_SECONDS": "0.5"}
FULL = {"MILLRACE_INGEST__MAX_STAGED_BYTES": "20"}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    made = CommandLine(tmp_path_factory.mktemp("intake") / "home", ENVIRONMENT)
    made.run("up", "--detach", "--workers", "1", "--concurrency", "1")
    yield made
    made.run("down")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


def write(tmp_path: Path, name: str, count: int = 1) -> str:
    directory = tmp_path / name
    directory.mkdir()
    for number in range(count):
        (directory / f"{number}.txt").write_text(f"{name} {number} is what this is about")
    return str(directory)


def test_a_person_sees_why_an_ingest_waits_and_another_is_refused_by_name(line: CommandLine, tmp_path: Path) -> None:
    # Given a stack in which everything is paused, and more on its way than a client allows
    with Client(load_settings(home=line.home)) as client:
        line.run("pause", "--all")
        first = line.json("ingest", write(tmp_path, "first"), "--collection", "intake")
        full = CommandLine(line.home, {**line.env, **FULL})

        # Then one that does not want to wait ends with the name of the limit
        refused = full.run(
            "ingest", write(tmp_path, "second"), "--collection", "intake", "--when-full", "refuse", status=1
        )
        assert "ingest.max_staged_bytes" in refused.stderr
        assert "Nothing was enqueued" in refused.stderr

        # And one that waits says for what
        said = tmp_path / "said"
        with said.open("wb") as output:
            waiting = subprocess.Popen(
                full.argv("ingest", write(tmp_path, "third"), "--collection", "intake", "--wait"),
                env=full.environment(), cwd=tmp_path, stdout=output, stderr=output,
            )  # fmt: skip
        eventually(lambda: b"ingest.max_staged_bytes" in said.read_bytes(), PATIENCE_SECONDS)
        assert "waiting: the backlog is full" in said.read_text()
        assert "everything is paused: `millrace resume --all` lets it go on" in said.read_text()
        assert waiting.poll() is None

        # And it goes on when the others do
        line.run("resume", "--all")
        assert waiting.wait(PATIENCE_SECONDS) == 0, said.read_text()
        assert client.wait(first["job_id"], PATIENCE_SECONDS).state == "succeeded"
    names = {row["uri"].split("/")[-2] for row in line.json("documents", "--collection", "intake")["documents"]}
    assert names == {"first", "third"}


def test_an_application_is_told_by_the_stack_and_verifies_it_with_what_env_prints(
    line: CommandLine, tmp_path: Path, endpoint: Endpoint
) -> None:
    # Given the secret that the stack has made
    secret = line.addresses()["MILLRACE_WEBHOOKS__SECRET"]
    endpoint.answers = [status(500), status(200)]

    # When a job with a webhook ends
    job = line.json("ingest", write(tmp_path, "told"), "--collection", "told", "--webhook", endpoint.url, "--wait")

    # Then the application is told until it has taken it, and can tell that it was us
    eventually(lambda: len(endpoint.got) == 2, PATIENCE_SECONDS)
    first, second = endpoint.got
    assert first.id == second.id
    told = verify(second.headers, second.body, secret)
    assert (told["type"], told["job_id"], told["state"]) == ("job.finished", job["job_id"], "succeeded")


def test_a_webhook_on_a_private_address_is_refused_where_that_is_not_allowed(
    line: CommandLine, tmp_path: Path, endpoint: Endpoint
) -> None:
    public = CommandLine(line.home)
    refused = public.run("ingest", write(tmp_path, "x"), "--webhook", endpoint.url.replace("http", "https"), status=2)
    assert "MILLRACE_WEBHOOKS__PRIVATE" in refused.stderr
