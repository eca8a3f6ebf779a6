"""Who embeds, as a request asks for it: the provider and the model of a collection, found or made; by when, for how
much."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import get_args

from pipeline import routing
from pipeline.assembly import Services
from pipeline.embedding.base import ModelSpec
from pipeline.embedding.openai.spec import is_openai, is_served, openai_spec
from pipeline.errors import InvalidRequest
from pipeline.intervals import seconds_between
from pipeline.ledger import collections
from pipeline.ledger.collections import Collection
from pipeline.ledger.engine import Connection
from pipeline.settings import Provider

PROVIDERS: tuple[str, ...] = get_args(Provider)
MOST_DIMENSIONS = 65_536

NeedBy = str | float | timedelta | datetime


@dataclass(frozen=True, slots=True)
class Asked:
    """provider: None: the collection's own. model, dimensions: of a new collection; one that is there has to have
    them."""

    provider: str | None = None
    model: str | None = None
    dimensions: int | None = None

    def check(self) -> None:
        """Raises InvalidRequest."""
        if self.provider is not None and self.provider not in PROVIDERS:
            raise InvalidRequest(
                f"provider {self.provider!r} is none of {', '.join(PROVIDERS)}, which this version embeds with"
            )
        if self.model is not None and not self.model.strip():
            raise InvalidRequest("a model has a name; leave it out for that of the collection, or of the settings")
        if self.dimensions is not None and not 1 <= self.dimensions <= MOST_DIMENSIONS:
            raise InvalidRequest(f"a vector has 1 to {MOST_DIMENSIONS} dimensions, not {self.dimensions}")


def ensure_collection(services: Services, connection: Connection, name: str, asked: Asked) -> tuple[Collection, str]:
    """The collection of this name, made where it is missing, and who embeds for a job that asks so.

    Raises CollectionMismatch, naming both, where it was made with another model, other dimensions or by another
    endpoint; InvalidRequest where the provider cannot embed for it, or has no key; ModelUnavailable, InvalidSettings.
    """
    asked.check()
    found = collections.find(connection, name)
    provider, spec = (planned if found is None else _wanted)(services, found, asked)
    routing.check(provider, spec, services.settings.openai)
    sparse = services.sparse({}).config
    made = collections.ensure(connection, name, spec.to_json(), sparse, provider=provider)
    routing.check(provider, ModelSpec.from_json(made.model), services.settings.openai)  # it may be re-embedded
    return made, provider


def expect_collection(
    services: Services, connection: Connection, name: str, asked: Asked
) -> tuple[Collection, str, bool]:
    """As `ensure_collection`, for who only looks: what is missing is not made, and needs no key. Its id is 0 then, and
    the third value False."""
    asked.check()
    if collections.find(connection, name) is not None:
        return *ensure_collection(services, connection, name, asked), True
    collections.check_name(name)
    provider = asked.provider or services.settings.embedding.provider
    spec = services.spec_for(provider, asked.model, asked.dimensions)
    routing.check(provider, spec, services.settings.openai)
    made = Collection(0, name, "", spec.to_json(), services.sparse({}).config, {}, 0, None, provider=provider)
    return made, provider, False


def planned(services: Services, _: Collection | None, asked: Asked) -> tuple[str, ModelSpec]:
    """Who would embed for a collection that is made now, and with which model."""
    provider = asked.provider or services.settings.embedding.provider
    spec = services.spec_for(provider, asked.model, asked.dimensions)
    asks = provider in ("openai", "openai_batch") or spec.provider == "openai"
    if asks and not routing.may_ask(services.settings.openai):
        raise InvalidRequest(f"provider {provider} needs a key: set MILLRACE_OPENAI__API_KEY, for the workers too")
    _check_price(services, spec)
    return provider, spec


def _check_price(services: Services, spec: ModelSpec) -> None:
    """Raises InvalidRequest for a model of OpenAI's own that nobody knows the price of: no budget would stop it."""
    settings = services.settings
    if spec.provider == "openai" and is_openai(settings.openai) and spec.name not in settings.cost.prices:
        raise InvalidRequest(
            f"the price of {spec.name} is not known, so that no budget could stop it: set it in section cost of "
            f'millrace.toml ([cost.prices."{spec.name}"] with online and batch, US dollars for a million tokens)'
        )


def _wanted(services: Services, found: Collection | None, asked: Asked) -> tuple[str, ModelSpec]:
    """Who is to embed for a collection that is there, and the model that it must have for that."""
    assert found is not None
    own = ModelSpec.from_json(found.model)
    provider = asked.provider or found.provider
    if found.former and asked == Asked():
        return provider, own  # whoever re-embedded it has chosen, and the settings speak of new collections
    settings = services.settings.openai
    if provider == "local" or (provider == "auto" and own.provider == "local"):
        return provider, services.spec_for("local", asked.model, asked.dimensions)
    if own.provider == "local" and asked.model in (None, own.name) and is_served(own, settings):
        return provider, own
    if own.provider == "local":
        return provider, openai_spec(settings, asked.model, asked.dimensions)
    # What the settings say of models is for new collections, unless somebody has said it.
    said = settings.model_fields_set
    model = asked.model or (settings.model if "model" in said else own.name)
    dimensions = asked.dimensions or (settings.dimensions if "dimensions" in said and model == settings.model else None)
    if dimensions is None and model == own.name:
        dimensions = own.dimensions
    # How long a text may be decides no vector; the collection's own limit counts.
    return provider, replace(openai_spec(settings, model, dimensions), max_tokens=own.max_tokens)


def deadline(need_by: NeedBy | None) -> datetime | float | None:
    """`2h`, seconds or a timedelta as seconds from now; a time (with its zone) as it is. Raises InvalidRequest."""
    if need_by is None:
        return None
    moment = need_by if isinstance(need_by, datetime) else None
    if isinstance(need_by, str):
        with suppress(ValueError):
            moment = datetime.fromisoformat(need_by.strip())
    if moment is None:
        assert not isinstance(need_by, datetime)
        try:
            return seconds_between(need_by, least=1.0)
        except InvalidRequest as error:
            raise InvalidRequest(f"need_by: {error}; or a time such as 2026-12-24T18:00") from None
    try:
        return moment.astimezone()  # a time without a zone is that of this machine
    except (OverflowError, ValueError) as error:
        raise InvalidRequest(f"need_by {moment.isoformat()} is no time that can be waited for: {error}") from None


def expect_future(need_by: NeedBy | None, wanted: datetime | float | None, now: datetime) -> None:
    """Raises InvalidRequest where what was asked for (and what `deadline` made of it) is past for a job that is made
    now. now: by the ledger's clock."""
    if isinstance(wanted, datetime) and wanted <= now:
        there = _told(now.astimezone(wanted.tzinfo))
        raise InvalidRequest(
            f"need_by {need_by} is past: it means {_told(wanted)}, and now it is {there}. "
            "Give a time that is to come (without a zone, such as +00:00, it is in this machine's), or how long from "
            "now: 2h"
        )


def _told(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC{moment:%z}"


def told_deadline(need_by: NeedBy | None) -> str:
    """What tells a request from another one: what was asked for, and not when."""
    return need_by.isoformat() if isinstance(need_by, datetime) else "" if need_by is None else str(need_by)


def check_cost(max_cost: float | None) -> float | None:
    """Raises InvalidRequest for what is no amount of money."""
    if max_cost is not None and not (math.isfinite(max_cost) and max_cost >= 0):
        raise InvalidRequest(f"max_cost is an amount of US dollars from 0 on, not {max_cost}")
    return max_cost
