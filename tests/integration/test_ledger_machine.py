"""Whatever happens in whatever order, every document ends up as it was wanted last, once.

MILLRACE_MACHINE_RUNS says how many runs of 40 steps are tried, by default five and always the same (CI: sixty);
with MILLRACE_FUZZ_RANDOM every call tries others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from ledger_machine import LedgerMachine
from machine_runs import machine_workshop, run_machine
from workshop import Workshop

from pipeline import Settings

RUNS = int(os.environ.get("MILLRACE_MACHINE_RUNS", "5"))
STEPS = 40
pytestmark = pytest.mark.timeout(600 + 15 * RUNS)


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = machine_workshop(settings)
    yield made
    made.close()


def test_in_any_order_nothing_is_lost_nothing_is_done_twice_and_every_answer_is_whole(workshop: Workshop) -> None:
    run_machine(LedgerMachine, workshop, RUNS, STEPS)
