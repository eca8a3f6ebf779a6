"""A whole Millrace for one benchmark, in a home that is removed afterwards: servers, workers, beat, and its client.

The parts are those of `millrace up`, started with the same command lines, without a supervisor that would start them
again: what dies in a benchmark is a finding. With `constant=True` the workers embed with vectors that cost nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.constant import ConstantVectors
from pipeline.assembly import Services
from pipeline.client import Client
from pipeline.settings import Settings, load_settings
from workers.embedded.home import Home, Identity
from workers.embedded.part import POLL_SECONDS, Part, Running, stop
from workers.embedded.stack import EXPRESS, SERVERS, Stack, address_variables
from workers.programs import APP

CONSTANT_APP = "benchmarks.constant_worker"


@dataclass(frozen=True)
class LiveStack:
    """A stack that runs. settings: with its addresses. constant: whether its workers embed at no cost."""

    settings: Settings
    constant: bool
    parts: Mapping[str, Running]

    def services(self) -> Services:
        """This process's own way to the servers; with the embedder that the workers have. Close it."""
        embedder = ConstantVectors(self.settings.home / "models") if self.constant else None
        return Services(self.settings, embedder=embedder)

    def client(self) -> Client:
        return Client(services=self.services())

    def environment(self) -> dict[str, str]:
        """With these variables any program of ours finds the stack."""
        addresses = {
            "postgres": {"url": self.settings.postgres.url.get_secret_value()},
            "redis": {"url": self.settings.redis.url.get_secret_value()},
            "qdrant": {"url": self.settings.qdrant.url.get_secret_value()},
        }
        return {**os.environ, "MILLRACE_HOME": str(self.settings.home), **address_variables(addresses)}

    def pids(self) -> dict[str, list[int]]:
        """Name of a part -> the pid of its main process, then those of all its descendants."""
        found = {}
        for name, running in self.parts.items():
            try:
                main = psutil.Process(running.pid)
                found[name] = [main.pid, *(child.pid for child in main.children(recursive=True))]
            except psutil.NoSuchProcess:
                continue
        return found

    def cpu_seconds(self) -> dict[str, float]:
        """Name of a part -> seconds of CPU of its processes so far, those included that have ended."""
        return {
            name: _cpu_seconds(running.pid) for name, running in self.parts.items() if psutil.pid_exists(running.pid)
        }


def _cpu_seconds(pid: int) -> float:
    """Of a process and its descendants, those included that have ended.

    One that ends meanwhile was not in its parent's sum yet and has no sum of its own any more: then all are read again.
    """
    while True:
        try:
            main = psutil.Process(pid)
            times = [process.cpu_times() for process in (main, *main.children(recursive=True))]
        except psutil.NoSuchProcess:
            if not psutil.pid_exists(pid):
                return 0.0
            continue
        return sum(found.user + found.system + found.children_user + found.children_system for found in times)


@contextmanager
def live_stack(
    *,
    constant: bool = False,
    workers: int = 1,
    concurrency: int = 2,
    express: bool = True,
    flower: bool = False,
    environment: Mapping[str, str] | None = None,
    **sections: Mapping[str, Any],
) -> Iterator[LiveStack]:
    """Starts a stack and stops it by pid. sections: settings by section, such as `embedding={"precision": "int8"}`.

    workers: general workers, with `concurrency` pool children each. express: the worker for rescue work and for what
    is urgent; without it nothing is reconciled. environment: further variables of our own programs. Takes some ten
    seconds. Raises PartFailed with the log of what did not start.
    """
    directory = Path(tempfile.mkdtemp(prefix="millrace-benchmark-"))
    started: dict[str, Running] = {}
    try:
        home = Home.at(directory / "home")
        home.create()
        identity = Identity.of(home)
        identity.choose_ports(home)
        given = load_settings(home=home.path, **sections)
        stack = Stack(home, identity, given, workers, concurrency)
        variables = {**_variables(sections), **(environment or {})}
        left_out = {EXPRESS: not express, "flower": not flower}
        wanted = {
            name: replace(
                part,
                argv=tuple(CONSTANT_APP if constant and word == APP else word for word in part.argv),
                env={**part.env, **variables} if part.env.get("MILLRACE_HOME") else part.env,
            )
            for name, part in stack.parts().items()
            if not left_out.get(name)
        }
        _start(home, wanted, started)
        addresses = {section: {**sections.get(section, {}), **found} for section, found in stack.addresses().items()}
        settings = load_settings(home=home.path, **{**sections, **addresses})
        yield LiveStack(settings, constant, started)
    finally:
        stop([running for name, running in started.items() if name not in SERVERS])
        for server in reversed(SERVERS):  # the workers are gone: who serves may go, Postgres last
            stop([started[server]] if server in started else [])
        shutil.rmtree(directory, ignore_errors=True)


def _start(home: Home, wanted: dict[str, Part], started: dict[str, Running]) -> None:
    waiting = dict(wanted)
    ready: set[str] = set()
    while len(ready) < len(wanted):
        for name in [name for name, part in waiting.items() if ready.issuperset(part.after)]:
            part = waiting.pop(name)
            part.prepare()
            started[name] = Running(part, home.log(name))
        for name in started.keys() - ready:
            if started[name].is_ready():
                ready.add(name)
        time.sleep(POLL_SECONDS)
    for name in [name for name, part in wanted.items() if part.once]:
        del started[name]


def _variables(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Settings as the environment that the stack's own programs read them from."""
    return address_variables(
        {
            section: {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
            for section, values in sections.items()
        }
    )
