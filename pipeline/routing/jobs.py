"""A job that says `auto` is routed once, when the first of its documents are cut and it is known about how much there
is to embed; the choice and its reason are kept in the job, and shown with it."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.embedding.base import ModelSpec
from pipeline.embedding.openai.spec import PROVIDER
from pipeline.ledger import budgets, estimating, remote, routes, spending
from pipeline.ledger.batches import Claim
from pipeline.ledger.engine import Connection
from pipeline.ledger.routes import JobToRoute
from pipeline.observe import count
from pipeline.routing.capability import has_batch_api, may_ask, served_name
from pipeline.routing.rule import Situation, decide
from pipeline.settings import CostSettings, OpenAIBatchSettings, OpenAISettings

# Tokens a minute that are taken for granted where the settings do not say more.
_ASSUMED_TOKENS_PER_MINUTE = 1_000_000
# Of a process with the bundled model on one core of 2020, about; where nothing was measured on these machines yet.
ASSUMED_TOKENS_PER_SECOND = 2000.0


@dataclass(frozen=True, slots=True)
class Means:
    """What routing goes by, of the settings."""

    openai: OpenAISettings
    batch: OpenAIBatchSettings
    cost: CostSettings


def route(
    connection: Connection,
    means: Means,
    claim: Claim,
    spec: ModelSpec,
    wanted: Mapping[bytes, int],
    speed: float | None = None,
) -> str:
    """Who embeds the chunks of a claimed prepare batch: what its job says, and for `auto` what is decided now, once.

    Call it in a transaction of its own, before the one that makes the embed batches. spec: of the collection. wanted:
    embedding key -> tokens, of all chunks of the batch. speed: tokens per second that one process embeds with this
    model, as measured in this one; None: not yet.
    """
    job = routes.job_to_route(connection, claim.job_id)
    if job.routed is not None:
        return job.routed
    if job.provider != "auto":
        return job.provider
    missing = routes.missing(connection, wanted)
    # The documents that are still to come are taken to be like these.
    times = max(1.0, job.to_prepare / max(1, claim.size))
    texts, tokens = round(len(missing) * times), round(sum(missing) * times)
    served = served_name(spec, means.openai)
    # Without a key it is the only way all the same where the model is not here: the work waits, and says for what.
    here = spec.provider != PROVIDER
    online = not here or (served is not None and may_ask(means.openai))
    unmeasured = means.cost.local_seconds_most if online else None
    found = decide(
        Situation(
            tokens,
            spending.price(means.cost, served or spec.name),
            job.seconds_left,
            cost_left(connection, job.id, claim.tenant, means.cost),
            _local_seconds(connection, job, spec, texts, tokens, speed, unmeasured) if here else None,
            online_seconds(tokens, means.openai) if online else None,
            _batch_seconds(connection, means, tokens) if online and has_batch_api(means.openai) else None,
            means.cost.local_seconds_most,
        )
    )
    count("routes", 1, found.provider)
    return routes.remember(connection, job.id, found.provider, found.reason)


def _local_seconds(
    connection: Connection,
    job: JobToRoute,
    spec: ModelSpec,
    texts: int,
    tokens: int,
    speed: float | None,
    unmeasured: float | None,
) -> float:
    """By what the newest jobs of this model took; else by what this process has measured of it, times the processes
    that there are. unmeasured: where nobody has measured anything; None: by what is assumed, since nothing is decided
    by it, and a job that has no other way is not to be called late for nothing."""
    if rate := estimating.local_rate(connection, spec.to_json()):
        return texts / rate
    if not speed and unmeasured is not None:
        return unmeasured
    return tokens / ((speed or ASSUMED_TOKENS_PER_SECOND) * max(1, job.slots))


def _batch_seconds(connection: Connection, means: Means, tokens: int) -> float:
    """The promised window, once for every time that the account's limit of enqueued tokens is filled; by what others
    have under way too."""
    batch = means.batch
    rounds = max(1, math.ceil((tokens + remote.load(connection).tokens) / batch.enqueued_tokens))
    return rounds * batch.window_seconds + batch.margin_seconds


def online_seconds(tokens: int, openai: OpenAISettings) -> float:
    """About how long it takes to buy so many tokens online: by the limit that is known, if nobody else buys."""
    return openai.target_seconds + 60 * tokens / (openai.tokens_per_minute or _ASSUMED_TOKENS_PER_MINUTE)


def cost_left(connection: Connection, job_id: uuid.UUID, tenant: str, cost: CostSettings) -> float:
    """US dollars that the budgets leave, what is held back for work under way taken off; infinite: no limit."""
    of_month = budgets.of_month(connection, {budgets.ALL, tenant}, cost)
    of_job = budgets.of_jobs(connection, {job_id}, cost)
    return min(budget.left for budget in (*of_month.values(), *of_job.values()))
