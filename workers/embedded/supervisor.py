"""Starts the parts of a stack in order, starts again what dies, and stops everything in order."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import PartFailed
from pipeline.settings import RUN_FILE
from workers.embedded.home import write_private
from workers.embedded.part import Part, Running, describe_status, rotate, stop, tail
from workers.embedded.ports import is_free
from workers.embedded.runfile import children_of, describe_processes
from workers.embedded.stack import Stack

logger = logging.getLogger("millrace.stack")

START_SECONDS = 0.05  # between looks at parts that are starting
WATCH_SECONDS = 0.2  # between looks at parts that run
LOOK_SECONDS = 5.0  # between looks at pool children and at the sizes of logs
PORT_ATTEMPTS = 3
SUPERVISOR = "supervisor"  # its own log
FIRST_BACKOFF = 0.5
LAST_BACKOFF = 30.0
STEADY_SECONDS = 60.0  # a part that lived this long is started again without delay
# Who is served stops before who serves; those of one group stop side by side.
SERVERS_LAST = (("qdrant", "redis"), ("postgres",))


@dataclass(frozen=True, slots=True)
class Event:
    """What the supervisor tells whoever started it.

    kind: `ready` (a part answers), `up` (all do), `failed`, `restarted`, `stopping`.
    """

    kind: str
    part: str = ""
    seconds: float = 0.0
    message: str = ""
    error: str = ""  # the class of the error
    tail: tuple[str, ...] = ()  # the last lines of the part's log
    processes: dict[str, Any] = field(default_factory=dict)


class _StopAsked(Exception):
    """Somebody wants the stack to stop while it is starting."""


@dataclass(slots=True)
class _Slot:
    """A part at work: its process, and when it is started again."""

    running: Running
    ready: bool = False
    attempts: int = 1  # to start it on a port of its own
    failures: int = 0  # in a row, after it had been ready
    again_at: float | None = None
    children: list[dict[str, Any]] = field(default_factory=list)


class Supervisor:
    """Runs a stack from start to stop in this process, whose caller holds the lock of the home."""

    def __init__(self, stack: Stack, report: Callable[[Event], None]) -> None:
        self._stack = stack
        self._report = report
        self._waiting: dict[str, Part] = {}
        self._slots: dict[str, _Slot] = {}
        self._stop = threading.Event()
        self._hurry = False
        self._written = ""

    def run(self) -> None:
        """Returns when the stack was told to stop and nothing of it is left. Raises PartFailed."""
        with self._signals():
            try:
                self._start_all()
                self._report(Event("up", processes=describe_processes(self._described())))
                self._watch()
            except _StopAsked:
                logger.info("told to stop while starting")
            finally:
                self._report(Event("stopping"))
                self._stop_all()
                (self._stack.home.path / RUN_FILE).unlink(missing_ok=True)
                logger.info("stopped")

    def _start_all(self) -> None:
        self._waiting = self._stack.parts()
        while self._waiting or not all(slot.ready for slot in self._slots.values()):
            if self._stop.is_set():
                raise _StopAsked
            ready = {name for name, slot in self._slots.items() if slot.ready}
            for name in [name for name, part in self._waiting.items() if ready.issuperset(part.after)]:
                self._slots[name] = _Slot(self._started(self._waiting.pop(name)))
                self._write_run_file()
            for name, slot in self._slots.items():
                if not slot.ready and self._becomes_ready(name, slot):
                    seconds = time.monotonic() - slot.running.since
                    logger.info("%s is ready after %.1f s", name, seconds)
                    self._report(Event("ready", part=name, seconds=round(seconds, 2)))
            self._stop.wait(START_SECONDS)
        self._look()

    def _becomes_ready(self, name: str, slot: _Slot) -> bool:
        """Asks once; moves a server to another port where somebody else took its own. Raises PartFailed."""
        try:
            slot.ready = slot.running.is_ready()
        except PartFailed as error:
            part = slot.running.part
            if part.port is None or is_free(part.port) or slot.attempts == PORT_ATTEMPTS:
                logger.error("%s", error)
                lines = tuple(tail(slot.running.log))
                self._report(Event("failed", part=name, message=str(error), error="PartFailed", tail=lines))
                raise
            logger.warning("%s: port %d was taken by somebody else; choosing another", name, part.port)
            slot.running.kill()
            self._stack.identity.move(name, self._stack.home)
            parts = self._stack.parts()
            self._waiting = {each: parts[each] for each in self._waiting}  # they are told the new port
            slot.attempts += 1
            slot.running = self._started(parts[name])
            self._write_run_file()
        return slot.ready

    def _started(self, part: Part) -> Running:
        part.prepare()
        return Running(part, self._stack.home.log(part.name))

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stop.wait(WATCH_SECONDS):
            for name, slot in self._slots.items():
                if not slot.running.part.once:
                    self._keep_alive(name, slot)
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                self._look()

    def _keep_alive(self, name: str, slot: _Slot) -> None:
        """Starts a dead part again when its time has come: on the same port and data, later after each failure."""
        now = time.monotonic()
        if slot.again_at is None and (status := slot.running.poll()) is not None:
            if status == 0 and slot.running.part.rolls and slot.running.part.ready():
                # It was up, and somebody told it to stop: a rolling restart, and no failure.
                slot.failures, slot.again_at = 0, now
            else:
                slot.failures = 1 if now - slot.running.since > STEADY_SECONDS else slot.failures + 1
                slot.again_at = now + min(LAST_BACKOFF, FIRST_BACKOFF * 2 ** (slot.failures - 1))
            logger.warning("%s ended with %s; it is started again", name, describe_status(status))
            self._report(Event("restarted", part=name, message=f"ended with {describe_status(status)}"))
            self._write_run_file()
        if slot.again_at is not None and now >= slot.again_at:
            slot.again_at = None
            try:
                slot.running = self._started(slot.running.part)
                logger.info("%s was started again, pid %d", name, slot.running.pid)
            except OSError as error:  # no memory, no process, no space: that may pass
                slot.again_at = now + LAST_BACKOFF
                logger.error("%s cannot be started: %s", name, error)
            self._write_run_file()

    def _stop_all(self) -> None:
        servers = {name for group in SERVERS_LAST for name in group}
        for group in (self._slots.keys() - servers, *SERVERS_LAST):
            running = [self._slots[name].running for name in group if name in self._slots]
            logger.info("stopping %s", ", ".join(each.part.name for each in running) or "nothing")
            stop(running, hurry=lambda: self._hurry)

    def _look(self) -> None:
        for slot in self._slots.values():
            slot.children = children_of(slot.running.pid) if slot.running.poll() is None else []
            rotate(slot.running.log)
        rotate(self._stack.home.log(SUPERVISOR))
        self._write_run_file()

    def _described(self) -> list[dict[str, Any]]:
        urls = self._stack.urls()
        return [
            {
                "name": name,
                "pid": slot.running.pid,
                "started": slot.running.started,
                "stop": int(slot.running.part.death_signal),
                "url": urls.get(name),
                "children": slot.children,
            }
            for name, slot in self._slots.items()
            if slot.running.poll() is None
        ]

    def _write_run_file(self) -> None:
        parts = self._described()
        content = {
            "pid": os.getpid(),
            "drillable": self._stack.drillable,
            "settings": self._stack.addresses(),
            "processes": describe_processes(parts),
            "parts": parts,
        }
        text = json.dumps(content, indent=1) + "\n"
        if text != self._written:
            write_private(self._stack.home.path / RUN_FILE, text)
            self._written = text

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal stops in order, a second Ctrl-C without waiting."""

        def handle(number: int, _: object) -> None:
            self._hurry = self._stop.is_set() and number == signal.SIGINT
            self._stop.set()

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
