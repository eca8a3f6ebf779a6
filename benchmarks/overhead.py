"""What Millrace costs beside the work itself: embedding replaced by constant vectors, two worker processes.

Beside it run the *bare stages* of the same files in two processes (see bare.py), and LlamaIndex and Haystack in one
process each, in turns; what counts is the ratio of each round. Every round has texts of its own, so that nothing is in
the ledger already. Then one more round with the seconds of CPU taken apart.

The peers read, split and keep vectors in memory, each at its defaults: they count no tokens, have no BM25 and no index,
and write nothing down. Their chunks are of other sizes, so they are compared by documents.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import peers, stages, texts
from benchmarks.bare import bare_stages
from benchmarks.report import Figures, Options, ratio, summary
from benchmarks.stack import LiveStack, live_stack

FILES = 400  # 7,000 chunks: at 10,000 the vector server would begin to optimise one side while the other is measured
BYTES = 10_000
ROUNDS = 5
PROCESSES = 2
WARM_FILES = 60  # both sides load what they load at their first document
PATIENCE = 600.0
PEERS = ("llama_index", "haystack")


def measure(options: Options) -> Figures:
    """of_bare_stages: chunks a second of Millrace, in shares of those of the bare stages; the median of the rounds."""
    files, rounds = options.take(FILES, ROUNDS)
    warm = 2 if options.quick else WARM_FILES
    ours: list[float] = []
    bare: list[float] = []
    others_seconds: dict[str, list[float]] = {} if options.quick else {name: [] for name in PEERS}
    chunks = 0
    with TemporaryDirectory(prefix="millrace-overhead-") as directory:
        place = Path(directory)
        with (
            live_stack(constant=True, concurrency=PROCESSES) as stack,
            bare_stages(stack.settings, PROCESSES) as others,
        ):
            for number in range(-1, rounds):
                tree = place / f"round{number + 1}"
                texts.write_tree(tree, number * 1_000_000, warm if number < 0 else files, BYTES)
                chunks, seconds = ingest(stack, tree, f"ours{number + 1}")
                started = time.perf_counter()
                same = others.run(tree, f"bare{number + 1}")
                bare_seconds = time.perf_counter() - started
                assert same == chunks, f"{same} chunks of the bare stages, {chunks} of ours"
                if number < 0:
                    continue
                ours.append(chunks / seconds)
                bare.append(chunks / bare_seconds)
                for name, taken in others_seconds.items():
                    job = peers.Job("defaults", place, tree, place / "none")
                    taken.append(peers.run(f"constant_{name}", job, place).seconds)
        table = _where_the_time_goes(place, files, warm)
    return {
        "files_a_round": files,
        "chunks_a_round": chunks,
        "processes": PROCESSES,
        "chunks_per_second": summary(ours, 0),
        "bare_stages_chunks_per_second": summary(bare, 0),
        "of_bare_stages": ratio(ours, bare),
        "documents_per_second": summary([rate * files / chunks for rate in ours], 0),
        **{
            f"{name}_documents_per_second": summary([files / seconds for seconds in taken], 0)
            for name, taken in others_seconds.items()
        },
        **{
            f"ratio_{name}": ratio([rate * files / chunks for rate in ours], [files / seconds for seconds in taken])
            for name, taken in others_seconds.items()
        },
        "cpu_seconds_per_1000_chunks": table,
    }


def ingest(stack: LiveStack, tree: Path, collection: str) -> tuple[int, float]:
    """Chunks, and seconds from the call to the end of the job by the ledger's clock."""
    with stack.client() as client:
        started = time.perf_counter()
        job = client.ingest(tree, collection=collection)
        called = time.perf_counter() - started
        ended = client.wait(job.job_id, timeout=PATIENCE)
    assert ended.state == "succeeded", ended
    return ended.chunks["indexed"], max(ended.seconds, called)


def _where_the_time_goes(place: Path, files: int, warm_files: int) -> dict[str, dict[str, float]]:
    """Seconds of CPU per 1,000 chunks, by stage and by process."""
    written = place / "stages"
    written.mkdir()
    tree, warm = place / "watched", place / "warm"
    texts.write_tree(warm, 900_000_000, warm_files, BYTES)
    texts.write_tree(tree, 910_000_000, files, BYTES)
    with (
        live_stack(
            constant=True, concurrency=PROCESSES, environment={stages.DIRECTORY_VARIABLE: str(written)}
        ) as stack,
        bare_stages(stack.settings, PROCESSES) as others,
    ):
        ingest(stack, warm, "warm")
        others.run(warm, "bare-warm")
        before, processes = stages.read(written), stack.cpu_seconds()
        client = time.process_time()
        chunks, _ = ingest(stack, tree, "watched")
        client = time.process_time() - client
        time.sleep(1.0)  # the last task writes its seconds down when it has ended
        inside = _minus(stages.read(written), before)
        outside = _minus(stack.cpu_seconds(), processes)
        processes, bare = stack.cpu_seconds(), others.cpu_seconds()
        others.run(tree, "bare-watched")
        of_bare = _minus(stack.cpu_seconds(), processes)
        beside = {"two processes": others.cpu_seconds() - bare}
        beside |= {"vector server": of_bare["qdrant"], "Postgres": of_bare["postgres"]}
    workers = outside.pop("general1") + outside.pop("express", 0.0)
    table = {
        **inside,
        "extraction children, Celery, heartbeats": workers - sum(inside.values()),
        "client": client,
        "vector server": outside.pop("qdrant"),
        "Postgres": outside.pop("postgres"),
        "Redis": outside.pop("redis"),
        "beat": outside.pop("beat"),
    }
    return {"millrace": _per_1000(table, chunks), "bare_stages": _per_1000(beside, chunks)}


def _per_1000(seconds: Mapping[str, float], chunks: int) -> dict[str, float]:
    all_of_them = {**seconds, "all": sum(seconds.values())}
    return {name: round(value / chunks * 1000, 3) for name, value in all_of_them.items()}


def _minus(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
