"""The server as a process that tests start, kill and start again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from openai_server.control import Control

START_SECONDS = 60.0
KEY = "sk-test-4f3a9c1e7b5d2086aa11c0ffee"


class OpenAIServer:
    """One directory and the process that serves it, on the same port for ever.

    served: further names of models -> the local model that each one is (`constant`: the tests' ConstantEmbedder).
    models: where local models are built.
    """

    def __init__(self, directory: Path, *, served: Mapping[str, str] | None = None, models: Path | None = None) -> None:
        self.directory = directory
        self.key = KEY
        self.port = 0
        self.control = Control(lambda: self.address)
        self._served = dict(served or {})
        self._models = models or directory / "models"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The base_url of a client."""
        return f"{self.address}/v1"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self) -> OpenAIServer:
        """Starts the process, and waits until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        port_file, log = self.directory / "port", self.directory / "log"
        port_file.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "openai_server", "--directory", str(self.directory), "--port", str(self.port)]
        argv += ["--key", self.key, "--models", str(self._models), "--served", json.dumps(self._served)]
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        with log.open("ab") as stream:
            # It ends when its standard input does: with this process, however that ends.
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=stream, stderr=stream, env={**os.environ, "PYTHONPATH": path}
            )
        deadline = time.monotonic() + START_SECONDS
        while not port_file.exists():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"no answer after {START_SECONDS:g} s: {log.read_text()}"
            time.sleep(0.01)
        self.port = int(port_file.read_text())
        return self

    def kill(self) -> None:
        """SIGKILL: connections are cut off wherever they are."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, which is quicker than it is polite."""
        if self._process is not None and self._process.poll() is None:
            self._end(signal.SIGTERM)

    def restart(self) -> OpenAIServer:
        """On the same port, with the same data."""
        if self.process.poll() is None:
            self.kill()
        return self.start()

    def _end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(START_SECONDS)
        if self.process.stdin:
            self.process.stdin.close()


@contextmanager
def running(
    directory: Path, *, served: Mapping[str, str] | None = None, models: Path | None = None
) -> Iterator[OpenAIServer]:
    server = OpenAIServer(directory, served=served, models=models)
    try:
        yield server.start()
    finally:
        server.stop()
