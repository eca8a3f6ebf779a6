"""What a duty is: one function that beat asks for on a timer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.assembly import Services
from pipeline.duties import Bounds
from pipeline.ledger.duties import Definition

# What a run did, by name: rows, bytes, or 0 and 1 for no and yes.
Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Duty:
    """name: of its row, and of its message behind `duty.`. What an operator has set in its row wins.

    interval_seconds: between two runs; limit: rows of one step, at most; budget_seconds: a run ends after the step in
    which they are over. run: returns its counts, and keeps its steps bounded. dry_runs: it honours `bounds.dry_run`.
    """

    name: str
    interval_seconds: float
    limit: int
    run: Callable[[Services, Bounds], Counts]
    budget_seconds: float
    dry_runs: bool = False

    @property
    def task(self) -> str:
        return f"duty.{self.name}"

    @property
    def what(self) -> str:
        """What it does: the first sentence of its function's docstring."""
        told = " ".join((inspect.getdoc(self.run) or "").split("\n\n", 1)[0].split())
        sentence, stop, _ = told.partition(". ")
        return sentence + stop.strip()

    @property
    def definition(self) -> Definition:
        return Definition(
            self.name, self.interval_seconds, self.limit, self.budget_seconds, self.dry_runs, what=self.what
        )
