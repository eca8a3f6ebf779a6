"""Whatever the order of ingest, update, delete, crash and garbage collection: nothing that is needed goes, and in the
end nothing unneeded is left.

MILLRACE_MACHINE_RUNS says how many runs of 30 steps are tried, by default three; with MILLRACE_FUZZ_RANDOM every call
tries others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from garbage_machine import NEVER, GarbageMachine
from machine_runs import machine_workshop, run_machine
from workshop import Workshop, with_work

from pipeline import Settings

RUNS = int(os.environ.get("MILLRACE_MACHINE_RUNS", "3"))
STEPS = 30
pytestmark = pytest.mark.timeout(600 + 15 * RUNS)


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    """As that of the ledger's machine; everything that can get old is so at once."""
    garbage = settings.garbage.model_copy(update={"embeddings_days": NEVER, "dead_letters_days": NEVER})
    aged = with_work(settings, recontract_seconds=0.0).model_copy(update={"garbage": garbage})
    made = machine_workshop(aged)
    yield made
    made.close()


def test_in_any_order_nothing_needed_goes_and_nothing_unneeded_stays(workshop: Workshop) -> None:
    run_machine(GarbageMachine, workshop, RUNS, STEPS, "walks")
