"""Flower's pages as a person sees them: in a browser without a screen, while a worker is at work."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import pytest
from command_line import eventually
from dashboard import PASSWORD, USER, Dashboard, dashboard
from services import RedisServer
from yard import PATIENCE_SECONDS, Yard, open_yard

from workers.programs import GENERAL_QUEUES

pytestmark = pytest.mark.external

# Each text is a chunk, and a batch has two.
SECTIONS: dict[str, dict[str, Any]] = {"ingest": {"embed_chunks": 2}}
BROWSER_SECONDS = 60
# The page's own clock: its requests are answered long before, and it refreshes itself meanwhile.
PAGE_MILLISECONDS = 12_000


class Rows(HTMLParser):
    """The texts of the cells of the first table's body, row by row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._in_body = self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tbody":
            self._in_body = True
        elif tag == "tr" and self._in_body:
            self.rows.append([])
        elif tag == "td" and self._in_body:
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "tbody":
            self._in_body = False
        elif tag == "td":
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data.strip()


@dataclass(frozen=True)
class Browser:
    """Chromium, with a profile of its own. It keeps a picture of each page beside it."""

    program: str
    directory: Path
    shown: Dashboard

    def page(self, path: str, picture: str) -> str:
        """The document as it is after its scripts have run, none of which may have failed; and a picture of it."""
        target = self.directory / f"{picture}.png"
        self._run(path, f"--screenshot={target}", "--window-size=1400,900")
        assert target.stat().st_size > 10_000, "an empty page is smaller"
        return self._run(path, "--dump-dom")

    def _run(self, path: str, *options: str) -> str:
        parts = urlsplit(self.shown.url)
        netloc = f"{USER}:{quote(PASSWORD, safe='')}@{parts.netloc}"
        done = subprocess.run(
            [
                *(self.program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--disable-background-networking", "--no-first-run", "--hide-scrollbars"),
                *("--enable-logging=stderr", f"--user-data-dir={self.directory / 'profile'}"),
                *(f"--virtual-time-budget={PAGE_MILLISECONDS}", *options),
                urlunsplit(parts._replace(netloc=netloc, path=path)),
            ],
            capture_output=True,
            text=True,
            timeout=BROWSER_SECONDS,
            check=True,
        )
        said = re.findall(r".*CONSOLE.*", done.stderr)
        assert said == [], f"{path}: {said}"
        return done.stdout


@pytest.fixture(scope="module")
def yard(
    tmp_path_factory: pytest.TempPathFactory, module_postgres_url: str, redis_server: RedisServer
) -> Iterator[Yard]:
    with open_yard(tmp_path_factory.mktemp("yard"), module_postgres_url, redis_server, SECTIONS) as made:
        yield made


@pytest.fixture(scope="module")
def browser(yard: Yard) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program is not None, "no chromium here; .ci/run installs it (apt-get install chromium)"
    with dashboard(yard.environment, yard.directory / "flower", yard.directory) as shown:
        yard.start("general", GENERAL_QUEUES)
        yield Browser(program, yard.directory, shown)


@pytest.fixture(scope="module", autouse=True)
def load(yard: Yard, browser: Browser) -> None:
    """A job of 31 batches is done, and many of low priority go on until the tests of this module end."""
    assert yard.finish(yard.put("first", 60)).state == "succeeded"
    browser.shown.json("/api/workers?refresh=1")
    yard.order("general", "slow 15")
    for number in range(40):
        yard.put(f"more/{number}", 2, priority="low")
    eventually(lambda: backlog(yard)[0] > 0, PATIENCE_SECONDS)


def backlog(yard: Yard) -> tuple[int, int]:
    """Of low: messages in Redis, and batches that are ready."""
    low = yard.workshop.client.status()["queues"]["low"]
    return low["messages"], low["ready_batches"]


def test_the_page_of_workers_counts_the_tasks_that_are_done(yard: Yard, browser: Browser) -> None:
    # Given all batches that the ledger knows to be done among the tasks that Flower knows to have succeeded
    def done() -> set[int]:
        return {row["id"] for row in yard.workshop.sql("SELECT id FROM batches WHERE state = 'indexed'")}

    def succeeded() -> list[dict[str, Any]]:
        return browser.shown.tasks(state="SUCCESS")

    def batches() -> set[int]:
        return {int(re.sub(r"\D", "", task["args"])) for task in succeeded() if task["name"].endswith(".batch")}

    assert len(done()) >= 31
    eventually(lambda: batches() == done(), PATIENCE_SECONDS)
    before = len(succeeded())
    # When the page is looked at
    html = browser.page("/workers", "workers")
    after = len(succeeded())
    # Then it says so
    (row,) = Rows(html).rows
    name, status, active, _processed, failed, shown, _average = row
    assert name.startswith("general@")
    assert (status, active, failed) == ("Online", "1", "0")
    assert before <= int(shown) <= after
    assert re.search(r'id="workers-online">1<', html)
    assert re.search(r"Updated \d", html), "it refreshes itself"


def test_the_page_of_tasks_names_the_batch_of_each(yard: Yard, browser: Browser) -> None:
    html = browser.page("/tasks", "tasks")
    headings = list(dict.fromkeys(re.findall(r'data-column="(\w+)"', html)))  # a table that scrolls has them twice
    assert headings == ["name", "args", "state", "received", "runtime", "worker", "uuid"]
    found = [dict(zip(headings, row, strict=True)) for row in Rows(html).rows]
    tasks = [row for row in found if row["name"].endswith(".batch")]
    known = {f"[{row['id']}]" for row in yard.workshop.sql("SELECT id FROM batches")}
    assert len(tasks) >= 5
    for row in tasks:
        assert row["args"] in known
        assert row["state"] in ("SUCCESS", "STARTED", "RECEIVED")
        assert row["worker"].startswith("general@")
        assert re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", row["received"])
    assert [row["state"] for row in tasks].count("STARTED") == 1


def test_the_page_of_the_broker_shows_the_messages_in_redis(yard: Yard, browser: Browser) -> None:
    pages: list[tuple[dict[str, int], int, int]] = []

    def looked() -> bool:
        """Whether nothing moved meanwhile."""
        before = backlog(yard)
        shown = {name: int(messages) for name, messages, *_ in Rows(browser.page("/broker", "broker")).rows}
        pages.append((shown, *before))
        return backlog(yard) == before

    eventually(looked, PATIENCE_SECONDS)
    shown, messages, ready = pages[-1]
    assert set(shown) == set(GENERAL_QUEUES)
    assert shown["low"] == messages > 0
    assert ready > shown["low"], "the whole backlog is in the ledger"


def test_the_page_of_a_task_shows_its_batch_and_times_and_no_button(browser: Browser) -> None:
    (task,) = browser.shown.tasks(state="SUCCESS", taskname="embed.batch", limit="1")
    html = browser.page(f"/task/{task['uuid']}", "task")
    assert task["uuid"] in html
    assert task["args"] in html
    assert "SUCCESS" in html
    assert 'id="task-revoke"' not in html


def test_the_page_of_a_worker_shows_its_pool_and_queues_and_no_button(browser: Browser) -> None:
    (worker,) = browser.shown.workers()
    html = browser.page(f"/worker/{worker['hostname']}", "worker")
    assert "worker-shutdown" not in html
    for queue in GENERAL_QUEUES:
        assert queue in html
