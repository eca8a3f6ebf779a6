"""Flower beside a real worker: what it lets whom see and do, and that its figures are those of the ledger."""

from __future__ import annotations

import re
import runpy
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from command_line import eventually
from dashboard import AUTH, PASSWORD, Dashboard, dashboard
from services import RedisServer
from yard import PATIENCE_SECONDS, Yard, open_yard

from workers.programs import FLOWER_CONFIG, GENERAL_QUEUES
from workers.reporting_service import ReportingService

# Each text is a chunk, and a batch has two.
SECTIONS: dict[str, dict[str, Any]] = {"ingest": {"embed_chunks": 2}}
# What would change something, with what is posted.
ACTIONS: dict[str, dict[str, Any]] = {
    "/api/task/send-task/embed.batch": {"args": [1]},
    "/api/task/async-apply/embed.batch": {"args": [1]},
    "/api/task/apply/embed.batch": {"args": [1]},
    "/api/task/revoke/1-2-3": {"terminate": "true"},
    "/api/task/timeout/embed.batch": {"workername": "general@here", "hard": "1"},
    "/api/task/rate-limit/embed.batch": {"workername": "general@here", "ratelimit": "1"},
    "/api/worker/shutdown/{worker}": {},
    "/api/worker/pool/restart/{worker}": {},
    "/api/worker/pool/grow/{worker}": {"n": "1"},
    "/api/worker/pool/shrink/{worker}": {"n": "1"},
    "/api/worker/pool/autoscale/{worker}": {"min": "1", "max": "2"},
    "/api/worker/queue/add-consumer/{worker}": {"queue": "more"},
    "/api/worker/queue/cancel-consumer/{worker}": {"queue": "normal"},
}


@pytest.fixture(scope="module")
def yard(
    tmp_path_factory: pytest.TempPathFactory, module_postgres_url: str, redis_server: RedisServer
) -> Iterator[Yard]:
    with open_yard(tmp_path_factory.mktemp("yard"), module_postgres_url, redis_server, SECTIONS) as made:
        yield made


@pytest.fixture(scope="module")
def flower(yard: Yard) -> Iterator[Dashboard]:
    """It was there before the worker, in a directory with a configuration that is not ours."""
    here = yard.directory / "somewhere"
    here.mkdir()
    (here / "flowerconfig.py").write_text("read_only = False\nbasic_auth = []\nopen('executed', 'w')\n")
    with dashboard(yard.environment, yard.directory / "flower", here) as shown:
        yard.start("general", GENERAL_QUEUES)
        eventually(lambda: shown.workers() != [], PATIENCE_SECONDS)
        yield shown


def worker_name(shown: Dashboard) -> str:
    (worker,) = shown.workers()
    return str(worker["hostname"])


def done(yard: Yard) -> Counter[str]:
    """Kind -> how many batches the ledger knows to be done."""
    rows = yard.workshop.sql("SELECT kind, count(*) AS n FROM batches WHERE state = 'indexed' GROUP BY kind")
    return Counter({f"{row['kind']}.batch": row["n"] for row in rows})


def test_the_configuration_is_what_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given nobody to report to
    monkeypatch.setattr(ReportingService, "start", lambda _: None)
    monkeypatch.setenv("MILLRACE_FLOWER__AUTH", AUTH)
    plain = runpy.run_path(str(FLOWER_CONFIG))
    assert plain["basic_auth"] == [AUTH]
    assert plain["read_only"] is True
    assert plain["persistent"] is True
    assert plain["tasks_columns"].startswith("name,args,")
    assert (plain["max_tasks"], plain["purge_offline_workers"]) == (10_000, 3600)
    monkeypatch.setenv("MILLRACE_FLOWER__READ_ONLY", "false")
    monkeypatch.setenv("MILLRACE_FLOWER__MAX_TASKS", "100")
    ours = runpy.run_path(str(FLOWER_CONFIG))
    assert (ours["read_only"], ours["max_tasks"]) == (False, 100)


def test_its_figures_are_those_of_the_ledger(yard: Yard, flower: Dashboard) -> None:
    # Given a worker that has finished a job
    job = yard.put("first", 20)
    assert yard.finish(job).state == "succeeded"
    assert done(yard) == {"prepare.batch": 1, "embed.batch": 10}

    # Then Flower has seen as many tasks succeed as the ledger has batches done, the same ones
    def succeeded() -> Counter[str]:
        return Counter(task["name"] for task in flower.tasks(state="SUCCESS") if task["name"].endswith(".batch"))

    eventually(lambda: succeeded() == done(yard), PATIENCE_SECONDS)
    batches = {int(re.sub(r"\D", "", task["args"])) for task in flower.tasks(taskname="embed.batch")}
    rows = yard.workshop.sql("SELECT id FROM batches WHERE kind = 'embed'")
    assert batches == {row["id"] for row in rows}

    # and the workers that are there, with what they consume
    status = yard.workshop.client.status()
    (told,) = status["workers"]
    (shown,) = flower.workers()
    assert shown["status"] is True
    assert shown["pid"] == told["pid"]
    assert told["id"].startswith(f"{shown['hostname']}#")
    assert shown["task-succeeded"] >= sum(done(yard).values())
    assert shown.get("task-failed", 0) == 0
    inspected = flower.json("/api/workers?refresh=1")[shown["hostname"]]
    assert sorted(queue["name"] for queue in inspected["active_queues"]) == sorted(GENERAL_QUEUES)
    assert inspected["stats"]["pool"]["max-concurrency"] == 1


def test_the_depth_that_it_shows_is_messages_and_the_whole_backlog_is_in_the_ledger(
    yard: Yard, flower: Dashboard
) -> None:
    # Given a worker that is slow, and more batches than are sent at a time
    yard.order("general", "slow 1.5")
    jobs = [yard.put(f"many/{number}", 2, priority="low") for number in range(40)]

    # When a task is running, and nothing moves
    def ledger() -> dict[str, tuple[int, int]]:
        queues = yard.workshop.client.status()["queues"]
        return {name: (queue["messages"], queue["ready_batches"]) for name, queue in queues.items()}

    found: list[tuple[dict[str, int], dict[str, tuple[int, int]]]] = []

    def compared() -> bool:
        before, shown, after = ledger(), flower.depths(), ledger()
        if before == after and shown["low"] > 0:
            found.append((shown, before))
        return bool(found)

    eventually(compared, PATIENCE_SECONDS)
    ((shown, queues),) = found

    # Then Flower's depth is what waits in Redis, and the ledger's the backlog, which is larger
    assert {name: shown[name] for name in queues} == {name: messages for name, (messages, _) in queues.items()}
    assert set(shown) - set(queues) == {"control"}
    assert shown["low"] <= 16
    assert queues["low"][1] >= 20
    yard.order("general", "")
    assert {yard.finish(job).state for job in jobs} == {"succeeded"}


def test_nobody_sees_anything_without_the_password(yard: Yard, flower: Dashboard) -> None:
    for path in ("/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks", "/api/queues/length"):
        assert flower.answer(path, auth="")[0] == 401, path
        assert flower.answer(path, auth="person:a")[0] == 401, "a comma is part of the password"
        assert flower.answer(path)[0] == 200, path
    assert not (yard.directory / "somewhere" / "executed").exists()
    # and with it, they see the password of no server
    redis_password = urlsplit(yard.environment["MILLRACE_REDIS__URL"]).password
    assert redis_password
    for path in ("/broker", "/api/workers", f"/worker/{worker_name(flower)}"):
        assert redis_password not in flower.answer(path)[1], path
    # and theirs is in no list of processes
    assert PASSWORD not in " ".join(psutil.Process(flower.process.pid).cmdline())


def test_what_is_open_to_all_has_the_names_of_workers_and_tasks_and_no_more(flower: Dashboard) -> None:
    assert flower.answer("/healthcheck", auth="") == (200, "OK")
    status, text = flower.answer("/metrics", auth="")
    assert status == 200
    labels = set(re.findall(r'(\w+)="[^"]*"', "\n".join(re.findall(r"^flower_.*\{.*$", text, re.MULTILINE))))
    assert labels == {"worker", "type", "task", "le"}
    assert set(re.findall(r'worker="([^"]*)"', text)) == {worker_name(flower)}
    assert set(re.findall(r'task="([^"]*)"', text)) <= {"", *(task["name"] for task in flower.tasks())}
    assert "queue" not in text, "the depth of queues is not among them"


def test_it_changes_nothing_unless_it_is_told_to_and_remembers_tasks_over_a_restart(
    yard: Yard, flower: Dashboard
) -> None:
    # Given Flower as it is by default
    worker = worker_name(flower)
    before = flower.depths()
    # When somebody with the password tries everything there is
    for path, data in ACTIONS.items():
        status, body = flower.answer(path.format(worker=worker), data=data)
        # Then it is refused
        assert status == 403, f"{path}: {body}"
    assert flower.depths() == before
    assert "task-revoke" not in flower.answer(f"/task/{flower.tasks(limit='1')[0]['uuid']}")[1]
    remembered = {task["uuid"]: task["state"] for task in flower.tasks(taskname="embed.batch")}

    # And when it is started anew, and allowed to
    flower.stop()
    more = {"read_only": "false", "purge_seconds": "1"}
    with dashboard(yard.environment, yard.directory / "flower", yard.directory, **more) as anew:
        # Then it knows what it knew, and does as it is told
        assert {task["uuid"]: task["state"] for task in anew.tasks(taskname="embed.batch")} == remembered
        status, body = anew.answer("/api/task/revoke/00000000-0000-0000-0000-000000000000", data={})
        assert (status, "Revoked" in body) == (200, True)

        # And a worker that is gone leaves its page, and its labels
        def labelled() -> bool:
            return f'worker="{worker}"' in anew.answer("/metrics", auth="")[1]

        eventually(labelled, PATIENCE_SECONDS)
        yard.kill(yard.running[0])
        eventually(lambda: anew.workers() == [] and not labelled(), PATIENCE_SECONDS)
