"""What the embedded stack is made of: its parts, their order and their addresses."""

from __future__ import annotations

import http.client
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL
from urllib.parse import unquote, urlsplit

from pipeline.settings import Settings, mask_url
from workers.embedded.home import WEBHOOKS, Home, Identity
from workers.embedded.part import Part
from workers.embedded.ports import LOOPBACK
from workers.embedded.postgres import EmbeddedPostgres
from workers.embedded.redis import EmbeddedRedis
from workers.embedded.vectors import EmbeddedVectors
from workers.programs import (
    EXPRESS_QUEUES,
    GENERAL_QUEUES,
    READY_VARIABLE,
    STACK_VARIABLE,
    beat_argv,
    flower_argv,
    migrate_argv,
    program_environment,
    worker_argv,
)

EXPRESS = "express"
SERVERS = ("postgres", "redis", "qdrant")
FLOWER_USER = "millrace"
ANSWER_SECONDS = 1.0
# A worker that is told to stop hands its work back at the next step; what hangs is killed then, and done elsewhere.
WORKER_GRACE = 45.0


class Stack:
    """The parts of one home. `settings` are those of the person who starts it; the addresses are replaced."""

    def __init__(
        self,
        home: Home,
        identity: Identity,
        settings: Settings,
        workers: int,
        concurrency: int,
        *,
        drillable: bool = False,
    ) -> None:
        self.home = home
        self.identity = identity
        self.settings = settings
        self.workers = workers
        self.concurrency = concurrency
        self.drillable = drillable  # whether `millrace drill` may kill its parts

    @property
    def postgres(self) -> EmbeddedPostgres:
        port, password = self._place("postgres")
        return EmbeddedPostgres(self.home.path / "postgres", port, password, self.identity.name)

    @property
    def redis(self) -> EmbeddedRedis:
        return EmbeddedRedis(self.home.path / "redis", *self._place("redis"))

    @property
    def vectors(self) -> EmbeddedVectors:
        logs = self.settings.logs
        return EmbeddedVectors(self.home.path / "qdrant", *self._place("qdrant"), logs.format, logs.level)

    @property
    def flower_url(self) -> str:
        return f"http://{LOOPBACK}:{self.identity.ports['flower']}"

    @property
    def flower_auth(self) -> str:
        return f"{FLOWER_USER}:{self.identity.passwords['flower']}"

    @property
    def webhook_secret(self) -> str:
        """The person's own, where there is one: who verifies may know another stack's webhooks too."""
        return self.settings.webhooks.secret.get_secret_value() or self.identity.passwords[WEBHOOKS]

    def addresses(self) -> dict[str, dict[str, str]]:
        """The settings, with their passwords, by which everything else finds the stack."""
        return {
            "postgres": {"url": self.postgres.url},
            "redis": {"url": self.redis.url},
            "qdrant": {"url": self.vectors.url},
            "flower": {"auth": self.flower_auth},
            "webhooks": {"secret": self.webhook_secret},
        }

    def urls(self) -> dict[str, str]:
        """The address of every part that has one, passwords masked."""
        return {
            "postgres": mask_url(self.postgres.url),
            "redis": mask_url(self.redis.url),
            "qdrant": mask_url(self.vectors.url),
            "flower": self.flower_url,
        }

    def worker_names(self) -> list[str]:
        return [EXPRESS, *(f"general{number}" for number in range(1, self.workers + 1))]

    def parts(self) -> dict[str, Part]:
        """Every part by its name, in the order of starting; what a part waits for is in its `after`."""
        init = self.postgres.init_part()
        parts = [
            self.redis.part(),
            self.vectors.part(),
            *([init] if init else []),
            replace(self.postgres.part(), after=("initdb",) if init else ()),
            self._migrate(),
            *(self._worker(name) for name in self.worker_names()),
            self._beat(),
            self._flower(),
        ]
        return {part.name: self._marked(part) for part in parts}

    def _place(self, server: str) -> tuple[int, str]:
        return self.identity.ports[server], self.identity.passwords[server]

    def _marked(self, part: Part) -> Part:
        return replace(part, env={**part.env, STACK_VARIABLE: self.identity.name})

    def _environment(self) -> dict[str, str]:
        """The environment of our own programs: the stack's addresses, whatever the person's environment holds."""
        return {**program_environment(self.settings), **address_variables(self.addresses())}

    def _migrate(self) -> Part:
        return Part(
            name="migrate",
            argv=tuple(migrate_argv()),
            cwd=self.home.path,
            env=self._environment(),
            after=("postgres",),
            once=True,
            death_signal=SIGKILL,
        )

    def _worker(self, name: str) -> Part:
        express = name == EXPRESS
        flag = self.home.path / "ready" / name
        queues = EXPRESS_QUEUES if express else GENERAL_QUEUES
        concurrency = 1 if express else self.concurrency
        return Part(
            name=name,
            argv=tuple(worker_argv(name, queues, concurrency, include=("workers.embedded.ready",))),
            cwd=self.home.path,
            env={**self._environment(), READY_VARIABLE: str(flag)},
            after=("migrate", *SERVERS),
            prepare=lambda: _clear(flag),
            ready=flag.exists,
            rolls=True,
            grace=WORKER_GRACE,
            # Without its supervisor there is no broker either, and a worker would wait for it for ever. What it was
            # doing is taken up by another when its lease ends.
            death_signal=SIGKILL,
        )

    def _beat(self) -> Part:
        directory = self.home.path / "beat"
        flag = directory / "beat.pid"
        return Part(
            name="beat",
            argv=tuple(beat_argv(directory)),
            cwd=self.home.path,
            env=self._environment(),
            after=("migrate", *SERVERS),
            prepare=lambda: _clear(flag),  # a pid file left by a kill may name somebody else's process by now
            ready=flag.exists,
            death_signal=SIGKILL,
        )

    def _flower(self) -> Part:
        directory = self.home.path / "flower"
        port = self.identity.ports["flower"]
        return Part(
            name="flower",
            argv=tuple(flower_argv(directory, LOOPBACK, port)),
            cwd=self.home.path,
            env=self._environment(),
            after=("migrate", "redis"),
            port=port,
            prepare=lambda: directory.mkdir(mode=0o700, exist_ok=True),
            ready=lambda: _answers(port, "/healthcheck"),
            death_signal=SIGKILL,
        )


def address_variables(addresses: dict[str, dict[str, str]]) -> dict[str, str]:
    """Addresses as the environment variables that the settings are read from."""
    return {
        f"MILLRACE_{section}__{name}".upper(): value
        for section, values in addresses.items()
        for name, value in values.items()
    }


def environment_variables(home: Path, addresses: dict[str, dict[str, str]]) -> dict[str, str]:
    """What `millrace env` prints: with these variables any program finds the stack."""
    key = urlsplit(addresses["qdrant"]["url"]).password or ""
    return {
        "MILLRACE_HOME": str(home.absolute()),
        **address_variables(addresses),
        "MILLRACE_QDRANT__API_KEY": unquote(key),
    }


def node_name(worker: str) -> str:
    """The name by which Celery knows a worker of this machine."""
    return f"{worker}@{socket.gethostname()}"


def _clear(flag: Path) -> None:
    flag.parent.mkdir(mode=0o700, exist_ok=True)
    flag.unlink(missing_ok=True)


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=ANSWER_SECONDS)
    with suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    connection.close()
    return False
