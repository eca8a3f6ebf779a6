"""The supervisor with small parts of our own: order, ports, failures, backoff, grace."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from command_line import eventually

from pipeline.errors import PartFailed, StackRunning
from pipeline.settings import load_settings
from workers.embedded.home import Home, Identity, is_same_process
from workers.embedded.part import Part, rotate, tail
from workers.embedded.ports import LOOPBACK, free_port
from workers.embedded.stack import Stack
from workers.embedded.strays import end_strays
from workers.embedded.supervisor import Event, Supervisor
from workers.programs import STACK_VARIABLE

SLEEP = "import time; time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


class SmallStack(Stack):
    """A stack whose parts are made by the test."""

    def __init__(self, home: Home, identity: Identity, make: Callable[[SmallStack], list[Part]]) -> None:
        super().__init__(home, identity, load_settings(home=home.path), 0, 1)
        self._make = make

    def parts(self) -> dict[str, Part]:
        return {part.name: part for part in self._make(self)}

    def part(self, name: str, code: str, **options: object) -> Part:
        """A part that runs Python code."""
        given: dict[str, object] = {"env": {STACK_VARIABLE: self.identity.name}, "cwd": self.home.path, **options}
        return Part(name=name, argv=(sys.executable, "-c", code), **given)  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home.at(tmp_path / "home")
    made.create()
    return made


@pytest.fixture
def identity(home: Home) -> Identity:
    made = Identity.of(home)
    made.choose_ports(home)
    return made


def _run(stack: Stack, when: Callable[[list[Event]], bool], *signals: signal.Signals) -> list[Event]:
    """Runs a stack until `when` says so of its events; then sends the signals to ourselves."""
    events: list[Event] = []

    def watch() -> None:
        deadline = time.monotonic() + 60
        while not when(events) and time.monotonic() < deadline:
            time.sleep(0.02)
        for number in signals or (signal.SIGTERM,):
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        Supervisor(stack, events.append).run()
    finally:
        watcher.join()
    return events


def _is_up(events: list[Event]) -> bool:
    return any(event.kind == "up" for event in events)


def test_a_part_starts_when_what_it_waits_for_is_ready(home: Home, identity: Identity) -> None:
    flag = home.path / "flag"
    finished: list[str] = []
    stack = SmallStack(
        home,
        identity,
        lambda stack: [
            stack.part(
                "second", f"import pathlib; assert pathlib.Path({str(flag)!r}).exists();" + SLEEP, after=("first",)
            ),
            stack.part("first", f"open({str(flag)!r}, 'w')", once=True, finish=lambda: finished.append("first")),
        ],
    )

    events = _run(stack, _is_up)

    assert [(event.kind, event.part) for event in events] == [
        ("ready", "first"),
        ("ready", "second"),
        ("up", ""),
        ("stopping", ""),
    ]
    assert finished == ["first"]
    assert not (home.path / "run.json").exists()


def test_a_server_whose_port_is_taken_moves_to_another(home: Home, identity: Identity) -> None:
    # Given a server that needs its port, and somebody who took it
    taken = identity.ports["redis"]
    code = "import socket, sys; s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen();" + SLEEP

    def server(stack: SmallStack) -> list[Part]:
        port = stack.identity.ports["redis"]

        def answers() -> bool:
            with socket.socket() as probe:
                return port != taken and probe.connect_ex((LOOPBACK, port)) == 0

        part = stack.part("redis", code, port=port, ready=answers)
        dependant = stack.part("worker", f"print({port}, flush=True);" + SLEEP, after=("redis",))
        return [replace(part, argv=(*part.argv, str(port))), dependant]

    with socket.socket() as thief:
        thief.bind((LOOPBACK, taken))
        thief.listen()
        worker_log = home.log("worker")
        _run(SmallStack(home, identity, server), lambda events: _is_up(events) and bool(tail(worker_log)))

    # Then it has another, which is kept, and which its dependants were told
    kept = json.loads((home.path / "stack.json").read_text())["ports"]["redis"]
    assert kept != taken
    assert tail(worker_log) == [str(kept)]


def test_a_part_that_ends_too_early_fails_the_start_and_stops_the_others(home: Home, identity: Identity) -> None:
    events: list[Event] = []
    stack = SmallStack(
        home,
        identity,
        lambda stack: [
            stack.part("steady", SLEEP),
            stack.part("broken", "import sys; print('because of this'); sys.exit(7)", ready=lambda: False),
        ],
    )

    with pytest.raises(PartFailed, match="broken ended with status 7 before it was ready"):
        Supervisor(stack, events.append).run()

    failed = next(event for event in events if event.kind == "failed")
    assert (failed.part, failed.tail) == ("broken", ("because of this",))
    assert end_strays(identity.name, []) == []


def test_a_part_that_is_never_ready_fails_the_start(home: Home, identity: Identity) -> None:
    stack = SmallStack(home, identity, lambda stack: [stack.part("mute", SLEEP, ready=lambda: False, patience=0.2)])

    with pytest.raises(PartFailed, match="mute was not ready after 0 seconds"):
        Supervisor(stack, lambda _: None).run()


def test_a_part_that_keeps_dying_is_started_later_each_time(home: Home, identity: Identity) -> None:
    flag = home.path / "starts"
    code = f"import time; open({str(flag)!r}, 'a').write(f'{{time.monotonic()}}\\n')"
    stack = SmallStack(home, identity, lambda stack: [stack.part("weak", code)])

    events = _run(stack, lambda _: flag.exists() and len(flag.read_text().splitlines()) >= 3)

    starts = [float(line) for line in flag.read_text().splitlines()]
    pauses = [later - earlier for earlier, later in pairwise(starts)]
    assert pauses[0] >= 0.5
    assert pauses[1] >= 1.0
    assert [event.message for event in events if event.kind == "restarted"][:1] == ["ended with status 0"]


@pytest.mark.parametrize(
    ("grace", "signals"),
    [(0.5, (signal.SIGTERM,)), (600.0, (signal.SIGINT, signal.SIGINT))],
    ids=["after its grace", "on a second Ctrl-C"],
)
def test_a_part_that_does_not_stop_is_killed(
    home: Home, identity: Identity, grace: float, signals: tuple[signal.Signals, ...]
) -> None:
    stack = SmallStack(home, identity, lambda stack: [stack.part("deaf", DEAF, grace=grace)])

    _run(stack, lambda events: _is_up(events) and tail(home.log("deaf")) == ["deaf"], *signals)

    assert end_strays(identity.name, []) == []


def test_a_signal_while_starting_stops_what_was_started(home: Home, identity: Identity) -> None:
    stack = SmallStack(home, identity, lambda stack: [stack.part("mute", SLEEP, ready=lambda: False)])

    events = _run(stack, lambda _: (home.path / "run.json").exists(), signal.SIGHUP)

    assert [event.kind for event in events] == ["stopping"]
    assert end_strays(identity.name, []) == []


def test_strays_are_known_by_what_the_stack_gave_them(home: Home, identity: Identity) -> None:
    # Given a process with the stack's name, one with another's, and a recorded pid that is somebody else's by now
    def start(name: str) -> psutil.Popen:
        environment = {**os.environ, STACK_VARIABLE: name}
        process = psutil.Popen([sys.executable, "-c", SLEEP], env=environment, start_new_session=True)
        eventually(lambda: process.environ().get(STACK_VARIABLE) == name)
        return process

    with start(identity.name) as ours, start("another") as theirs:
        recorded = {"name": "redis", "pid": theirs.pid, "started": theirs.create_time() - 3600, "stop": 15}

        ended = end_strays(identity.name, [recorded])

        assert ended == [ours.pid]
        assert theirs.is_running()
        theirs.kill()


def test_only_one_at_a_time_has_a_home(home: Home) -> None:
    with home.locked():
        assert home.holder() == os.getpid()
        with pytest.raises(StackRunning, match=rf"already \(pid {os.getpid()}\)"), home.locked():
            pass

    assert home.holder() is None
    assert not home.is_locked()


def test_a_process_is_the_same_by_pid_and_start() -> None:
    us = psutil.Process()

    assert is_same_process(us.pid, us.create_time())
    assert not is_same_process(us.pid, us.create_time() - 60)
    assert not is_same_process(None, None)


def test_a_log_that_grew_is_moved_away_under_its_writer(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"a" * 100)
        rotate(log, limit=99)
        writer.write(b"b\n")

    assert (log.read_bytes(), (tmp_path / "part.log.1").read_bytes()) == (b"b\n", b"a" * 100)
    assert (tmp_path / "part.log.1").stat().st_mode & 0o777 == 0o600


def test_ports_are_kept_while_they_are_free(home: Home, identity: Identity) -> None:
    before = dict(identity.ports)
    with socket.socket() as thief:
        thief.bind((LOOPBACK, before["qdrant"]))
        thief.listen()

        again = Identity.of(home)
        again.choose_ports(home)

    assert again.ports["qdrant"] != before["qdrant"]
    assert {**again.ports, "qdrant": 0} == {**before, "qdrant": 0}
    assert (again.name, again.passwords) == (identity.name, identity.passwords)
    assert free_port() not in (22, 80)
