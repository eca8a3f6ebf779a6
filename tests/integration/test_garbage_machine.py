"""Whatever the order of ingest, update, delete, crash and garbage collection: nothing that is needed goes, and in the
end nothing unneeded is left.

MILLRACE_MACHINE_RUNS says how many runs of 30 steps are tried, by default five; with MILLRACE_FUZZ_RANDOM every call
tries others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import cast

import pytest
from garbage_machine import NEVER, GarbageMachine
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import run_state_machine_as_test
from ledger_checks import TABLES, watch_steps
from paused_stories import SeamedEmbedder, SeamedStore, with_seams
from workshop import Workshop, chunked, with_work

from pipeline import Settings

RUNS = int(os.environ.get("MILLRACE_MACHINE_RUNS", "5"))
STEPS = 30
pytestmark = pytest.mark.timeout(300 + 15 * RUNS)


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    """As that of the ledger's machine; everything that can get old is so at once."""
    ingest = settings.ingest.model_copy(update={"embed_chunks": 2, "prepare_documents": 2, "group_documents": 2})
    garbage = settings.garbage.model_copy(update={"embeddings_days": NEVER, "dead_letters_days": NEVER})
    patient = with_work(settings, lease_seconds=3600.0, heartbeat_seconds=3600.0, stall_seconds=3600.0)
    patient = with_work(patient, backoff_seconds=0.001, max_attempts=2, max_losses=3, recontract_seconds=0.0)
    patient = patient.model_copy(update={"ingest": ingest, "garbage": garbage})
    made = Workshop(chunked(patient), SeamedEmbedder(), vectors=SeamedStore())
    with_seams(made.services)
    watch_steps(made)
    yield made
    made.close()


def test_in_any_order_nothing_needed_goes_and_nothing_unneeded_stays(workshop: Workshop) -> None:
    def machine() -> GarbageMachine:
        workshop.sql(f"TRUNCATE {TABLES}, walks RESTART IDENTITY CASCADE")
        workshop.services.searcher.seen.clear()
        return GarbageMachine(workshop)

    random = bool(os.environ.get("MILLRACE_FUZZ_RANDOM"))
    run_state_machine_as_test(
        cast(type[GarbageMachine], machine),
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
