"""The embedded stack as a person meets it: the real command line, real processes, real kills."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psutil
import psycopg
import pytest
import redis
from command_line import CommandLine, MakeHome, eventually

from pipeline.settings import load_settings
from pipeline.vectors.base import Point
from pipeline.vectors.qdrant import QdrantStore
from pipeline.vectors.sparse import SparseVector

SERVERS = ("postgres", "redis", "qdrant", "flower")


@pytest.fixture(scope="module")
def stack(make_home: MakeHome) -> Iterator[CommandLine]:
    """A stack that the tests of this module share, in a directory with a space in its name; up when a test begins."""
    line = CommandLine(make_home("a home", "millrace home"))
    line.json("up", "--detach", "--workers", "1", "--concurrency", "1")
    yield line
    line.run("down")
    assert _processes_of(line.home) == []


def _pids(processes: dict[str, Any]) -> dict[str, int]:
    """The main process of every part."""
    named = {name: found["pid"] for name, found in processes.items() if isinstance(found, dict)}
    return named | {worker["name"]: worker["pid"] for worker in processes["workers"]}


def _processes_of(home: Path) -> list[psutil.Process]:
    """Everything that runs with this home on its command line or as the stack of it in its environment."""
    name = json.loads((home / "stack.json").read_text())["name"]
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get("MILLRACE_STACK") == name
            if process.status() != psutil.STATUS_ZOMBIE and (marked or name in " ".join(process.cmdline())):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _run_file(home: Path) -> dict[str, Any]:
    """The processes as the supervisor last wrote them down; cheaper to ask often than `millrace status`."""
    processes: dict[str, Any] = json.loads((home / "run.json").read_text())["processes"]
    return processes


def _is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _write_data(addresses: dict[str, str], value: int) -> None:
    with psycopg.connect(addresses["MILLRACE_POSTGRES__URL"]) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value int)")
        connection.execute("INSERT INTO kept VALUES (%s)", (value,))
    with redis.Redis.from_url(addresses["MILLRACE_REDIS__URL"]) as client:
        client.sadd("kept", value)
    store = _store(addresses)
    store.ensure_collection("kept", 2)
    point = Point(UUID(int=value), np.array([1, 0], np.float32), SparseVector([1], [1.0]), {})
    store.upsert("kept", [point])
    store.close()


def _read_data(addresses: dict[str, str]) -> dict[str, list[int]]:
    with psycopg.connect(addresses["MILLRACE_POSTGRES__URL"]) as connection:
        rows = sorted(row[0] for row in connection.execute("SELECT value FROM kept"))
    with redis.Redis.from_url(addresses["MILLRACE_REDIS__URL"]) as client:
        members = sorted(map(int, client.smembers("kept")))
    store = _store(addresses)
    points = sorted(id.int for page in store.scroll("kept") for id in page)
    store.close()
    return {"postgres": rows, "redis": members, "qdrant": points}


def _store(addresses: dict[str, str]) -> QdrantStore:
    return QdrantStore(load_settings(qdrant={"url": addresses["MILLRACE_QDRANT__URL"]}).qdrant)


def test_everything_answers_when_up_returns(stack: CommandLine) -> None:
    status = stack.json("status")
    processes = status["processes"]
    addresses = stack.addresses()

    assert all(_is_alive(pid) for pid in _pids(processes).values())
    assert [worker["name"].partition("@")[0] for worker in processes["workers"]] == ["express", "general1"]
    assert all(len(worker["children"]) == 1 for worker in processes["workers"])
    assert processes["api"] is None
    assert {"score", "issues"} <= set(status["health"])
    assert set(status["queues"]) == {"high", "normal", "low"}
    _write_data(addresses, 1)
    assert _read_data(addresses) == {"postgres": [1], "redis": [1], "qdrant": [1]}
    assert Path(addresses["MILLRACE_HOME"]) == stack.home


def test_flower_asks_for_the_password_and_shows_the_queues(stack: CommandLine) -> None:
    url = stack.json("status")["processes"]["flower"]["url"] + "/api/queues/length"
    credentials = b64encode(stack.addresses()["MILLRACE_FLOWER__AUTH"].encode()).decode()

    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=30)
    refused.value.close()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {credentials}"})
    with urllib.request.urlopen(request, timeout=30) as response:
        queues = {queue["name"] for queue in json.load(response)["active_queues"]}

    assert refused.value.code == 401
    assert {"high", "normal", "low"} <= queues


def test_a_second_up_on_the_same_home_is_refused_and_names_the_first(stack: CommandLine) -> None:
    supervisor = json.loads((stack.home / "run.json").read_text())["pid"]

    for arguments in (("up",), ("up", "--detach")):
        refused = stack.run(*arguments, "--json", status=1)
        told = json.loads(refused.stdout)

        assert (told["type"], told["exit_code"]) == ("StackRunning", 1)
        assert f"(pid {supervisor})" in told["error"]
        assert refused.stderr == f"error: {told['error']}\n"


def test_no_password_is_seen_by_others(stack: CommandLine) -> None:
    passwords = json.loads((stack.home / "stack.json").read_text())["passwords"]
    assert set(passwords) == {*SERVERS, "webhooks"}
    assert len(set(passwords.values())) == len(SERVERS) + 1
    printed = stack.run("status").stdout + json.dumps(stack.json("status")) + stack.run("logs").stdout
    logs = "".join(log.read_text(errors="replace") for log in (stack.home / "logs").iterdir())
    exported = stack.run("env").stdout
    command_lines = " ".join(" ".join(process.cmdline()) for process in _processes_of(stack.home))

    for password in passwords.values():
        assert password not in printed
        assert password not in logs
        assert password not in command_lines
        assert password in exported

    # Everything in the home is behind a directory that only its owner may enter; what holds a secret is so itself.
    assert stack.home.stat().st_mode & 0o777 == 0o700
    for name in ("run.json", "stack.json", "redis/redis.conf", *(f"logs/{log.name}" for log in _logs(stack.home))):
        assert (stack.home / name).stat().st_mode & 0o777 == 0o600, name


def _logs(home: Path) -> list[Path]:
    return list((home / "logs").iterdir())


def test_a_part_that_is_killed_comes_back_on_its_port_with_its_data(stack: CommandLine) -> None:
    # Given a running stack with data
    addresses = stack.addresses()
    _write_data(addresses, 2)
    data = _read_data(addresses)
    before = stack.json("status")["processes"]
    pool_child = before["workers"][1]["children"][0]

    # When every part is killed at once
    for pid in _pids(before).values():
        os.kill(pid, signal.SIGKILL)

    # Then each is there again, as another process, on the same port, with what it knew
    def after() -> dict[str, Any] | None:
        processes = _run_file(stack.home)
        fresh = _pids(processes)
        back = fresh.keys() == _pids(before).keys() and not set(fresh.values()) & set(_pids(before).values())
        return processes if back and all(worker["children"] for worker in processes["workers"]) else None

    processes = eventually(after, 90)
    assert {name: processes[name]["url"] for name in SERVERS} == {name: before[name]["url"] for name in SERVERS}
    assert stack.addresses() == addresses
    assert eventually(lambda: _read_data_or_none(addresses)) == data
    assert not _is_alive(pool_child), "a child of the killed worker lives on"


def _read_data_or_none(addresses: dict[str, str]) -> dict[str, list[int]] | None:
    try:
        return _read_data(addresses)
    except Exception:  # noqa: BLE001 - a server that is still coming up: each client has an error of its own for that
        return None


def test_logs_are_printed_by_part(stack: CommandLine) -> None:
    beat = stack.run("logs", "beat", "--lines", "1000").stdout
    everything = stack.run("logs").stdout
    refused = stack.run("logs", "nothing", status=2)

    assert "beat: duty.reconcile is sent every 3 s" in beat
    assert {"postgres", "redis", "qdrant", "express", "general1", "beat", "flower", "supervisor"} <= {
        line.partition(" | ")[0] for line in everything.splitlines()
    }
    assert "'nothing' has no log; there are beat, express" in refused.stderr


def test_a_job_can_be_followed_from_ingest_to_its_upsert_over_processes(stack: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("A note that is followed.")
    job = stack.json("ingest", str(tmp_path / "note.txt"), "--correlation-id", "request-42", "--wait")
    printed = stack.run("logs", "--job", job["job_id"], "--json").stdout.splitlines()
    lines = [line for line in map(json.loads, printed) if line["logger"] == "millrace.task"]

    assert job["correlation_id"] == "request-42"
    assert [line["event"] for line in lines] == ["prepared 1 documents", "embedded and upserted 1 chunks"]
    for line in lines:
        assert (line["job_id"], line["correlation_id"]) == (job["job_id"], "request-42")
        assert line["task_id"]
        assert line["process"] in ("express", "general1")
        assert line["pid"] not in {worker["pid"] for worker in stack.json("status")["processes"]["workers"]}
    assert printed == stack.run("logs", "--correlation", "request-42", "--json").stdout.splitlines()
    told = stack.run("logs", "--batch", lines[-1]["batch_id"]).stdout
    assert "task: embedded and upserted 1 chunks" in told
    for part in ("general1", "express", "beat", "qdrant", "supervisor"):
        own = (stack.home / "logs" / f"{part}.log").read_text().splitlines()
        assert {json.loads(line)["process"] for line in own if line.startswith("{")} == {part}


def test_logs_are_followed_until_ctrl_c(stack: CommandLine) -> None:
    following = subprocess.Popen(
        stack.argv("logs", "beat", "--follow", "--lines", "0"),
        env=stack.environment(),
        cwd=stack.home.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    told = threading.Event()

    def read() -> None:
        assert following.stdout is not None
        for line in following.stdout:  # what other tests had it say may come before
            if re.search(r"duty\.gc\.data is sent every \d+ s from now on", line):
                told.set()

    with following:
        try:
            reading = threading.Thread(target=read)
            reading.start()
            # It prints what comes after it has started, whenever that is: beat is given something to say again.
            for hours in range(2, 12):
                stack.run("duties", "set", "gc.data", "--every", f"{hours}h")
                if told.wait(8):
                    break
            following.send_signal(signal.SIGINT)
            following.wait(60)
        finally:
            following.kill()
            stack.run("duties", "set", "gc.data", "--reset")
            reading.join(60)

    assert told.is_set()
    assert following.returncode == 0


def test_a_stack_in_the_foreground_runs_beside_another_and_stops_in_order_on_ctrl_c(
    stack: CommandLine, tmp_path: Path
) -> None:
    # Given a second stack, on a home of its own
    other = stack.json("status")["processes"]
    line = CommandLine(tmp_path / "home")
    process = subprocess.Popen(
        line.argv("up", "--workers", "0", "--json"),
        env=line.environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        processes = json.loads(process.stdout.readline())
        places = [found[name]["url"].rpartition(":")[2] for found in (other, processes) for name in SERVERS]
        assert len(set(places)) == len(places)

        # When it gets Ctrl-C
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()

    # Then it stops in order, says nothing more, and the other one is left alone
    assert (process.returncode, output, errors) == (0, "", "")
    assert _processes_of(line.home) == []
    assert "database system is shut down" in (line.home / "logs" / "postgres.log").read_text()
    assert _pids(stack.json("status")["processes"]) == _pids(other)


def test_a_stack_killed_with_its_supervisor_starts_again_with_its_data(stack: CommandLine) -> None:
    # Given a running stack with data
    addresses = stack.addresses()
    _write_data(addresses, 3)
    data = _read_data(addresses)
    run = json.loads((stack.home / "run.json").read_text())
    processes = stack.json("status")["processes"]
    # some of whose processes cannot end when they are told to: they hold a port, the data, a store's lock
    frozen = [psutil.Process(pid) for pid in (processes["redis"]["pid"], processes["qdrant"]["pid"])]
    frozen.append(psutil.Process(processes["workers"][1]["children"][0]))
    for process in frozen:
        process.send_signal(signal.SIGSTOP)

    # When the supervisor is killed, and with it what depends on it
    os.kill(run["pid"], signal.SIGKILL)
    eventually(lambda: not _is_alive(processes["postgres"]["pid"]))
    dead = stack.json("status")["processes"]
    assert (dead["postgres"], dead["flower"]) == (None, None)

    # Then the next one ends what is left, and has the data, on the same ports
    started = stack.json("up", "--detach", "--workers", "0")
    assert not any(process.is_running() for process in frozen)
    assert {name: started[name]["url"] for name in SERVERS} == {name: processes[name]["url"] for name in SERVERS}
    assert _read_data(stack.addresses()) == data


def test_down_ends_everything_and_does_so_again_without_complaint(stack: CommandLine) -> None:
    processes = _processes_of(stack.home)
    assert len(processes) > 10

    stopped = stack.json("down")
    again = stack.run("down")

    assert stopped["stopped"] is True
    assert not any(process.is_running() for process in processes)
    assert not (stack.home / "run.json").exists()
    assert again.stdout == f"nothing is running on {stack.home}\n"
    assert stack.json("status")["processes"]["workers"] == []
    assert "no stack runs on" in stack.run("env", status=1).stderr


def test_a_part_that_cannot_start_is_named_and_nothing_is_left_running(tmp_path: Path) -> None:
    # Given a home where the vector server cannot have its directory
    line = CommandLine(tmp_path / "home")
    (tmp_path / "home" / "qdrant").mkdir(parents=True)
    (tmp_path / "home" / "qdrant" / "data").write_text("not a directory")

    failed = line.run("up", "--detach", "--json", status=1)

    told = json.loads(failed.stdout)
    log = line.home / "logs" / "qdrant.log"
    assert told["type"] == "PartFailed"
    assert told["error"].startswith("qdrant ended with status")
    assert str(log) in told["error"]
    assert log.read_text().splitlines()[-1] in told["error"], "the end of its log is shown"
    assert _processes_of(line.home) == []
    assert line.json("down")["stopped"] is False
