"""What a benchmark is asked, and how its figures are told: medians with their spread, ratios taken round by round."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

Figures = dict[str, Any]

PACKAGES = ("fastembed", "onnxruntime", "tokenizers", "numpy", "celery", "psycopg", "qdrant-client", "qdrant-edge-py")


@dataclass(frozen=True, slots=True)
class Options:
    """corpus: a tree of HTML or Markdown; None: the interpreter's own documentation text. pages, repeats: None: what
    the benchmark finds enough. quick: a smoke test of the benchmark; its figures mean nothing. faults, seed: of
    `chaos`. minutes: of `soak`.
    """

    corpus: Path | None = None
    pages: int | None = None
    repeats: int | None = None
    quick: bool = False
    faults: int | None = None
    seed: int = 1
    minutes: float | None = None

    def take(self, pages: int, repeats: int) -> tuple[int, int]:
        """(pages, repeats): what was asked for, else these; with `quick` few."""
        if self.quick:
            pages, repeats = min(pages, 8), 1
        return self.pages or pages, self.repeats or repeats


def summary(values: Sequence[float], digits: int = 2) -> dict[str, float]:
    """{"median", "min", "max"} of what was measured, one value a round."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def middle(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def ratio(numerators: Sequence[float], denominators: Sequence[float], digits: int = 2) -> float:
    """The median of the ratios of each round: what slows a machine down for a while slows both sides of a round."""
    return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), digits)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """The packages on our side that decide about speed."""
    return {name: version(name) for name in PACKAGES}


def say(line: str) -> None:
    """What is going on, for whoever waits: on standard error, since standard output is for the figures."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def show(figures: Mapping[str, Any], *, as_json: bool) -> str:
    """One JSON object, or a line a figure; what is nested is indented."""
    return json.dumps(figures) + "\n" if as_json else "".join(_lines(figures, ""))


def _lines(figures: Mapping[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for name, value in figures.items():
        label = f"{indent}{name}"
        if isinstance(value, Mapping) and set(value) == {"median", "min", "max"}:
            lines.append(f"{label:36} {value['median']}  ({value['min']} to {value['max']})\n")
        elif isinstance(value, Mapping):
            lines += [f"{label}\n", *_lines(value, indent + "  ")]
        elif isinstance(value, list | tuple):
            lines += [f"{label}\n", *(f"{indent}  {item}\n" for item in value)]
        else:
            lines.append(f"{label:36} {value}\n")
    return lines


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
