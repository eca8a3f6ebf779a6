"""Workers that kill themselves, as SIGKILL does, at a boundary of buying; whoever died is replaced at once.

    python tests/dying_worker.py        # until its standard input ends

What is imported is imported once: each worker is forked from here, and boots Celery, forks its child and serves its
queues as any other. DYING_WORKER_DIRECTORY holds a file `PLACE@WHO` for each death, which is taken away by it: WHO is
the id of a job whose remote batch it is, or a word of a text that is bought. A place may end with a number: the
so-manieth time of one life.

`METHOD: during` is a request that the server has carried out and does not answer: it dies while it waits.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from celery.signals import worker_process_init
from openai_server.control import Control

from pipeline.assembly import Services
from pipeline.ledger.remote import RemoteBatch
from pipeline.openai_batch.server import Progress, Server
from pipeline.openai_batch.service import BatchService
from pipeline.settings import load_settings
from tasks import base
from workers.app import app
from workers.light_import import leave_out_clients
from workers.programs import GENERAL_QUEUES

__all__ = ["app"]

DIRECTORY_VARIABLE = "DYING_WORKER_DIRECTORY"
# Duties are for the test, so that it says when.
QUEUES = [queue for queue in GENERAL_QUEUES if queue != "control"]
# What each method of the Batch API's server asks for.
_OPERATIONS = {
    "upload": "files.create",
    "create": "batches.create",
    "batches_since": "batches.list",
    "retrieve": "batches.get",
    "content": "files.content",
    "delete_file": "files.delete",
}
_LINGER_SECONDS = 120.0
# What each worker would import.
_LOADED = (
    *("celery.apps.worker", "celery.concurrency.prefork", "kombu.transport.redis", "openai", "pipeline.vectors.qdrant"),
    *("pipeline.monitoring.exposition", "workers.metrics_server", "openai.resources.batches", "openai.resources.files"),
)

_directory = Path(os.environ[DIRECTORY_VARIABLE])
_settings = load_settings()
_control = Control(lambda: _settings.openai.base_url.removesuffix("/v1"))


def _planned(place: str, whose: Callable[[str], bool]) -> Path | None:
    """The plan of a death here, if there is one."""
    return next((file for file in _directory.glob(f"{place}@*") if whose(file.name.partition("@")[2])), None)


def _die(plan: Path) -> None:
    """This worker ends, main process and child."""
    plan.unlink()
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
    # The signal is for the whole process; this thread may run on for a moment.
    threading.Event().wait()


def _die_during(plan: Path, operation: str, is_done: Callable[[int], bool]) -> None:
    """From now on the next such request is not answered; when it is carried out, this worker ends."""
    fault = _control.fault(operation, "linger", seconds=_LINGER_SECONDS)

    def watch() -> None:
        while not (_control.fired(fault) and is_done(fault)):
            time.sleep(0.01)
        _die(plan)

    threading.Thread(target=watch, daemon=True).start()


class _Passings:
    """The boundaries that one row, or one purchase, passes in this life."""

    def __init__(self, whose: Callable[[str], bool]) -> None:
        self._whose = whose
        self._seen: Counter[str] = Counter()

    def plan(self, place: str) -> Path | None:
        return _planned(place, self._whose)

    def __call__(self, place: str) -> None:
        self._seen[place] += 1
        plan = self.plan(place) or self.plan(f"{place} {self._seen[place]}")
        if plan is not None:
            _die(plan)


class _Service(BatchService):
    """Knows whose batch it has."""

    passings: _Passings

    def carry_on(self, held: RemoteBatch, progress: Progress) -> None:
        self.passings = _Passings(lambda who: who in held.jobs)
        super().carry_on(held, progress)


class _Server:
    """The real one; a request may be the last one."""

    def __init__(self, real: Server, plan: Callable[[str], Path | None]) -> None:
        self._real, self._plan = real, plan

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if name not in _OPERATIONS:
            return method

        def asked(*given: Any, **named: Any) -> Any:
            if (plan := self._plan(f"{name}: during")) is not None:
                _die_during(plan, _OPERATIONS[name], lambda _: _is_done(name, given))
            return method(*given, **named)

        return asked


def _is_done(method: str, given: Sequence[Any]) -> bool:
    """Whether the server has done what it was asked for; to ask for something changes nothing there."""
    match method:
        case "upload":
            return any(file["filename"] == given[1] for file in _control.files())
        case "create":
            return any(batch["input_file_id"] == given[0] for batch in _control.batches())
        case "delete_file":
            return not any(file["id"] == given[0] for file in _control.files())
    return True


class _Embedder:
    """The real one, which may be interrupted where it buys: `buy: begun` (nothing was asked for), `buy: during`,
    `buy: answered`, `buy: stored`."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def buy(self, texts: Sequence[str], role: str, on_part: Callable[[Any], None], on_progress: Any = None) -> None:
        passings = _Passings(lambda who: any(who in text.split() for text in texts))

        def take(part: Any) -> None:
            passings("buy: answered")
            on_part(part)
            passings("buy: stored")

        passings("buy: begun")
        if (plan := passings.plan("buy: during")) is not None:
            before = len(_control.billing())
            _die_during(plan, "embeddings", lambda _: len(_control.billing()) > before)
        self._real.buy(texts, role, take, on_progress)


def _assemble(**_: Any) -> None:
    services = Services(load_settings())
    settings, tools = services.settings, services.tools

    def plan(place: str) -> Path | None:
        return service.passings.plan(place)

    def at(place: str) -> None:
        service.passings(place)

    server: Any = _Server(Server(settings.openai), plan)
    service = _Service(services.ledger, settings.openai, settings.openai_batch, settings.cost, server, at)

    def embedder(model: Any, provider: str | None = None) -> Any:
        return _Embedder(tools.embedder(model, provider))

    services.__dict__["batch_service"] = service
    services.__dict__["tools"] = replace(tools, embedder=embedder)
    base.use_services(services)


def _work() -> None:
    log = os.open(_directory.parent / "worker.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    argv = ["worker", "-Q", ",".join(QUEUES), "-c", "1", "-n", "dying@%h", "--loglevel", "INFO"]
    app.worker_main([*argv, "--without-gossip", "--without-mingle"])


def _replace_the_dead() -> None:
    leave_out_clients()
    for module in _LOADED:
        import_module(module)
    app.loader.import_default_modules()
    gc.freeze()
    worker = 0
    # No thread reads it: a fork would inherit the lock.
    while not select.select([0], [], [], 0.02)[0]:
        if not worker:
            worker = os.fork()
            if worker == 0:
                _work()
                os._exit(0)
            with (_directory.parent / "births").open("a") as births:
                births.write(f"{worker}\n")
        elif os.waitpid(worker, os.WNOHANG) != (0, 0):
            worker = 0
    if worker:
        os.kill(worker, signal.SIGTERM)
        os.waitpid(worker, 0)


worker_process_init.connect(_assemble, weak=False)

if __name__ == "__main__":
    _replace_the_dead()
