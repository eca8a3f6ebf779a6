"""The command lines of Millrace's own processes, the same in the embedded stack, in a container and by hand."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the settings take a while to import, and a command line needs none
    from pipeline.settings import Settings

APP = "workers.app"
# Rescue work is done by whoever is free; the express worker is there so that somebody is while others have long work.
GENERAL_QUEUES = ("control", "high", "normal", "low")
EXPRESS_QUEUES = ("control", "high")
STACK_VARIABLE = "MILLRACE_STACK"  # in the environment of every process of a stack, by which strays are known
READY_VARIABLE = "MILLRACE_READY_FILE"  # the file that a worker writes when it takes work
# Named, or Flower would execute a flowerconfig.py of the directory where the person happens to be.
FLOWER_CONFIG = Path(__file__).with_name("flowerconfig.py")


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


def forget_dead_beat(directory: Path) -> None:
    """Takes away the `beat.pid` of one that was killed: its number may be somebody else's by now, or that of a process
    that is dead and not buried, and Celery would refuse to start beside it."""
    import psutil

    flag = directory / "beat.pid"
    try:
        process = psutil.Process(int(flag.read_text()))
        alive = process.status() != psutil.STATUS_ZOMBIE and "beat" in process.cmdline()
    except (FileNotFoundError, PermissionError):
        return
    except (ValueError, psutil.NoSuchProcess):
        alive = False
    except psutil.AccessDenied:
        return
    if not alive:
        flag.unlink(missing_ok=True)


def flower_argv(directory: Path, address: str, port: int) -> list[str]:
    """Flower on address:port, with its memory of tasks in `directory`. The settings in its environment say the rest."""
    return [
        *_celery("flower"),
        *(f"--conf={FLOWER_CONFIG}", f"--address={address}", f"--port={port}", f"--db={directory / 'flower.db'}"),
    ]


def migrate_argv() -> list[str]:
    """Brings the schema up to date, and ends."""
    return [sys.executable, "-P", "-m", "workers.cli.main", "migrate"]


def program_environment(settings: Settings) -> dict[str, str]:
    """Our environment, with every path in it that the settings hold made absolute."""
    from pipeline.settings import names_a_file

    environment = {
        # A stack that was started from within another one belongs to itself.
        **{name: value for name, value in os.environ.items() if name not in (STACK_VARIABLE, READY_VARIABLE)},
        "MILLRACE_HOME": os.path.abspath(settings.home.expanduser()),
        "MILLRACE_LOGS__FORMAT": settings.logs.format,
        "MILLRACE_LOGS__LEVEL": settings.logs.level,
        "PYTHONUNBUFFERED": "1",
    }
    environment |= {name: os.path.abspath(path) for name, path in os.environ.items() if names_a_file(name) and path}
    config = os.environ.get("MILLRACE_CONFIG") or "millrace.toml"
    if os.path.exists(config):
        environment["MILLRACE_CONFIG"] = os.path.abspath(config)
    if settings.embedding.path is not None:
        environment["MILLRACE_EMBEDDING__PATH"] = os.path.abspath(settings.embedding.path.expanduser())
    return environment


def _celery(command: str) -> tuple[str, ...]:
    # -P: a directory named `workers` or `tasks` where the person happens to be is not ours.
    # --quiet: no banner, which is no log line.
    return sys.executable, "-P", "-m", "celery", "--quiet", "-A", APP, command
