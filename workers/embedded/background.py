"""A stack in this process, or in one that goes on when this one has ended.

As a program (`python -m workers.embedded.background`) it is what `millrace up --detach` leaves running: it tells its
starter through a pipe, one JSON object a line, what `millrace up` tells a terminal.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from pipeline import errors
from pipeline.errors import MillraceError, PartFailed, StackError
from pipeline.monitoring import logs
from pipeline.monitoring.lines import LEVELS
from pipeline.settings import LogSettings, Settings, load_settings, read_run_file
from workers.embedded.home import Home, Identity
from workers.embedded.part import rotate, tail
from workers.embedded.stack import Stack
from workers.embedded.strays import end_strays
from workers.embedded.supervisor import SUPERVISOR, Event, Supervisor
from workers.programs import program_environment

logger = logging.getLogger("millrace.stack")


def run_stack(
    settings: Settings, workers: int, concurrency: int, report: Callable[[Event], None], *, drillable: bool = False
) -> None:
    """Runs a stack on the home of the settings until it is told to stop. drillable: a drill may kill its parts.

    Raises StackRunning where one runs, StackError where the home cannot be used, PartFailed when a part does not
    start; nothing is left running then.
    """
    home = Home.at(settings.home)
    home.create()
    with home.locked():
        _log_to(home, settings.logs)
        identity = Identity.of(home)
        strays = end_strays(identity.name, read_run_file(home.path).get("parts", []))
        if strays:
            logger.warning("ended %d processes that a killed stack had left: %s", len(strays), strays)
        identity.choose_ports(home)
        Supervisor(Stack(home, identity, settings, workers, concurrency, drillable=drillable), report).run()


def start_in_background(
    settings: Settings, workers: int, concurrency: int, report: Callable[[Event], None], *, drillable: bool = False
) -> dict[str, Any]:
    """Starts a stack that outlives this process; returns its processes when every part answers.

    Raises what `run_stack` raises; Ctrl-C meanwhile stops what was started.
    """
    home = Home.at(settings.home)
    home.create()
    log = home.log(SUPERVISOR)
    rotate(log)
    reading, writing = os.pipe()
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "workers.embedded.background", "--report", str(writing)),
                *("--workers", str(workers), "--concurrency", str(concurrency)),
                *(("--drillable",) if drillable else ()),
            ],
            env=program_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(writing,),
            start_new_session=True,
        )
    os.close(writing)
    failure: Event | None = None
    try:
        with open(reading, encoding="utf-8") as lines:
            for line in lines:
                event = Event(**json.loads(line))
                report(event)
                if event.kind == "up":
                    return event.processes
                if event.kind == "failed":
                    failure = event
    except BaseException:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    process.wait()
    if failure is None:
        lines_left = "\n".join(tail(log))
        raise StackError(f"the stack stopped before it was up. {log} ends with:\n{lines_left}")
    kind = getattr(errors, failure.error, StackError)
    raise kind("\n".join([failure.message, *failure.tail]))


def _log_to(home: Home, settings: LogSettings) -> None:
    """Sends the supervisor's own log to its file (once for a process)."""
    log = home.log(SUPERVISOR)
    rotate(log)
    handler = logs.Lines(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), owned=True)
    handler.setFormatter(logs.formatter(SUPERVISOR, settings.format))
    for earlier in logger.handlers[:]:
        logger.removeHandler(earlier)
        earlier.close()
    logger.addHandler(handler)
    logger.setLevel(LEVELS[settings.level])
    logger.propagate = False


def main() -> None:
    """The program that `start_in_background` starts."""
    parser = argparse.ArgumentParser(prog="workers.embedded.background")
    parser.add_argument("--report", type=int, required=True, help="the file descriptor that events are written to")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--drillable", action="store_true")
    options = parser.parse_args()
    os.set_inheritable(options.report, False)  # or a part would hold the pipe open
    pipe = open(options.report, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed when the stack is up

    def report(event: Event) -> None:
        if pipe.closed:
            return
        with suppress(BrokenPipeError):  # who started us is gone; the stack is wanted all the same
            pipe.write(json.dumps(asdict(event)) + "\n")
        if event.kind == "up":
            pipe.close()

    try:
        run_stack(load_settings(), options.workers, options.concurrency, report, drillable=options.drillable)
    except PartFailed:
        sys.exit(1)  # reported with the tail of its log
    except MillraceError as error:
        report(Event("failed", message=str(error), error=type(error).__name__))
        sys.exit(1)


if __name__ == "__main__":
    main()
