"""Every document command as a person types it: a real stack, real processes, what they print and how they end.

The stack has no general worker: the express one does what is asked for with `--priority high`, and everything else
waits for ever, so that a test can look at a job that waits.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import UUID

import pytest
from command_line import PATIENCE_SECONDS, CommandLine, MakeHome

from pipeline.settings import load_settings
from pipeline.sources import file_uri
from pipeline.vectors.qdrant import QdrantStore

NOTES = {
    "mill.md": "# The mill\n\nA mill race carries water to the wheel.\n",
    "bread.md": "# Bread\n\nFlour, water and salt make bread.\n",
    "deep/stars.txt": "Sailors of old found their way by the stars.\n",
}
NO_WORKER = "no live worker consumes the queue normal"


@pytest.fixture(scope="module")
def line(make_home: MakeHome) -> Iterator[CommandLine]:
    made = CommandLine(make_home("cli"))
    made.run("up", "--detach", "--workers", "0")
    yield made
    made.run("down")


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A directory with three documents."""
    directory = tmp_path / "my notes"
    for name, text in NOTES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return directory


@pytest.fixture
def collection(request: pytest.FixtureRequest) -> str:
    """The name of a collection of the test's own."""
    return str(request.node.name)[-60:]


def ingest(line: CommandLine, *paths: str | Path, collection: str) -> str:
    """Ingests and waits; returns what was printed."""
    return line.run(
        "ingest", *map(str, paths), "--collection", collection, "--priority", "high", "--wait", status=None
    ).stdout


def test_a_directory_is_ingested_listed_and_searched(line: CommandLine, notes: Path, collection: str) -> None:
    # Given a directory with a document that cannot be read
    (notes / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    arguments = ("--collection", collection, "--metadata", "pages=12", "--metadata", "lang=en", "--priority", "high")

    # When it is ingested, then a part is done, the exit status says so, and one JSON object everything else
    job = line.json("ingest", str(notes), *arguments, "--wait", status=3)
    assert job["state"] == "partial"
    assert job["documents"]["total"] == 4
    assert (job["documents"]["indexed"], job["documents"]["failed"]) == (3, 1)
    assert job["chunks"] == {"total": 3, "embedded": 3, "reused": 0, "indexed": 3}
    assert job["errors"][0]["uri"] == file_uri(notes / "broken.pdf")
    assert {"job_id", "waiting", "seconds"} <= set(job)

    # And a second time nothing is new, which people are told in words
    (notes / "broken.pdf").unlink()
    done = line.run("ingest", str(notes / "*.md"), str(notes / "deep"), *arguments, "--wait")
    said = done.stdout.splitlines()
    assert said[0].startswith("job        ")
    assert said[1].startswith("state      succeeded after ")
    # the path in the metadata is relative to what was typed, so one document has other metadata than before
    assert said[2] == "documents  3: 1 indexed, 2 unchanged"

    # And the documents are listed, by path and by filter
    listed = line.json("documents", str(notes / "deep"), "--collection", collection)
    assert [one["uri"] for one in listed["documents"]] == [file_uri(notes / "deep" / "stars.txt")]
    assert listed["documents"][0]["metadata"]["pages"] == 12
    rows = line.run("documents", "--filter", "pages=12", "--limit", "1", "--collection", collection)
    assert rows.stdout.split("\t")[:2] == [file_uri(notes / "bread.md"), "Bread"]
    assert "There are more than these 1" in rows.stderr

    # And found
    query = ("what", "turns", "the", "wheel?", "--limit", "2", "--filter", "lang=en")
    found = line.json("search", *query, "--collection", collection)
    assert {"query", "collection", "generation", "results", "cache", "degraded", "timings_ms"} <= set(found)
    assert found["query"] == "what turns the wheel?"
    assert len(found["results"]) == 2
    assert set(found["results"][0]) >= {"id", "score", "text", "uri", "title", "metadata"}
    assert found["results"][0]["title"] == "The mill"


def test_standard_input_is_a_document_and_people_are_shown_results_where_scripts_get_lines(
    line: CommandLine, collection: str
) -> None:
    done = line.run(
        "ingest", "-", "--uri", "notes/today.md", "--collection", collection, "--priority", "high", "--wait",
        typed="# Today\n\nThe teapot is made of chocolate.\n",
    )  # fmt: skip
    assert "documents  1: 1 indexed" in done.stdout

    shown = in_a_terminal(line, "search", "chocolate", "--collection", collection)
    piped = line.run("search", "chocolate", "--collection", collection)

    assert "\x1b[1mToday\x1b[0m" in shown
    assert "         # Today The teapot is made of chocolate." in shown
    assert f"1 result from {collection} in " in shown
    assert piped.stdout == "1\t1.000\tnotes/today.md\tToday\t# Today The teapot is made of chocolate.\n"
    assert f"1 result from {collection} in " in piped.stderr


def test_a_terminal_sees_a_bar_and_a_pipe_sees_lines(line: CommandLine, notes: Path, collection: str) -> None:
    arguments = ("ingest", str(notes), "--collection", collection, "--priority", "high", "--wait")

    shown = in_a_terminal(line, *arguments)
    piped = line.run(*arguments)

    assert "━━━━" in shown
    assert "\x1b[32msucceeded\x1b[0m" in shown
    assert "documents  3: 3 indexed" in shown
    assert piped.stderr.splitlines()[0] == "staging: 3 documents read"
    assert "\x1b" not in piped.stdout + piped.stderr
    assert "documents  3: 3 unchanged" in piped.stdout


def test_a_search_that_finds_nothing_says_why(line: CommandLine, notes: Path, collection: str) -> None:
    # Given a collection whose only documents still wait for a worker
    job = line.json("ingest", str(notes), "--collection", collection)["job_id"]
    found = line.run("search", "water", "--collection", collection)
    assert found.stdout == ""
    assert f"Nothing found yet: job {job} is still at work" in found.stderr

    # When they never come
    line.run("cancel", job)

    # Then it is the collection that is empty
    assert (
        f"`millrace ingest PATH --collection {collection}`"
        in line.run("search", "water", "--collection", collection).stderr
    )


def test_an_idempotency_key_makes_one_job_of_two(line: CommandLine, notes: Path, collection: str) -> None:
    arguments = (
        "ingest",
        str(notes),
        "--collection",
        collection,
        "--priority",
        "high",
        "--idempotency-key",
        collection,
    )

    first = line.json(*arguments, "--wait")
    again = line.json(*arguments)
    other = line.run(*arguments, "--exclude", "deep/", status=2)

    assert again["job_id"] == first["job_id"]
    assert f"was used by job {first['job_id']} for another request" in other.stderr


def test_a_sync_deletes_what_is_gone_unless_that_is_most_of_it(line: CommandLine, notes: Path, collection: str) -> None:
    sync = ("sync", str(notes), "--collection", collection, "--priority", "high", "--wait")
    assert line.json(*sync)["documents"]["indexed"] == 3

    # One of three is gone
    (notes / "bread.md").unlink()
    assert line.json(*sync)["documents"]["deleted"] == 1

    # Two of two are gone
    (notes / "mill.md").unlink()
    (notes / "deep" / "stars.txt").unlink()
    refused = line.run(*sync, status=2)
    assert "2 of the 2 documents" in refused.stderr
    assert "--force" in refused.stderr
    assert line.json(*sync, "--force")["documents"]["deleted"] == 2
    assert line.json("documents", "--collection", collection)["documents"] == []


def test_documents_are_deleted_by_path_by_directory_and_by_filter(
    line: CommandLine, notes: Path, collection: str
) -> None:
    ingest(line, notes, collection=collection)
    delete = ("delete", "--collection", collection, "--priority", "high", "--wait")

    gone = line.run(*delete, str(notes / "mill.md"), "never/was.md").stdout
    assert "documents  2: 1 not there, 1 deleted" in gone
    assert line.json(*delete, str(notes / "deep"))["documents"]["deleted"] == 1
    refused = line.run(*delete, "--filter", "colour=red", status=2)
    assert "has no field 'colour' to filter on; it has path, source, uri" in refused.stderr
    assert line.json(*delete, "--filter", "path=bread.md")["documents"]["deleted"] == 1
    assert line.json("documents", "--collection", collection)["documents"] == []


def test_vectors_are_shown_and_remembered(line: CommandLine) -> None:
    first = line.json("embed", "a wheel turns", "a wheel turns", "a loaf rises")
    assert (first["hits"], first["misses"], first["dimensions"]) == (1, 2, 384)
    assert [len(vector) for vector in first["vectors"]] == [384] * 3
    assert sum(batch["texts"] for batch in first["batches"]) == 2

    again = line.run("embed", "a wheel turns")
    assert again.stdout.startswith("[" + ", ".join(f"{number:+.4f}" for number in first["vectors"][0][:6]))
    assert "1 stored already, 0 computed" in again.stderr


def test_an_audit_finds_what_the_index_has_lost(line: CommandLine, notes: Path, collection: str) -> None:
    # Given a collection that is as it should be
    ingest(line, notes, collection=collection)
    assert "clean, 3 of 3 expected points" in line.run("audit", "--collection", collection).stdout
    shown = line.json("collections", collection)["collections"][0]
    assert (shown["documents"], shown["chunks"]) == (3, 3)

    # When a point is taken out of the index behind Millrace's back
    point = line.json("search", "bread", "--limit", "1", "--collection", collection)["results"][0]["id"]
    store = QdrantStore(load_settings(qdrant={"url": line.addresses()["MILLRACE_QDRANT__URL"]}).qdrant)
    store.delete(shown["qdrant_name"], [UUID(point)])
    store.close()

    # Then the audit of everything says so
    report = line.json("audit", "--verbose", status=1)
    assert report["missing"] == 1
    assert report["ids"]["missing"] == [point]
    assert {"expected", "present", "missing", "orphaned", "duplicate", "stale"} <= set(report)

    # And puts it back, from the embedding that is stored
    mended = line.json("audit", "--repair", "--collection", collection)
    assert mended["repaired"] == {"upserted": 1, "deleted": 0, "embedded": 0, "failed": 0}
    assert line.json("audit", "--collection", collection)["missing"] == 0


def test_a_stack_that_was_not_marked_is_not_drilled(line: CommandLine) -> None:
    before = line.json("status")["processes"]

    told = line.json("drill", "--minutes", "0.1", status=1)

    assert told["type"] == "NotDrillable"
    assert f"the stack on {line.home} was not marked as drillable" in told["error"]
    assert "millrace up --drillable" in told["error"]
    assert line.json("status")["processes"] == before


def test_ctrl_c_leaves_a_job_running_that_can_be_looked_at_and_cancelled(
    line: CommandLine, notes: Path, collection: str
) -> None:
    # Given an ingest that waits for a worker which is not there
    waiting = subprocess.Popen(
        line.argv("ingest", str(notes), "--collection", collection, "--wait"),
        env=line.environment(), cwd=line.home.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert waiting.stderr is not None
    assert any(said.startswith("preparing") and NO_WORKER in said for said in iter(waiting.stderr.readline, ""))

    # When the person has had enough
    waiting.send_signal(signal.SIGINT)
    output, errors = waiting.communicate(timeout=PATIENCE_SECONDS)

    # Then they are told how to look at the job, which goes on
    assert (waiting.returncode, output) == (130, "")
    assert "The job goes on." in errors
    listed = line.json("jobs", "--limit", "1")["jobs"][0]
    assert f"millrace job {listed['job_id']} " in errors
    assert f"millrace wait {listed['job_id']} " in errors
    assert (listed["state"], listed["collection"]) == ("queued", collection)

    shown = line.run("job", listed["job_id"]).stdout
    assert f"waiting    {NO_WORKER}" in shown
    over = line.run("wait", listed["job_id"], "--timeout", "0.1", status=1)
    assert "is queued after 0.1 seconds; it goes on" in over.stderr

    cancelled = line.run("cancel", listed["job_id"]).stdout
    assert "state      cancelled" in cancelled
    assert "documents  3: 3 cancelled" in cancelled
    assert line.json("wait", listed["job_id"], status=1)["state"] == "cancelled"
    assert listed["job_id"] in line.run("jobs", "--state", "cancelled").stdout


def test_ctrl_c_while_reading_keeps_what_is_durable_and_the_same_command_goes_on(
    line: CommandLine, notes: Path, collection: str
) -> None:
    # Given a document, and a web page that doesn't come
    with slow_page() as (url, asked, come):
        patient = replace(line, env={"MILLRACE_SOURCES__WEB_PRIVATE": "true", "MILLRACE_INGEST__GROUP_DOCUMENTS": "1"})
        command = (
            "ingest", str(notes / "mill.md"), url,
            "--collection", collection, "--priority", "high", "--idempotency-key", collection, "--wait",
        )  # fmt: skip
        reading = subprocess.Popen(
            patient.argv(*command),
            env=patient.environment(), cwd=line.home.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert asked.wait(PATIENCE_SECONDS)

        # When the person stops it
        reading.send_signal(signal.SIGINT)
        output, errors = reading.communicate(timeout=PATIENCE_SECONDS)

        # Then they are told what is safe, and that the same command goes on
        assert (reading.returncode, output) == (130, "")
        assert "Interrupted. 1 document safe already, in job " in errors
        assert "The same command again goes on where it was cut off." in errors
        job = errors.partition("in job ")[2][:36]

        # And so it does
        come.set()
        resumed = patient.json(*command)
    assert (resumed["job_id"], resumed["state"]) == (job, "succeeded")
    assert (resumed["documents"]["total"], resumed["documents"]["indexed"]) == (2, 2)


def test_an_ingest_succeeds_while_redis_is_away_and_says_what_is_delayed(
    line: CommandLine, notes: Path, collection: str
) -> None:
    without = replace(line, env={"MILLRACE_REDIS__URL": "redis://:nobody@127.0.0.1:1/0"})

    told = without.run("ingest", str(notes), "--collection", collection, "--priority", "high")

    assert "documents  3; they are safe, and on their way" in told.stdout
    assert "waiting: dispatch is delayed: Redis at redis://:***@127.0.0.1:1/0" in told.stderr
    # The stack's own Redis is there: its next look at the ledger sends what was not sent.
    job = line.json("jobs", "--limit", "1")["jobs"][0]
    assert line.json("wait", job["job_id"], "--timeout", "60")["documents"]["indexed"] == 3


def in_a_terminal(line: CommandLine, *arguments: str) -> str:
    """Runs a command in a terminal of 100 columns; returns everything that it drew."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        line.argv(*arguments),
        env={**line.environment(), "TERM": "xterm", "COLUMNS": "100"},
        cwd=line.home.parent, stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        drawn = b""
        try:
            while piece := os.read(ours, 65536):
                drawn += piece
        except OSError:
            pass  # how Linux says that the other end was closed
        os.close(ours)
    assert process.returncode == 0, drawn.decode()
    return drawn.decode().replace("\r\n", "\n")


class slow_page:  # noqa: N801 - read as a function
    """A web page that does not come before `come` is set. Gives (url, asked, come)."""

    def __enter__(self) -> tuple[str, threading.Event, threading.Event]:
        asked, come = threading.Event(), threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.set()
                come.wait(PATIENCE_SECONDS)
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.end_headers()
                self.wfile.write(b"A page about windmills.")

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self._come = come
        return f"http://127.0.0.1:{self._server.server_port}/slow", asked, come

    def __exit__(self, *_: object) -> None:
        self._come.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
