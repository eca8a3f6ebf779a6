"""The state of the whole: what is missing, what waits, who works."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pipeline.assembly import Services
from pipeline.broker import CONTROL_QUEUE
from pipeline.errors import BrokerUnavailable, VectorsUnavailable
from pipeline.ledger import backlog, circuits, fleet, jobs, pauses, schedules
from pipeline.ledger.diagnosis import diagnose
from pipeline.lifecycle import FINISHED_JOBS
from pipeline.rebuild import lost_collections
from pipeline.status import average_rate, job_status, with_rate

# Unfinished jobs that are told of one by one, the oldest first.
_SHOWN_JOBS = 20


def health(services: Services) -> dict[str, Any]:
    """Health and its issues, queues (messages and ready batches), jobs by state, the first of the unfinished ones with
    their diagnoses, live workers."""
    with services.ledger.transaction() as own:
        depth = backlog.depth(own)
        by_state = jobs.by_state(own)
        unfinished = jobs.unfinished(own, _SHOWN_JOBS)
        diagnoses = diagnose(own, unfinished)
        alive = fleet.alive(own)
        failing = schedules.failing(own)
        paused = pauses.listing(own)
        away = circuits.listing(own)
    issues: list[str] = []
    try:
        messages: Mapping[str, int | None] = services.broker.depths()
    except BrokerUnavailable as error:
        messages = {}
        issues.append(str(error))
    if not services.vectors.alive():
        issues.append("Qdrant does not answer")
    else:
        with suppress(VectorsUnavailable):  # gone since
            issues += [
                f"collection {name} was found missing in Qdrant; run `millrace rebuild {name}`"
                for name in lost_collections(services.ledger, services.vectors)
            ]
    # Away it is told of above; what is left is a disk that is full, or one that has just answered again.
    issues += [
        found.error for found in away if found.dependency != circuits.VECTORS or "Qdrant does not answer" not in issues
    ]
    consumed = {queue for row in alive for queue in row["queues"].split(",")}
    issues += [f"no live worker consumes the queue {queue}" for queue in depth if queue not in consumed]
    if CONTROL_QUEUE not in consumed:
        issues.append(f"no live worker consumes the queue {CONTROL_QUEUE}: what is left behind is not taken up")
    issues += [
        f"schedule {row['id']} ({row['source']}) failed {row['consecutive_failures']} times in a row: "
        f"{row['last_error']}"
        for row in failing
    ]
    return {
        "health": {"score": max(0, 100 - 25 * len(issues)), "issues": issues},
        "queues": {queue: {"messages": messages.get(queue), **found} for queue, found in depth.items()},
        "jobs": {state: by_state.get(state, 0) for state in ("queued", "running", "paused")} | by_state,
        "unfinished": {
            "total": sum(count for state, count in by_state.items() if state not in FINISHED_JOBS),
            "jobs": [
                with_rate(job_status(job, (), waiting), job, average_rate(job)).to_json()
                for job, waiting in zip(unfinished, diagnoses, strict=True)
            ],
        },
        "paused": [pause.to_json() for pause in paused],
        "circuits": [found.to_json() for found in away],
        "workers": [
            {"id": row["id"], "host": row["host"], "pid": row["pid"], "queues": row["queues"].split(",")}
            for row in alive
        ],
    }
