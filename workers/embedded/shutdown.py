"""Stops the stack of a home, whoever started it and however it is."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from pipeline.errors import StackError
from pipeline.settings import RUN_FILE, read_run_file
from workers.embedded.home import STACK_FILE, Home, Identity
from workers.embedded.strays import end_strays

# Workers finish what they do (45 s), then the servers write everything down (10 + 30 s).
PATIENCE = 120.0
POLL_SECONDS = 0.1
NAME_SECONDS = 5.0


def stop_stack(path: Path) -> bool:
    """Stops the stack on a home; returns whether anything was running. Nothing of it is left afterwards.

    Raises StackError where it belongs to another user.
    """
    home = Home.at(path)
    was_running = False
    deadline = time.monotonic() + PATIENCE
    asked: int | None = None
    unnamed_since = time.monotonic()
    while home.is_locked():
        was_running = True
        holder = home.holder()
        if holder is None and time.monotonic() - unnamed_since > NAME_SECONDS:
            raise StackError(f"somebody holds {home.path / 'lock'} and does not say who; end that process first")
        if holder is not None:
            unnamed_since = time.monotonic()
            if holder != asked:
                _signal(holder, signal.SIGTERM, home)
                asked = holder
            elif time.monotonic() > deadline:
                _signal(holder, signal.SIGKILL, home)
        time.sleep(POLL_SECONDS)
    if not (home.path / STACK_FILE).exists():
        return was_running
    with home.locked():
        strays = end_strays(Identity.of(home).name, read_run_file(home.path).get("parts", []))
        (home.path / RUN_FILE).unlink(missing_ok=True)
    return was_running or bool(strays)


def _signal(pid: int, number: signal.Signals, home: Home) -> None:
    try:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    except PermissionError:
        raise StackError(
            f"the stack on {home.path} (pid {pid}) belongs to another user; stop it as that user"
        ) from None
