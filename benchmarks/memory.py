"""Resident memory of every process while a gigabyte is ingested, and while 100,000 tiny files are.

The gigabyte is what trees that large are made of: pages saved with their images and scripts, 1 MB each, and besides
Markdown files of 10 kB. Their texts are drawn from a few hundred: real embedding of a gigabyte of distinct text takes
hours, and a text that came before is not embedded again. Everything else (extraction, chunks, rows, points) is done for
each file, and every pool child has the model loaded and runs it.
"""

from __future__ import annotations

import base64
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks import texts
from benchmarks.report import Figures, Options
from benchmarks.resident import memory_of
from benchmarks.stack import LiveStack, live_stack

GIGABYTE = 1_000_000_000
PAGE_BYTES, PAGE_TEXT_BYTES, PAGE_IMAGES = 1_000_000, 20_000, 12
MARKDOWN_SHARE, MARKDOWN_BYTES = 0.05, 10_000
DISTINCT_TEXTS = 40
TINY_FILES, TINY_BYTES = 100_000, 100
TINY_TO_LARGE = 12  # so many distinct tiny texts for each distinct large one: they are short
SAMPLE_SECONDS = 1.0
NOISE_MB = 30  # what a process may have more at the end than at the beginning without having grown with the tree
CHILD_LIMIT_MB = 600  # what a worker child may take with the model loaded

Samples = list[dict[str, float]]


def measure(options: Options) -> Figures:
    """By process: MB resident in the first and in the last quarter of the run (medians), and the most it ever was."""
    size, tiny, distinct = (PAGE_BYTES, 20, 1) if options.quick else (GIGABYTE, TINY_FILES, DISTINCT_TEXTS)
    with TemporaryDirectory(prefix="millrace-memory-") as directory, live_stack() as stack:
        trees = Path(directory)
        large = _watched(stack, trees / "gigabyte", _write_gigabyte(trees / "gigabyte", size, distinct))
        many = _watched(stack, trees / "tiny", _write_tiny(trees / "tiny", tiny, distinct))
    children = [found["rss_mb"]["general1 child"]["peak"] for found in (large, many)]
    return {
        "worker_child_peak_mb": max(children),
        "worker_child_under_600_mb": max(children) < CHILD_LIMIT_MB,
        "gigabyte": large,
        "tiny_files": many,
    }


def _watched(stack: LiveStack, tree: Path, written: int) -> Figures:
    """Ingests a tree with the command line, and looks at every process meanwhile."""
    started = time.perf_counter()
    client = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "workers.cli.main", "ingest", str(tree)),
            *("--collection", tree.name, "--wait", "--json"),
        ],
        env=stack.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    samples: Samples = []
    ended = threading.Event()
    watcher = threading.Thread(target=_sample, args=(stack, client.pid, samples, ended))
    watcher.start()
    try:
        output, _ = client.communicate()
    finally:
        ended.set()
        watcher.join()
        client.kill()
    job = json.loads(output)
    told = {name: _told([sample[name] for sample in samples if name in sample]) for name in _names(samples)}
    assert job["state"] == "succeeded", job
    return {
        "bytes": written,
        "documents": job["documents"]["indexed"],
        "chunks": job["chunks"],
        "seconds": round(time.perf_counter() - started, 1),
        "rss_mb": told,
        "grew": [name for name, found in told.items() if found["last_quarter"] - found["first_quarter"] > NOISE_MB],
    }


def _names(samples: Samples) -> list[str]:
    return sorted({name for sample in samples for name in sample})


def _told(values: Sequence[float]) -> dict[str, float]:
    quarter = max(1, len(values) // 4)
    return {
        "first_quarter": round(statistics.median(values[:quarter])),
        "last_quarter": round(statistics.median(values[-quarter:])),
        "peak": round(max(values)),
    }


def _sample(stack: LiveStack, client: int, samples: Samples, ended: threading.Event) -> None:
    while not ended.wait(SAMPLE_SECONDS):
        found = {"client": _resident(client)}
        for name, (main, *rest) in stack.pids().items():
            if name == "postgres":
                found |= _postgres([main, *rest])
            elif name in ("qdrant", "redis", "beat"):
                found["vector server" if name == "qdrant" else name] = _resident(main, *rest)
                if name == "qdrant":
                    found["vector server, without its files"] = memory_of(main).get("RssAnon", 0.0)
            else:
                found |= _worker(name, main)
        samples.append(found)


def _worker(name: str, main: int) -> dict[str, float]:
    """The main process, the largest pool child, the largest process that reads documents for one."""
    found = {name: _resident(main)}
    try:
        children = psutil.Process(main).children()
        # One that was just forked still shows the memory of its parent.
        readers = [
            reader.pid
            for child in children
            for reader in child.children(recursive=True)
            if time.time() - reader.create_time() > SAMPLE_SECONDS
        ]
    except psutil.NoSuchProcess:
        return found
    if children:
        found[f"{name} child"] = max(_resident(child.pid) for child in children)
    if readers:
        found[f"{name} reader"] = max(_resident(pid) for pid in readers)
    return found


def _postgres(pids: Sequence[int]) -> dict[str, float]:
    """Its shared memory is counted once, whoever touched it; what belongs to one process alone, for each."""
    memory = [memory_of(pid) for pid in pids]
    own = [sizes.get("RssAnon", 0.0) for sizes in memory]
    shared = max((sizes.get("RssShmem", 0.0) for sizes in memory), default=0.0)
    return {"Postgres, all": sum(own) + shared, "Postgres, largest process without shared memory": max(own, default=0)}


def _resident(*pids: int) -> float:
    return sum(memory_of(pid).get("VmRSS", 0.0) for pid in pids)


def _write_gigabyte(root: Path, size: int, distinct: int) -> int:
    markdown = [texts.text(seed, MARKDOWN_BYTES) for seed in range(distinct)]
    bodies = [texts.text(1000 + seed, PAGE_TEXT_BYTES) for seed in range(distinct)]
    written = 0
    for number in range(int(size * MARKDOWN_SHARE) // MARKDOWN_BYTES):
        written += _write(root, number, ".md", markdown[number % len(markdown)].encode())
    number = 0
    while written < size:
        written += _write(root, number, ".html", _page(bodies[number % len(bodies)], number))
        number += 1
    return written


def _write_tiny(root: Path, count: int, distinct: int) -> int:
    lines = [texts.text(2000 + seed, 1)[:TINY_BYTES].encode() for seed in range(distinct * TINY_TO_LARGE)]
    return sum(_write(root, number, ".md", lines[number % len(lines)]) for number in range(count))


def _write(root: Path, number: int, ending: str, content: bytes) -> int:
    directory = root / f"{number // texts.FILES_PER_DIRECTORY:04}"
    if not directory.is_dir():
        directory.mkdir(parents=True)
    (directory / f"{number % texts.FILES_PER_DIRECTORY:03}{ending}").write_bytes(content)
    return len(content)


def _page(body: str, seed: int) -> bytes:
    """A page as browsers save it: text between images and scripts that are in the page itself."""
    chosen = random.Random(seed)  # noqa: S311 - nothing secret is chosen
    blocks = body.split("\n\n")
    image_bytes = (PAGE_BYTES - len(body)) * 3 // 4 // (PAGE_IMAGES + 1)
    parts = ['<!DOCTYPE html><html><head><title>A saved page</title><script>var state="', _noise(chosen, image_bytes)]
    parts.append('"</script></head><body><nav><a href="/">Home</a> <a href="/all">All pages</a></nav><main>')
    every = max(1, len(blocks) // PAGE_IMAGES)
    for place, block in enumerate(blocks):
        parts.append(f"<h2>{escape(block.lstrip('# '))}</h2>" if block.startswith("#") else f"<p>{escape(block)}</p>")
        if place % every == 0:
            parts.append(f'<img alt="" src="data:image/png;base64,{_noise(chosen, image_bytes)}">')
    parts.append("</main></body></html>")
    return "".join(parts).encode()


def _noise(chosen: random.Random, size: int) -> str:
    return base64.b64encode(chosen.randbytes(size)).decode()
