"""A real stack that may be drilled: `millrace drill`, and chaos in short (as many faults as MILLRACE_CHAOS_FAULTS)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from command_line import CommandLine, MakeHome, eventually

from benchmarks import chaos
from benchmarks.report import Options
from pipeline.settings import load_settings
from pipeline.vectors.qdrant import QdrantStore
from workers.drill.stack import DrilledStack

# Replaced points leave soon, and the model takes half the time; the leases are the default ones.
ENVIRONMENT = {**chaos.QUICK_CONTRACT, "MILLRACE_EMBEDDING__PRECISION": "int8"}
FAULTS = int(os.environ.get("MILLRACE_CHAOS_FAULTS", "2"))
# Plans that begin soon: all the while a drill keeps every core at work. Of this one the first fault tells a worker to
# end, and the second one kills Qdrant.
CHAOS_SEED = 335
FLUSH_SEED = 17
STOP_SEED = 4

pytestmark = pytest.mark.timeout(600 + 15 * FAULTS)


@pytest.fixture(scope="module")
def line(make_home: MakeHome) -> Iterator[CommandLine]:
    made = CommandLine(make_home("drill"), ENVIRONMENT)
    children = "2" if FAULTS > 2 else "1"
    started = made.run("up", "--detach", "--drillable", "--workers", "2", "--concurrency", children)
    assert "Drillable: `millrace drill` may kill" in started.stdout
    yield made
    made.run("down")


def processes(line: CommandLine) -> list[psutil.Process]:
    """Every process of the stack."""
    supervisor = psutil.Process(json.loads((line.home / "run.json").read_text())["pid"])
    return [supervisor, *supervisor.children(recursive=True)]


def assert_everything_runs(line: CommandLine) -> None:
    """All parts are there, and none is held still."""

    def all_there() -> bool:
        found = line.json("status")["processes"]
        servers = [found[name] for name in ("postgres", "redis", "qdrant", "beat", "flower")]
        return all(servers) and len(found["workers"]) == 3

    eventually(all_there, 90)
    still = [found for found in processes(line) if found.status() == psutil.STATUS_STOPPED]
    assert not still, still


def test_chaos_in_short_loses_doubles_and_halves_nothing(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given the benchmark on this stack
    @contextmanager
    def this_stack(_: Any) -> Iterator[DrilledStack]:
        yield DrilledStack(line.home)

    monkeypatch.setattr(chaos, "drillable_stack", this_stack)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    # When faults hit its work
    figures = chaos.measure(Options(faults=FAULTS, seed=CHAOS_SEED))

    # Then the judge finds nothing, and every search was answered with whole documents
    assert figures["passed"], figures
    assert figures["faults"] == FAULTS == sum(figures["faults_by_kind"].values())
    counted = ("lost", "duplicate", "stale", "half_documents", "wrong_vectors", "failed", "unrecovered", "leaving")
    assert {name: figures[name] for name in counted} == dict.fromkeys(counted, 0)
    assert 0 < figures["median_recovery_seconds"] <= figures["max_recovery_seconds"]
    assert min(figures[name] for name in ("documents", "points", "updates", "deletes")) > 0
    assert figures["searches"]["made"] > 0
    assert_everything_runs(line)


def test_a_drill_proves_the_stack_and_leaves_nothing_behind(line: CommandLine) -> None:
    told = line.json("drill", "--faults", "1", "--kinds", "flush", "--seed", str(FLUSH_SEED))

    assert told["passed"]
    assert told["seed"] == FLUSH_SEED
    assert told["collection"].startswith(f"drill-{FLUSH_SEED}-")
    assert {name: told[name] for name in ("lost", "duplicate", "stale", "half_documents")} == {
        "lost": 0,
        "duplicate": 0,
        "stale": 0,
        "half_documents": 0,
    }
    assert told["max_recovery_seconds"] > 0
    assert_everything_runs(line)
    (found,) = [each for each in line.json("collections")["collections"] if each["name"] == told["collection"]]
    assert found["documents"] == 0
    settings = load_settings(home=line.home)
    store = QdrantStore(settings.qdrant)
    assert not [name for name in store.names() if name.startswith(f"drill_{FLUSH_SEED}_")]
    store.close()


def test_a_drill_that_is_interrupted_leaves_everything_running(line: CommandLine) -> None:
    drill = subprocess.Popen(
        line.argv("drill", "--minutes", "2", "--kinds", "stop", "--seed", str(STOP_SEED)),
        env=line.environment(),
        cwd=line.home.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # Given a drill that holds something still
    assert drill.stderr is not None
    said: list[str] = []
    for line_said in drill.stderr:
        said.append(line_said)
        if ": stopped " in line_said:
            break

    # When a person presses Ctrl-C
    drill.send_signal(signal.SIGINT)
    _, rest = drill.communicate(timeout=90)

    # Then it says how to go on, and nothing is held still any more
    assert drill.returncode == 130, [*said, rest]
    assert "interrupted" in rest
    assert_everything_runs(line)


def test_a_drill_by_addresses_that_are_not_this_stacks_is_refused(line: CommandLine) -> None:
    elsewhere = CommandLine(line.home, {**line.env, "MILLRACE_POSTGRES__URL": "postgresql://u:hidden@db.example/m"})

    told = elsewhere.json("drill", "--minutes", "0.1", status=1)

    assert told["type"] == "NotDrillable"
    assert "MILLRACE_POSTGRES__URL is set to postgresql://u:***@db.example/m" in told["error"]
