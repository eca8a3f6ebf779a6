"""The command lines of Millrace's own processes, the same in the embedded stack, in a container and by hand."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the settings take a while to import, and a command line needs none
    from pipeline.settings import FlowerSettings, Settings

APP = "workers.app"
# Rescue work is done by whoever is free; the express worker is there so that somebody is while others have long work.
GENERAL_QUEUES = ("control", "high", "normal", "low")
EXPRESS_QUEUES = ("control", "high")
STACK_VARIABLE = "MILLRACE_STACK"  # in the environment of every process of a stack, by which strays are known
READY_VARIABLE = "MILLRACE_READY_FILE"  # the file that a worker writes when it takes work
# Flower keeps tasks in memory; this many are about 20 MB.
FLOWER_TASKS = 10_000
FLOWER_SAVE_MILLISECONDS = 60_000


def worker_argv(name: str, queues: Sequence[str], concurrency: int, *, include: Sequence[str] = ()) -> list[str]:
    """A worker `NAME@host` on these queues, with `concurrency` pool children."""
    argv = [*_celery("worker"), "-Q", ",".join(queues), "-c", str(concurrency), "-n", f"{name}@%h"]
    argv += ["--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    return argv + [part for module in include for part in ("--include", module)]


def beat_argv(directory: Path) -> list[str]:
    """The clock of the duties, with its state in `directory`; `beat.pid` there is written when it starts to tick."""
    return [
        *_celery("beat"),
        *("--schedule", str(directory / "schedule"), "--pidfile", str(directory / "beat.pid"), "--loglevel", "INFO"),
    ]


def flower_argv(directory: Path, address: str, port: int) -> list[str]:
    """Flower on address:port, with its memory of tasks in `directory`. Its credentials come by environment."""
    return [
        *_celery("flower"),
        *(f"--address={address}", f"--port={port}", "--read-only", f"--max_tasks={FLOWER_TASKS}"),
        *("--persistent=True", f"--db={directory / 'flower.db'}"),
        f"--state_save_interval={FLOWER_SAVE_MILLISECONDS}",
    ]


def migrate_argv() -> list[str]:
    """Brings the schema up to date, and ends."""
    return [sys.executable, "-P", "-m", "workers.cli.main", "migrate"]


def program_environment(settings: Settings) -> dict[str, str]:
    """Our environment, with every path in it that the settings hold made absolute."""
    environment = {
        # A stack that was started from within another one belongs to itself.
        **{name: value for name, value in os.environ.items() if name not in (STACK_VARIABLE, READY_VARIABLE)},
        "MILLRACE_HOME": os.path.abspath(settings.home.expanduser()),
        "PYTHONUNBUFFERED": "1",
    }
    config = os.environ.get("MILLRACE_CONFIG") or "millrace.toml"
    if os.path.exists(config):
        environment["MILLRACE_CONFIG"] = os.path.abspath(config)
    if settings.embedding.path is not None:
        environment["MILLRACE_EMBEDDING__PATH"] = os.path.abspath(settings.embedding.path.expanduser())
    return environment


def flower_environment(settings: FlowerSettings) -> dict[str, str]:
    """What only Flower is told: `user:password`, where there is one."""
    auth = settings.auth.get_secret_value()
    return {"FLOWER_BASIC_AUTH": auth} if auth else {}


def _celery(command: str) -> tuple[str, ...]:
    # -P: a directory named `workers` or `tasks` where the person happens to be is not ours.
    return sys.executable, "-P", "-m", "celery", "-A", APP, command
