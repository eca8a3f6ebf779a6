"""Python's garbage collector in a pool child: as it comes, and with what tasks/collector.py does about it, in turns.

Each side is a process that imports what a worker does, and a child forked from it, which splits documents, counts
tokens, makes vectors (constant ones), BM25 terms and points of them, and sends nothing anywhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.collector_loop import SIDES
from benchmarks.constant import ConstantVectors
from benchmarks.report import Figures, Options, ratio, say, summary

DOCUMENTS = 1000
ROUNDS = 5


def measure(options: Options) -> Figures:
    """of_as_python_has_it: chunks for each second of CPU, in shares of those of the first side; medians of rounds.

    collecting_share: of the time that the child works. copied_mb: of what the child shared with its parent when it was
    forked, and has a copy of now. private_mb: all that is its own, the model included.
    """
    documents, rounds = options.take(DOCUMENTS, ROUNDS)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with TemporaryDirectory(prefix="millrace-collector-") as directory:
        models = Path(directory) / "models"
        ConstantVectors(models).count_tokens(["built once, for all of them"])
        for number in range(rounds):
            for side in SIDES:
                say(f"round {number + 1} of {rounds}: {side}")
                found[side].append(_run(side, documents, models))
    first = [run["chunks_per_cpu_second"] for run in found["as_python_has_it"]]
    return {
        "documents": documents,
        "chunks": found["as_python_has_it"][0]["chunks"],
        **{
            side: {
                "chunks_per_cpu_second": summary([run["chunks_per_cpu_second"] for run in runs], 0),
                "of_as_python_has_it": ratio([run["chunks_per_cpu_second"] for run in runs], first, 3),
                "collecting_share": summary([run["collecting_share"] for run in runs], 4),
                "full_collections": runs[0]["collections"][2],
                "full_collections_seconds": summary([run["full_collections_seconds"] for run in runs], 3),
                "one_full_collection_ms": summary([run["one_full_collection_ms"] for run in runs], 1),
                "copied_mb": summary([run["copied_mb"] for run in runs], 1),
                "private_mb": summary([run["private_mb"] for run in runs], 1),
            }
            for side, runs in found.items()
        },
    }


def _run(side: str, documents: int, models: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.collector_loop", side, str(documents), str(models)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told
