"""The rule by which `auto` chooses, and nothing but it: no clock, no ledger.

What is free and done in time wins; then the cheapest that is in time: the Batch API where its window fits before
`need_by`, else online. Nothing is chosen over `max_cost` (or what the budgets of the month leave) that something within
it could replace, be it late.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.ledger.budgets import TOLERANCE, dollars
from pipeline.ledger.routes import WILL_BE_LATE
from pipeline.settings import Price

Chosen = Literal["local", "openai", "openai_batch"]

# Of two that cost the same, the first: what runs here asks nobody.
_ORDER: tuple[Chosen, ...] = ("local", "openai_batch", "openai")

_NAMES: Mapping[Chosen, str] = {"local": "local", "openai": "online", "openai_batch": "the Batch API"}


@dataclass(frozen=True, slots=True)
class Situation:
    """What the choice depends on. tokens: still to be embedded, about. price: of the model.

    seconds_left: until `need_by`, negative: it is past; None: there is none. cost_left: US dollars that `max_cost` and
    the budgets of the month leave; infinite: there is no limit. local_seconds, online_seconds, batch_seconds: until
    each would be done; None: it cannot do it. local_seconds_most: what local may take where there is no `need_by`.
    """

    tokens: int
    price: Price
    seconds_left: float | None = None
    cost_left: float = math.inf
    local_seconds: float | None = None
    online_seconds: float | None = None
    batch_seconds: float | None = None
    local_seconds_most: float = 3600.0

    def seconds(self, provider: Chosen) -> float | None:
        """Until it would be done; None where it cannot do it."""
        match provider:
            case "local":
                return self.local_seconds
            case "openai":
                return self.online_seconds
            case "openai_batch":
                return self.batch_seconds

    def cost(self, provider: Chosen) -> float:
        """US dollars."""
        match provider:
            case "local":
                return 0.0
            case "openai":
                return self.tokens * self.price.online / 1e6
            case "openai_batch":
                return self.tokens * self.price.batch / 1e6

    def possible(self) -> list[Chosen]:
        return [provider for provider in _ORDER if self.seconds(provider) is not None]

    def on_time(self, provider: Chosen) -> bool:
        """Whether it is done by `need_by`; without one all are, but for what would keep the machines here too long."""
        seconds = self.seconds(provider)
        if seconds is None:
            return False
        if self.seconds_left is None:
            return provider != "local" or seconds <= self.local_seconds_most
        return seconds <= self.seconds_left

    def within_cost(self, provider: Chosen) -> bool:
        return self.cost(provider) <= max(0.0, self.cost_left) + TOLERANCE


@dataclass(frozen=True, slots=True)
class Route:
    """provider: who embeds; reason: why, for people. on_time, within_cost: whether it is expected to be."""

    provider: Chosen
    reason: str
    on_time: bool = True
    within_cost: bool = True


def decide(situation: Situation) -> Route:
    """The cheapest that is on time and within the cost. Where there is none: of those within the cost the soonest;
    where none is within it, the cheapest, for the budget to stop. Raises ValueError where nothing can embed it."""
    possible = situation.possible()
    if not possible:
        raise ValueError("a situation in which nothing can embed")

    def cheapest(provider: Chosen) -> tuple[float, int]:
        return situation.cost(provider), _ORDER.index(provider)

    def soonest(provider: Chosen) -> tuple[float, float, int]:
        return situation.seconds(provider) or 0.0, *cheapest(provider)

    affordable = [provider for provider in possible if situation.within_cost(provider)]
    good = [provider for provider in affordable if situation.on_time(provider)]
    if good:
        chosen = min(good, key=cheapest)
    elif affordable:
        chosen = min(affordable, key=soonest)
    else:
        chosen = min(possible, key=cheapest)
    on_time, within_cost = situation.on_time(chosen), situation.within_cost(chosen)
    return Route(chosen, _reason(situation, chosen, possible), on_time, within_cost)


def _reason(situation: Situation, chosen: Chosen, possible: list[Chosen]) -> str:
    """First what was chosen and what it costs, then why not each of the others."""
    told = _NAMES[chosen] + (": the only way for this collection" if len(possible) == 1 else "")
    told += f", {_money(situation.cost(chosen))}"
    if situation.seconds_left is not None and chosen != "openai_batch":
        told += f", about {duration(situation.seconds(chosen) or 0.0)}"
    if situation.seconds_left is not None:
        left = situation.seconds_left
        when = f"{duration(left)} left" if left > 0 else f"needed {duration(-left)} ago"
        told += f" ({when})"
    if not situation.within_cost(chosen):
        told += f"; nothing is within the {dollars(max(0.0, situation.cost_left))} that may still be spent"
    elif not situation.on_time(chosen):
        told = f"{WILL_BE_LATE}{told}" if situation.seconds_left is not None else f"{told}; it takes long"
    others = [_why_not(situation, other, chosen) for other in possible if other != chosen]
    return "; ".join([told, *(why for why in others if why)])


def _why_not(situation: Situation, other: Chosen, chosen: Chosen) -> str:
    name, cost = _NAMES[other], situation.cost(other)
    seconds = situation.seconds(other) or 0.0
    if not situation.within_cost(other):
        return f"{name} would cost {_money(cost)}, more than may be spent" if situation.within_cost(chosen) else ""
    if not situation.on_time(other):
        return f"{name} takes {'up to ' if other == 'openai_batch' else 'about '}{duration(seconds)}"
    return f"{name} would cost {_money(cost)}" if cost > situation.cost(chosen) else ""


def _money(cost: float) -> str:
    return dollars(cost) if cost else "free"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 60 * 48 else f"{minutes // 1440} d"
