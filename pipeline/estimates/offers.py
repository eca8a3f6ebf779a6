"""What each provider would take for the texts that are new: money and time, and what both are told from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import routing
from pipeline.embedding.base import ModelSpec
from pipeline.embedding.openai.limiter import FIRST_REQUESTS, FIRST_TOKENS, Limiter
from pipeline.embedding.openai.meter import Limits
from pipeline.embedding.openai.spec import limit_scope
from pipeline.errors import InvalidRequest
from pipeline.estimates.counting import Counted
from pipeline.ledger import budgets, estimating, spending
from pipeline.ledger.engine import Connection
from pipeline.routing import Chosen, Situation
from pipeline.routing.rule import duration
from pipeline.settings import CostSettings, OpenAIBatchSettings, OpenAISettings, RedisSettings
from pipeline.tools import Tools

PROVIDERS: tuple[Chosen, ...] = ("local", "openai", "openai_batch")


@dataclass(frozen=True, slots=True)
class Offer:
    """What one provider would take. cost: US dollars; seconds: until all is embedded, for the Batch API at most; both
    None where it cannot do it. basis: what the time is told from, or why it cannot. within_budget: whether the budgets
    of the month, the tenant and the job leave that much; in_time: whether that is done when it is needed."""

    provider: Chosen
    cost: float | None
    seconds: float | None
    basis: str
    within_budget: bool = True
    in_time: bool = True

    @property
    def available(self) -> bool:
        return self.cost is not None

    def to_json(self) -> dict[str, Any]:
        return {
            "provider": self.provider,
            "available": self.available,
            "cost": self.cost,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "basis": self.basis,
            "within_budget": self.within_budget,
            "in_time": self.in_time,
        }


@dataclass(frozen=True, slots=True)
class Priced:
    """auto: whom the provider `auto` would choose, and why. saved: what the stored vectors would have cost online."""

    offers: Sequence[Offer]
    auto: tuple[Chosen, str] | None
    saved: float


@dataclass(frozen=True, slots=True)
class Wallet:
    """Who pays: the budgets of a tenant, of the month, and of a job of this `max_cost` (None: as the settings say)."""

    tenant: str
    max_cost: float | None

    def left(self, connection: Connection, cost: CostSettings) -> float:
        """US dollars; infinite where there is no limit."""
        of_month = budgets.of_month(connection, {budgets.ALL, self.tenant}, cost)
        own = self.max_cost if self.max_cost is not None else cost.job_usd or float("inf")
        return min(own, *(budget.left for budget in of_month.values()))


def price(
    tools: Tools,
    redis: RedisSettings,
    model: Mapping[str, Any],
    new: Counted,
    cached: Counted,
    wallet: Wallet,
    seconds_left: float | None,
) -> Priced:
    """seconds_left: until the job is needed; None: it is not. Raises LedgerUnavailable."""
    spec = ModelSpec.from_json(model)
    served = routing.served_name(spec, tools.openai)
    rate = spending.price(tools.cost, served or spec.name)
    with estimating.read_only(tools.ledger.transaction) as connection:
        chunks_per_second = estimating.local_rate(connection, model)
        slots = estimating.slots(connection)
        left = wallet.left(connection, tools.cost)
    refused = _refused(spec, tools.openai)
    times: dict[Chosen, tuple[float, str]] = {
        "local": _local(new, chunks_per_second, slots),
        "openai": _online(new, tools.openai, _limits(spec, redis, tools.openai) if served else None),
        "openai_batch": _batch(new, tools.openai_batch),
    }
    if not new.texts:
        times = dict.fromkeys(PROVIDERS, (0.0, "nothing has to be embedded"))
    seconds = {name: None if name in refused else times[name][0] for name in PROVIDERS}
    # As a job decides: what nobody has measured is relied on only where there is no other way.
    relied = seconds["local"]
    if relied is not None and seconds["openai"] is not None and chunks_per_second is None and new.texts:
        relied = tools.cost.local_seconds_most
    situation = Situation(
        new.tokens,
        rate,
        seconds_left=seconds_left,
        cost_left=left,
        local_seconds=relied,
        online_seconds=seconds["openai"],
        batch_seconds=seconds["openai_batch"],
        local_seconds_most=tools.cost.local_seconds_most,
    )
    offers = [
        Offer(name, None, None, refused[name])
        if name in refused
        else Offer(
            name,
            situation.cost(name),
            *times[name],
            within_budget=situation.within_cost(name),
            in_time=seconds_left is None or times[name][0] <= seconds_left,
        )
        for name in PROVIDERS
    ]
    chosen = routing.decide(situation) if situation.possible() else None
    saved = cached.tokens * rate.online / spending.TOKENS_OF_PRICE
    return Priced(offers, (chosen.provider, chosen.reason) if chosen else None, saved)


def _refused(spec: ModelSpec, openai: OpenAISettings) -> dict[Chosen, str]:
    """Who cannot embed for a collection of this model, and why."""
    found: dict[Chosen, str] = {}
    for provider in PROVIDERS:
        try:
            routing.check(provider, spec, openai)
        except InvalidRequest as error:
            found[provider] = str(error)
    return found


def _local(new: Counted, chunks_per_second: float | None, slots: int) -> tuple[float, str]:
    if chunks_per_second:
        told = f"{chunks_per_second:,.0f}" if chunks_per_second >= 1 else f"{chunks_per_second:.2f}"
        return new.texts / chunks_per_second, f"measured: {told} chunks a second in the newest jobs of this model"
    speed = routing.ASSUMED_TOKENS_PER_SECOND * max(1, slots)
    return new.tokens / speed, f"assumed: {speed:,.0f} tokens a second; nothing was measured with this model yet"


def _limits(spec: ModelSpec, redis: RedisSettings, openai: OpenAISettings) -> Limits | None:
    """Those that the cluster goes by, as set or learned; None before anybody has a key."""
    if not openai.api_key.get_secret_value():
        return None
    limiter = Limiter(redis, openai, limit_scope(spec, openai))
    try:
        return limiter.standing().limits
    finally:
        limiter.close()


def _online(new: Counted, openai: OpenAISettings, limits: Limits | None) -> tuple[float, str]:
    known = limits or Limits(
        float(openai.requests_per_minute or FIRST_REQUESTS), float(openai.tokens_per_minute or FIRST_TOKENS)
    )
    requests = max(new.texts / openai.request_inputs, new.tokens / openai.request_tokens)
    minutes = max(requests / known.requests, new.tokens / known.tokens)
    assumed = known == Limits(FIRST_REQUESTS, FIRST_TOKENS) and not (
        openai.requests_per_minute and openai.tokens_per_minute
    )
    basis = f"by {'assumed ' if assumed else ''}limits of {known.requests:,.0f} requests and {known.tokens:,.0f} tokens"
    return openai.target_seconds + 60 * minutes, f"{basis} a minute, if nobody else buys"


def _batch(new: Counted, batch: OpenAIBatchSettings) -> tuple[float, str]:
    """The promised window, once for every time that the account's limit of enqueued tokens is filled; and the margin,
    as routing counts it."""
    rounds = max(1, -(-new.tokens // batch.enqueued_tokens))
    times = "" if rounds == 1 else f", {rounds} times: {batch.enqueued_tokens:,} tokens may be enqueued at once"
    return (
        rounds * batch.window_seconds + batch.margin_seconds,
        f"at most: the window of {duration(batch.window_seconds)}{times}, and {duration(batch.margin_seconds)} to "
        "spare; mostly it is sooner",
    )
