"""A full batch of the Batch API: 50,000 texts of real jobs are packed, uploaded and harvested by one process.

A stack's workers cut the documents and order the texts; the batch itself is carried out here, by the very functions of
the duty and the task, in a process that does nothing else, so that what it takes is its own. The stand-in server makes
the results; that time is the server's and not counted.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import texts
from benchmarks.report import Figures, Options, say
from benchmarks.resident import memory_of
from benchmarks.stack import LiveStack, live_stack
from benchmarks.stand_in import stand_in
from pipeline import Client, Document
from pipeline.assembly import Services
from pipeline.settings import Settings

if TYPE_CHECKING:
    from openai_server import OpenAIServer

    from pipeline.ledger.remote import RemoteBatch
    from pipeline.openai_batch.service import BatchService

INPUTS = 50_000
QUICK_INPUTS = 200
PARAGRAPHS = 200  # of a document
PARAGRAPH_BYTES = 400
CHUNK_TOKENS = 128
COLLECTION = "bought"
LIMIT_MB = 300
PATIENCE_SECONDS = 1200.0


def measure(options: Options) -> Figures:
    """Seconds to pack, to upload (its file is written first) and to harvest; MB of the file and of the result; the
    most memory of the process over what it had before it began."""
    inputs = QUICK_INPUTS if options.quick else options.pages or INPUTS
    with stand_in() as server:
        server.control.timing(in_progress=None)
        with live_stack(
            openai={"api_key": server.key, "base_url": server.url, "batch": "on"},
            openai_batch={"inputs": inputs, "linger_seconds": 0.0, "enqueued_tokens": 1_000_000_000},
            chunking={"max_tokens": CHUNK_TOKENS},
            embedding={"provider": "openai_batch"},
        ) as stack:
            _order(stack, inputs)
            return {"inputs": inputs, **carried_out(stack.settings, server)}


def _order(stack: LiveStack, inputs: int) -> None:
    """So many texts wait for the Batch API, and some more; nobody packs them."""
    say(f"{inputs} texts are ordered")
    with closing(stack.services()) as services:
        with services.ledger.transaction() as connection:
            connection.execute(
                """INSERT INTO duties (name, enabled) VALUES ('openai.poll', false)
                   ON CONFLICT (name) DO UPDATE SET enabled = false"""
            )
        documents = inputs // (PARAGRAPHS // 2) + 1
        Client(services=services).ingest(
            (Document(f"text/{number}", _text(number)) for number in range(documents)), collection=COLLECTION
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while _waiting(services) < inputs:
            assert time.monotonic() < deadline, f"{_waiting(services)} of {inputs} texts are ordered"
            time.sleep(0.5)


def _waiting(services: Services) -> int:
    with services.ledger.transaction() as connection:
        row = connection.execute("SELECT count(*) AS number FROM purchases WHERE epoch IS NULL").fetchone()
    return int(row["number"]) if row else 0


def _text(number: int) -> str:
    """A document of paragraphs, no two of all documents alike."""
    words = texts.text(number, PARAGRAPHS * PARAGRAPH_BYTES).split()
    each = max(1, len(words) // PARAGRAPHS)
    return "\n\n".join(
        f"Paragraph {part} of {number}. " + " ".join(words[part * each : (part + 1) * each])
        for part in range(PARAGRAPHS)
    )


def carried_out(settings: Settings, server: OpenAIServer) -> Figures:
    """One batch of what waits in the ledger, from packing it to its end. The server's batches do not move by
    themselves."""
    with _process(settings) as pipe:
        said = _told(pipe)
        say(f"packed in {said['pack_seconds']} s, uploaded in {said['upload_seconds']} s; the server works on it")
        [batch] = server.control.batches()
        server.control.finish(batch["id"])
        [batch] = server.control.batches()
        sizes = {file["id"]: file["bytes"] for file in server.control.files()}
        pipe.send("go on")
        said |= _told(pipe)
    over = said["peak_mb"] - said["baseline_mb"]
    assert said["state"] == "closed", said
    assert said["done"] == batch["request_counts"]["completed"] == said["inputs"], said
    billed = sum(bill.times for bill in server.control.billing())
    return {
        **said,
        "input_mb": round(sizes[batch["input_file_id"]] / 1e6, 2),
        "result_mb": round(sizes[batch["output_file_id"]] / 1e6, 2),
        "lines_per_second": round(said["inputs"] / said["harvest_seconds"]),
        "billed_twice": billed - said["inputs"],
        "files_left": len(server.control.files()),
        "memory_over_baseline_mb": round(over, 1),
        "memory_under_300_mb": over < LIMIT_MB,
    }


def _told(pipe: Pipe) -> dict[str, Any]:
    assert pipe.poll(PATIENCE_SECONDS), "the process does not answer"
    found: dict[str, Any] = pipe.recv()
    return found


@contextmanager
def _process(settings: Settings) -> Iterator[Pipe]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_carry, args=(theirs, settings), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.terminate()
        process.join()


# -- the process ---------------------------------------------------------------------------------------------------


class _Clock:
    """When each boundary of the story was reached."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def mark(self, name: str) -> None:
        self._at.setdefault(name, time.monotonic())

    def between(self, first: str, last: str) -> float:
        return round(self._at[last] - self._at[first], 2)


def _carry(pipe: Pipe, settings: Settings) -> None:
    from pipeline.openai_batch.packing import pack
    from pipeline.openai_batch.server import Server
    from pipeline.openai_batch.service import BatchService

    clock = _Clock()
    with closing(Services(settings)) as services, closing(Server(settings.openai)) as server:
        service = BatchService(
            services.ledger, settings.openai, settings.openai_batch, settings.cost, server, at=clock.mark
        )
        _waiting(services)
        server.retrieve("batch_of_nobody")  # all that is opened and imported belongs to the baseline
        baseline = _baseline()
        clock.mark("began")
        [remote_id] = pack(services.ledger, settings.openai, settings.openai_batch, most=1)
        clock.mark("packed")
        row = _carry_on(services, service, remote_id)
        assert row.state == "submitted", row
        pipe.send(
            {
                "pack_seconds": clock.between("began", "packed"),
                "upload_seconds": clock.between("upload: intended", "upload: asked"),
                "create_seconds": clock.between("create: intended", "create: asked"),
                "upload_peak_mb": round(_peak() - baseline, 1),
            }
        )
        pipe.recv()
        row = _carry_on(services, service, remote_id)
        pipe.send(
            {
                "state": row.state,
                "inputs": row.inputs,
                "done": row.done,
                "harvest_seconds": clock.between("read: intended", "read: asked"),
                "baseline_mb": round(baseline, 1),
                "peak_mb": round(_peak(), 1),
            }
        )


def _carry_on(services: Services, service: BatchService, remote_id: int) -> RemoteBatch:
    """Does what there is to do now, whenever it would have been due."""
    from pipeline.ledger import remote

    with services.ledger.transaction() as connection:
        connection.execute("UPDATE remote_batches SET next_at = clock_timestamp() WHERE id = %s", (remote_id,))
        held = remote.claim(connection, remote_id, "the benchmark", PATIENCE_SECONDS)
    assert held is not None
    service.carry_on(held, lambda: None)
    with services.ledger.transaction() as connection:
        return remote.find(connection, remote_id)


def _baseline() -> float:
    """MB of this process now; from here on its peak is measured."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_of(os.getpid())["VmRSS"]


def _peak() -> float:
    return memory_of(os.getpid())["VmHWM"]
