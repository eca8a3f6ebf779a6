"""One part of the stack: what it runs, and the process that runs it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline.errors import PartFailed

logger = logging.getLogger("millrace.stack")

LAUNCHER = Path(__file__).with_name("launch.py")
POLL_SECONDS = 0.05
TAIL_LINES = 20
LOG_BYTES = 16 * 1024 * 1024
# What a part needs of the caller's environment to run at all; the rest (credentials, PG* variables) stays outside.
PLAIN_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT")


def _nothing() -> None:
    """No preparation."""


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Account:
    """The user a part runs as, and the capability (a number of linux/capability.h) it keeps."""

    uid: int
    gid: int
    capability: int | None


@dataclass(frozen=True, slots=True)
class Part:
    """What is run, how it is known to be ready, and how it is stopped.

    `ready` answers within two seconds and raises nothing. A part with `once` runs to its end: it is ready when it
    has ended with exit status 0 and `finish` has run. `prepare` runs before every start. One that `rolls` and ends
    with exit status 0 after it was ready was told to restart, and is started again at once.
    """

    name: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # the whole environment; may hold credentials
    after: tuple[str, ...] = ()
    once: bool = False
    rolls: bool = False
    port: int | None = None
    account: Account | None = None
    prepare: Callable[[], None] = _nothing
    ready: Callable[[], bool] = _always
    finish: Callable[[], None] = _nothing
    patience: float = 120.0  # seconds to become ready; recovery after a crash is part of it
    stop_signal: signal.Signals = signal.SIGTERM
    grace: float = 10.0  # seconds from the stop signal to SIGKILL
    death_signal: signal.Signals = signal.SIGTERM  # what the part gets when its supervisor dies


def plain_environment() -> dict[str, str]:
    """The little of our environment that a server needs."""
    return {name: os.environ[name] for name in PLAIN_VARIABLES if name in os.environ}


class Running:
    """The process of a part, the leader of a session and of a process group of its own."""

    def __init__(self, part: Part, log: Path) -> None:
        self.part = part
        self.log = log
        arguments = ["--parent", str(os.getpid()), "--death-signal", str(int(part.death_signal))]
        if part.account is not None:
            arguments += ["--uid", str(part.account.uid), "--gid", str(part.account.gid)]
            if part.account.capability is not None:
                arguments += ["--capability", str(part.account.capability)]
        rotate(log)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LAUNCHER), *arguments, "--", *part.argv],
                cwd=part.cwd,
                env=dict(part.env),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        self.pid = self._process.pid
        self.since = time.monotonic()
        self.started = psutil.Process(self.pid).create_time()

    def poll(self) -> int | None:
        """The exit status once the process has ended; what it left in its process group is killed then."""
        if self._process.returncode is not None:
            return self._process.returncode
        # Looked at without reaping: until it is reaped its pid, the number of the group, belongs to nobody else.
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        self._signal_group(signal.SIGKILL)
        return self._process.wait()

    def interrupt(self) -> None:
        """Asks the main process, and it alone, to stop in order."""
        if self.poll() is None:
            os.kill(self.pid, self.part.stop_signal)

    def kill(self) -> None:
        """Kills the whole group and waits for its end."""
        if self.poll() is None:
            self._signal_group(signal.SIGKILL)
            self._process.wait()

    def is_ready(self) -> bool:
        """Whether the part answers; raises PartFailed when it ended instead, or is out of patience."""
        status = self.poll()
        if self.part.once and status == 0:
            self.part.finish()
            return True
        if status is not None:
            raise PartFailed(self._failure(f"ended with {describe_status(status)} before it was ready"))
        if not self.part.once and self.part.ready():
            return True
        if time.monotonic() - self.since > self.part.patience:
            raise PartFailed(self._failure(f"was not ready after {self.part.patience:.0f} seconds"))
        return False

    def _failure(self, what: str) -> str:
        return f"{self.part.name} {what}. Its log is {self.log}"

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def describe_status(status: int) -> str:
    """An exit status in words: `signal SIGKILL` or `status 1`."""
    if status < 0:
        with suppress(ValueError):
            return f"signal {signal.Signals(-status).name}"
    return f"status {status}"


def stop(running: list[Running], hurry: Callable[[], bool] = lambda: False) -> None:
    """Stops parts side by side, each within its own grace, or none once `hurry` says so."""
    started = time.monotonic()
    for each in running:
        each.interrupt()
    waiting = list(running)
    while waiting:
        elapsed = time.monotonic() - started
        for each in waiting:
            if elapsed > each.part.grace or hurry():
                logger.warning("%s did not stop within %.0f s; it is killed", each.part.name, elapsed)
                each.kill()
        waiting = [each for each in waiting if each.poll() is None]
        if waiting:
            time.sleep(POLL_SECONDS)


@contextmanager
def run_alone(part: Part, log: Path) -> Iterator[Running]:
    """Runs one part outside a stack, from ready to stopped. Raises PartFailed."""
    part.prepare()
    running = Running(part, log)
    try:
        while not running.is_ready():
            time.sleep(POLL_SECONDS)
        yield running
    finally:
        stop([running])


def rotate(log: Path, limit: int = LOG_BYTES) -> None:
    """Moves a log that has grown over `limit` bytes to `NAME.log.1`; works under a process that appends to it."""
    try:
        if log.stat().st_size <= limit:
            return
        with (
            log.open("rb") as source,
            open(os.open(f"{log}.1", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as target,
        ):
            while block := source.read(1 << 20):
                target.write(block)
        os.truncate(log, 0)
    except FileNotFoundError:
        return


def tail(log: Path, lines: int = TAIL_LINES) -> list[str]:
    """The last lines of a log; none where there is no log."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=lines)]
    except FileNotFoundError:
        return []
