"""A worker alone, with no beat anywhere: what a dead worker left behind is taken up all the same."""

from __future__ import annotations

import os
import time
from pathlib import Path

from services import RedisServer
from workshop import Workshop

from pipeline import Settings
from pipeline.ledger import batches
from pipeline.testing import ConstantEmbedder
from workers.embedded.part import Part, run_alone
from workers.embedded.stack import address_variables
from workers.programs import APP, GENERAL_QUEUES, worker_argv

TESTS = Path(__file__).parents[1]
PATIENCE_SECONDS = 60.0


def test_without_beat_workers_ask_for_duties_and_work_of_a_dead_worker_is_rescued(
    settings: Settings, redis_server: RedisServer, tmp_path: Path
) -> None:
    # Given a batch that a worker holds which does not live any more, and whose message it has taken
    workshop = Workshop(settings, ConstantEmbedder())
    workshop.put({"a": "about apples", "b": "about bees"})
    (ready,) = workshop.ready()
    with workshop.services.ledger.transaction() as connection:
        claimed = batches.claim(connection, ready.id, "worker-1@gone#dead/17", 0.1)
    assert claimed is not None
    redis_server.flush()

    # When a worker starts, and no beat
    addresses = {
        name: {"url": getattr(settings, name).url.get_secret_value()} for name in ("postgres", "redis", "qdrant")
    }
    part = Part(
        "worker",
        tuple("poison_worker" if word == APP else word for word in worker_argv("general", GENERAL_QUEUES, 1)),
        tmp_path,
        {
            **{name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")},
            **address_variables(addresses),
            "MILLRACE_HOME": str(settings.home),
            "PYTHONPATH": str(TESTS),
        },
        ready=lambda: bool(workshop.sql("SELECT 1 FROM workers")),
    )
    with run_alone(part, tmp_path / "worker.log"):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while workshop.texts() != {"a": ["about apples"], "b": ["about bees"]}:
            assert time.monotonic() < deadline, (tmp_path / "worker.log").read_text("utf-8")
            time.sleep(0.1)

        # Then its work is done, once, and reconcile goes on every few seconds
        before = workshop.value("SELECT epoch FROM duties WHERE name = 'reconcile'")
        began = time.monotonic()
        while workshop.value("SELECT epoch FROM duties WHERE name = 'reconcile'") < before + 3:
            assert time.monotonic() - began < PATIENCE_SECONDS, "three runs should take nine seconds"
            time.sleep(0.1)
    assert workshop.client.beats() == []
    assert workshop.audit() == {"expected": 2, "present": 2}
    workshop.close()
