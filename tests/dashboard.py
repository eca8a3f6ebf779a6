"""Flower as `millrace flower` starts it, beside real workers, and what it says."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from command_line import eventually

from workers.embedded.ports import LOOPBACK, free_port
from workers.programs import flower_argv

USER, PASSWORD = "person", "a,comma:and%more"
AUTH = f"{USER}:{PASSWORD}"
PATIENCE_SECONDS = 60.0
ANSWER_SECONDS = 30.0


@dataclass(frozen=True)
class Dashboard:
    """A Flower that answers."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def answer(self, path: str, auth: str = AUTH, data: Mapping[str, Any] | None = None) -> tuple[int, str]:
        """Status and body; data: posted, as JSON where it is an apply, else as a form."""
        body = None
        if data is not None:
            body = (json.dumps(data) if "apply" in path or "send-task" in path else urlencode(data)).encode()
        request = urllib.request.Request(f"{self.url}{path}", body)
        if auth:
            request.add_header("Authorization", f"Basic {b64encode(auth.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def json(self, path: str) -> Any:
        status, body = self.answer(path)
        assert status == 200, body
        return json.loads(body)

    def depths(self) -> dict[str, int]:
        """Queue -> messages, as its page of the broker shows them."""
        return {queue["name"]: queue["messages"] for queue in self.json("/api/queues/length")["active_queues"]}

    def tasks(self, **query: str) -> list[dict[str, Any]]:
        return list(self.json(f"/api/tasks?{urlencode(query)}").values())

    def workers(self) -> list[dict[str, Any]]:
        """The rows of its page of workers."""
        rows: list[dict[str, Any]] = self.json("/workers?json=1")["data"]
        return rows

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(timeout=PATIENCE_SECONDS) == 0


@contextmanager
def dashboard(environment: Mapping[str, str], memory: Path, cwd: Path, **settings: str) -> Iterator[Dashboard]:
    """Flower on the servers of this environment, with its memory of tasks in `memory`, started in `cwd`.

    settings: of its section, by name.
    """
    memory.mkdir(exist_ok=True)
    port = free_port()
    own = {f"MILLRACE_FLOWER__{name.upper()}": value for name, value in {"auth": AUTH, **settings}.items()}
    with (memory / "flower.log").open("ab") as log:
        process = subprocess.Popen(
            flower_argv(memory, LOOPBACK, port), env={**environment, **own}, cwd=cwd, stdout=log, stderr=log
        )
    shown = Dashboard(port, process)

    def answers() -> bool:
        assert process.poll() is None, (memory / "flower.log").read_text()
        try:
            return shown.answer("/healthcheck", auth="") == (200, "OK")
        except OSError:
            return False

    try:
        eventually(answers, PATIENCE_SECONDS)
        yield shown
    finally:
        process.kill()
        process.wait()
