"""python -m benchmarks NAME [--json] [--corpus DIR] [--pages N] [--repeats N] [--quick] [--faults N --seed S]
[--minutes M]"""

from __future__ import annotations

import argparse
import signal
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.report import Figures, Options, show

# name -> the module whose `measure(options)` returns the figures. Loaded when asked for: each needs other things.
BENCHMARKS = {
    "audit": "benchmarks.audit",
    "chaos": "benchmarks.chaos",
    "collector": "benchmarks.collector",
    "embed": "benchmarks.embed",
    "enqueue": "benchmarks.enqueue",
    "extraction": "benchmarks.extraction",
    "garbage": "benchmarks.garbage",
    "ingest": "benchmarks.ingest",
    "memory": "benchmarks.memory",
    "monitoring": "benchmarks.monitoring",
    "openai": "benchmarks.openai",
    "overhead": "benchmarks.overhead",
    "precision": "benchmarks.precision",
    "priority": "benchmarks.priority",
    "soak": "benchmarks.soak",
    "unchanged": "benchmarks.unchanged",
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="The figures of docs/performance.md.")
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output and nothing else")
    parser.add_argument("--corpus", type=Path, help="a tree of HTML or Markdown; default: Python's own documentation")
    parser.add_argument("--pages", type=int, help="pages of the corpus, at most")
    parser.add_argument("--repeats", type=int, help="rounds, in each of which every side has its turn")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few pages, one round; no figure to quote")
    parser.add_argument("--faults", type=int, help="of chaos: so many faults that hit work")
    parser.add_argument("--seed", type=int, default=1, help="of chaos: what is written, and which faults come")
    parser.add_argument("--minutes", type=float, help="of soak: how long it works")
    given = parser.parse_args(arguments)
    for name, number in (("--pages", given.pages), ("--repeats", given.repeats), ("--faults", given.faults)):
        if number is not None and number < 1:
            parser.error(f"{name} must be at least 1")
    if given.minutes is not None and given.minutes <= 0:
        parser.error("--minutes must be above 0")
    if given.corpus is not None and not given.corpus.is_dir():
        parser.error(f"--corpus: {given.corpus} is no directory")
    figures = measure(
        given.name,
        Options(given.corpus, given.pages, given.repeats, given.quick, given.faults, given.seed, given.minutes),
    )
    sys.stdout.write(show(figures, as_json=given.json))
    return 1 if figures.get("failed") else 0


def measure(name: str, options: Options) -> Figures:
    """The figures of one benchmark."""
    found: Figures = import_module(BENCHMARKS[name]).measure(options)
    return found


if __name__ == "__main__":
    # Told to stop, it stops its servers and removes its directories, as it does at its end.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
