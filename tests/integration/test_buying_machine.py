"""Whatever happens in whatever order, every text is paid for once, but for what the ledger shows, and nothing is lost.

MILLRACE_MACHINE_RUNS says how many runs of 40 steps are tried, by default three; with MILLRACE_FUZZ_RANDOM every call
tries others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from buying_machine import TABLES, BuyingMachine
from machine_runs import machine_workshop, run_machine
from paid_embedder import PaidEmbedder, paying
from paused_stories import SeamedEmbedder
from workshop import Workshop

from pipeline import Settings

RUNS = int(os.environ.get("MILLRACE_MACHINE_RUNS", "3"))
STEPS = 40
pytestmark = pytest.mark.timeout(600 + 15 * RUNS)


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    """As that of the ledger's machine, with a provider that has the local model, too."""
    paid = paying(settings, same_as={"constant": "constant"})
    made = machine_workshop(paid, PaidEmbedder(paid.openai, model=SeamedEmbedder().spec))
    yield made
    made.close()


def test_in_any_order_every_text_is_paid_for_once_but_for_what_the_ledger_shows(workshop: Workshop) -> None:
    run_machine(BuyingMachine, workshop, RUNS, STEPS, *TABLES)
