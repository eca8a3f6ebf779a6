"""Who embeds for a job: local, online, or by the Batch API; decided once, and again where it is going to be late.

`rule.decide` is pure. `jobs.route` is asked when a job's documents are prepared, `lateness.reroute_late` by the duty
`openai.poll`, `capability.check` when a job is enqueued.
"""

from __future__ import annotations

from pipeline.routing.capability import check, has_batch_api, may_ask, served_name
from pipeline.routing.jobs import ASSUMED_TOKENS_PER_SECOND, Means, online_seconds, route
from pipeline.routing.lateness import reroute_late
from pipeline.routing.rule import Chosen, Route, Situation, decide

__all__ = [
    "ASSUMED_TOKENS_PER_SECOND",
    "Chosen",
    "Means",
    "Route",
    "Situation",
    "check",
    "decide",
    "has_batch_api",
    "may_ask",
    "online_seconds",
    "reroute_late",
    "route",
    "served_name",
]
