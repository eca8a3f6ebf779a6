"""Resident memory of every process of ours under steady work: documents come, change and go, and their number stays.

The slope of each process, after a warm-up, is the median of the slopes between all pairs of its samples (Theil-Sen): a
collection or a large document does not bend it. Above LIMIT MB a minute the run has failed. A pool child that was
replaced is another process: what it took is gone. What is too short to judge is told, and not judged.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks import texts
from benchmarks.report import Figures, Options, say
from benchmarks.resident import memory_of
from benchmarks.stack import LiveStack, live_stack
from pipeline import Client, Document
from pipeline.monitoring.trend import slope

MINUTES = 20.0
LIMIT = 1.0  # MB a minute
# What is loaded, pooled and cached at first use is there by then.
WARM_SHARE, MOST_WARM_SECONDS = 0.25, 300.0
SAMPLE_SECONDS = 2.0
# A process that was there for less of the measured time is not judged.
LEAST_SHARE = 0.5
COLLECTION = "soak"
URIS = 400
CYCLE_SECONDS = 4.0
CHANGED, DELETED, SEARCHES = 6, 3, 3  # in a cycle
TEXT_BYTES = 2_000
# No more jobs than this wait: a machine that is slow for a while is given less.
MOST_JOBS = 3
PATIENCE = 300.0
TELL_SECONDS = 30.0
# What Flower remembers is bounded; it reaches the bound within the warm-up, so that filling it is not taken for a leak.
ENVIRONMENT = {"MILLRACE_FLOWER__MAX_TASKS": "100"}
# Not ours: they have memory of their own that they fill as they are told.
SERVERS = ("postgres", "redis")


@dataclass
class Process:
    """(seconds, MB resident) of one process; pid tells it from the one that it replaced."""

    name: str
    pid: int
    samples: list[tuple[float, float]] = field(default_factory=list)

    def slope(self) -> float:
        """MB a minute."""
        return 60 * slope(self.samples)


def measure(options: Options) -> Figures:
    """mb_a_minute: by process; failed: those above the limit, of which there are to be none."""
    seconds = 60 * (options.minutes or (0.5 if options.quick else MINUTES))
    warm = min(seconds * WARM_SHARE, MOST_WARM_SECONDS)
    found: dict[int, Process] = {}
    done = {"documents": 0, "deleted": 0, "jobs": 0, "searches": 0}
    with live_stack(flower=True, environment=ENVIRONMENT) as stack, stack.client() as client:
        began = time.monotonic()
        ended = threading.Event()
        sampler = threading.Thread(target=_sample, args=(stack, found, began + warm, ended), daemon=True)
        sampler.start()
        try:
            work, told = _work(client, done, options.seed), began
            while (now := time.monotonic()) - began < seconds:
                next(work)
                if now - told >= TELL_SECONDS:
                    told = now
                    say(f"{now - began:.0f} of {seconds:.0f} s: {done}")
                time.sleep(max(0.0, CYCLE_SECONDS - (time.monotonic() - now)))
        finally:
            ended.set()
            sampler.join()
        status = client.status()
    return _told(list(found.values()), seconds - warm) | {
        "minutes": round(seconds / 60, 2),
        "warm_up_minutes": round(warm / 60, 2),
        "done": done,
        "unfinished_jobs": status["unfinished"]["total"],
    }


def _told(found: Sequence[Process], seconds: float) -> Figures:
    judged = [process for process in found if _length(process) >= seconds * LEAST_SHARE]
    by_name: dict[str, dict[str, float]] = {}
    for process in judged:
        sizes = [size for _, size in process.samples]
        by_name[f"{process.name} ({process.pid})"] = {
            "mb_a_minute": round(process.slope(), 3),
            "first_mb": round(statistics.median(sizes[: max(1, len(sizes) // 10)]), 1),
            "last_mb": round(statistics.median(sizes[-max(1, len(sizes) // 10) :]), 1),
            "peak_mb": round(max(sizes), 1),
        }
    return {
        "limit_mb_a_minute": LIMIT,
        "greatest_mb_a_minute": max((one["mb_a_minute"] for one in by_name.values()), default=0.0),
        "failed": sorted(name for name, one in by_name.items() if one["mb_a_minute"] > LIMIT),
        "processes": by_name,
        "too_short_to_judge": sorted(f"{process.name} ({process.pid})" for process in found if process not in judged),
    }


def _length(process: Process) -> float:
    return process.samples[-1][0] - process.samples[0][0]


def _work(client: Client, done: dict[str, int], seed: int) -> Iterator[None]:
    """One cycle of the application at each step."""
    chosen = random.Random(seed)  # noqa: S311 - nothing secret is chosen
    jobs: list[Any] = []
    number = 0
    while True:
        jobs = [job for job in jobs if not client.job(job).finished]
        while len(jobs) >= MOST_JOBS:
            client.wait(jobs.pop(0), timeout=PATIENCE)
        changed = [f"soak/{chosen.randrange(URIS)}" for _ in range(CHANGED)]
        documents = [
            Document(uri, texts.text(seed * 1_000_000 + number + place, TEXT_BYTES))
            for place, uri in enumerate(changed)
        ]
        number += CHANGED
        jobs.append(client.ingest(documents, collection=COLLECTION).job_id)
        gone = [f"soak/{chosen.randrange(URIS)}" for _ in range(DELETED)]
        jobs.append(client.delete(gone, collection=COLLECTION).job_id)
        for _ in range(SEARCHES):
            client.search(texts.text(chosen.randrange(10**6), 60), collection=COLLECTION)
        for name, count in (("documents", CHANGED), ("deleted", DELETED), ("jobs", 2), ("searches", SEARCHES)):
            done[name] += count
        yield


def _sample(stack: LiveStack, found: dict[int, Process], since: float, ended: threading.Event) -> None:
    """Of all our processes and this one, which is the application, from a time on. The vector server without the files
    that it has mapped, which the system takes back as it likes."""
    while not ended.wait(SAMPLE_SECONDS):
        if (now := time.monotonic()) < since:
            continue
        for name, process in _processes(stack):
            size = memory_of(process.pid).get("RssAnon" if name == "vector server" else "VmRSS")
            if size is not None:
                found.setdefault(process.pid, Process(name, process.pid)).samples.append((now, size))


def _processes(stack: LiveStack) -> Iterator[tuple[str, psutil.Process]]:
    yield "application", psutil.Process()
    for name, (main, *_) in stack.pids().items():
        if name in SERVERS:
            continue
        try:
            process = psutil.Process(main)
            if name == "qdrant":
                yield "vector server", process
                continue
            yield name, process
            for child in process.children():
                yield f"{name} child", child
                for reader in child.children(recursive=True):
                    yield f"{name} reader", reader
        except psutil.NoSuchProcess:
            continue
