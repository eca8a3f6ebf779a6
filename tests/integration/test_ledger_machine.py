"""Whatever happens in whatever order, every document ends up as it was wanted last, once.

MILLRACE_MACHINE_RUNS says how many runs of 40 steps are tried, by default eight and always the same (CI: sixty);
with MILLRACE_FUZZ_RANDOM every call tries others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import run_state_machine_as_test
from ledger_checks import TABLES, watch_steps
from ledger_machine import LedgerMachine
from paused_stories import SeamedEmbedder, SeamedStore, with_seams
from workshop import Workshop, chunked, with_work

from pipeline import Settings

RUNS = int(os.environ.get("MILLRACE_MACHINE_RUNS", "8"))
STEPS = 40
pytestmark = pytest.mark.timeout(300 + 15 * RUNS)


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    """Leases that never run out by themselves, two chunks a batch, two documents a batch, few attempts."""
    ingest = settings.ingest.model_copy(update={"embed_chunks": 2, "prepare_documents": 2, "group_documents": 2})
    patient = with_work(settings, lease_seconds=3600.0, heartbeat_seconds=3600.0, stall_seconds=3600.0)
    patient = with_work(patient, backoff_seconds=0.001, max_attempts=2, max_losses=3)
    made = Workshop(chunked(patient.model_copy(update={"ingest": ingest})), SeamedEmbedder(), vectors=SeamedStore())
    with_seams(made.services)
    watch_steps(made)
    yield made
    made.close()


def test_in_any_order_nothing_is_lost_nothing_is_done_twice_and_every_answer_is_whole(workshop: Workshop) -> None:
    def machine() -> LedgerMachine:
        workshop.sql(f"TRUNCATE {TABLES} RESTART IDENTITY CASCADE")
        workshop.services.searcher.seen.clear()
        return LedgerMachine(workshop)

    random = bool(os.environ.get("MILLRACE_FUZZ_RANDOM"))
    run_state_machine_as_test(
        cast(type[LedgerMachine], machine),
        settings=hypothesis_settings(
            max_examples=RUNS,
            stateful_step_count=STEPS,
            derandomize=not random,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )
