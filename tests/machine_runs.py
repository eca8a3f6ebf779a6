"""How the state machines are run: in a workshop whose claims are held until the machine lets go of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import cast

from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from ledger_checks import TABLES, watch_steps
from paused_stories import SeamedEmbedder, SeamedStore, with_seams
from workshop import Workshop, chunked, with_work

from pipeline import Settings
from pipeline.embedding.base import Embedder


def machine_workshop(settings: Settings, paid: Embedder | None = None) -> Workshop:
    """Leases that never run out by themselves, two chunks a batch, two documents a batch, few attempts."""
    ingest = settings.ingest.model_copy(update={"embed_chunks": 2, "prepare_documents": 2, "group_documents": 2})
    patient = with_work(settings, lease_seconds=3600.0, heartbeat_seconds=3600.0, stall_seconds=3600.0)
    patient = with_work(patient, backoff_seconds=0.001, max_attempts=2, max_losses=3)
    small = chunked(patient.model_copy(update={"ingest": ingest}))
    made = Workshop(small, SeamedEmbedder(), vectors=SeamedStore(), paid=paid)
    with_seams(made.services)
    watch_steps(made)
    return made


def run_machine(
    make: Callable[[Workshop], RuleBasedStateMachine], workshop: Workshop, runs: int, steps: int, *more_tables: str
) -> None:
    """So many runs of so many steps, each on empty tables; always the same ones unless MILLRACE_FUZZ_RANDOM is set."""

    def machine() -> RuleBasedStateMachine:
        workshop.sql(f"TRUNCATE {', '.join((TABLES, *more_tables))} RESTART IDENTITY CASCADE")
        workshop.services.searcher.seen.clear()
        return make(workshop)

    run_state_machine_as_test(
        cast(type[RuleBasedStateMachine], machine),
        settings=hypothesis_settings(
            max_examples=runs,
            stateful_step_count=steps,
            derandomize=not os.environ.get("MILLRACE_FUZZ_RANDOM"),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )
