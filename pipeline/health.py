"""The state of the whole: what is missing, what waits, who works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.assembly import Services
from pipeline.errors import BrokerUnavailable
from pipeline.ledger import backlog, fleet, jobs, schedules


def health(services: Services) -> dict[str, Any]:
    """Health and its issues, queues (messages and ready batches), jobs by state, live workers."""
    with services.ledger.transaction() as own:
        depth = backlog.depth(own)
        by_state = jobs.by_state(own)
        alive = fleet.alive(own)
        failing = schedules.failing(own)
    issues: list[str] = []
    try:
        messages: Mapping[str, int | None] = services.broker.depths()
    except BrokerUnavailable as error:
        messages = {}
        issues.append(str(error))
    if not services.vectors.alive():
        issues.append("Qdrant does not answer")
    consumed = {queue for row in alive for queue in row["queues"].split(",")}
    issues += [f"no live worker consumes the queue {queue}" for queue in depth if queue not in consumed]
    issues += [
        f"schedule {row['id']} ({row['source']}) failed {row['consecutive_failures']} times in a row: "
        f"{row['last_error']}"
        for row in failing
    ]
    return {
        "health": {"score": max(0, 100 - 25 * len(issues)), "issues": issues},
        "queues": {queue: {"messages": messages.get(queue), **found} for queue, found in depth.items()},
        "jobs": {state: by_state.get(state, 0) for state in ("queued", "running", "paused")} | by_state,
        "workers": [
            {"id": row["id"], "host": row["host"], "pid": row["pid"], "queues": row["queues"].split(",")}
            for row in alive
        ],
    }
