"""Packing: texts that wait become as few remote batches as the limits allow.

Across documents, jobs, tenants and collections, whatever shares model, endpoint and account (`spec_hash`). A trickle
lingers, so that it fills batches too; what fills one goes at once, and what is needed soonest goes first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import uuid_utils.compat

from pipeline.document import embedding_key
from pipeline.embedding.base import ModelSpec
from pipeline.embedding.openai.spec import is_served, spec_hash
from pipeline.ledger import remote, remote_items
from pipeline.ledger.engine import Connection, Ledger
from pipeline.ledger.remote import Load
from pipeline.ledger.remote_items import Pool, Wanted
from pipeline.observe import count, logger, operation
from pipeline.openai_batch.ordering import Order
from pipeline.openai_batch.rendering import Size, fitting
from pipeline.settings import OpenAIBatchSettings, OpenAISettings

# Of a line of the file, what is not the text: custom_id, URL, model, dimensions, the names of all that, and escapes of
# an ordinary text. It is an estimate; the file itself is never larger than it may be (`upload`).
LINE_BYTES = 320
# While other batches are unfinished, what is left of the account's tokens is used for a part of what waits only if it
# is so much of the whole: a batch of the last few tokens would be one more, and hardly sooner.
_SLIVER = 0.1

# After the server said that too many tokens are enqueued, although we counted fewer: the rest before the next batch
# doubles each time, and the batch is half as large unless the server names its limit.
_MOST_REST_SECONDS = 3600.0

_LIMIT = re.compile(r"limit:?\s*([0-9][0-9,_.]{0,20}) (?:enqueued )?tokens", re.I)

_log = logger("openai_batch")


@dataclass(frozen=True, slots=True)
class Room:
    """What may be begun now. limit: of one batch; its tokens: also of all unfinished ones together. tokens: of these,
    what is left; batches: that may be created within this hour; alone: nothing is unfinished."""

    limit: Size
    tokens: int
    batches: int
    alone: bool

    @property
    def next(self) -> Size:
        """What the next batch may hold."""
        return Size(self.limit.inputs, self.limit.bytes, self.tokens)


def room(load: Load, settings: OpenAIBatchSettings) -> Room | None:
    """What the account's limits leave; where the server has named a lower one of tokens, that one counts. None: too
    many were enqueued already, by the server's count, and it is too early to try again."""
    refused = len(load.refusals)
    if refused and (load.refused_seconds or 0.0) < min(_MOST_REST_SECONDS, settings.poll_most_seconds * 2**refused / 2):
        return None
    named = [limit for words in load.refusals if (limit := _named(words))]
    tokens = min([settings.enqueued_tokens, *named]) if named else settings.enqueued_tokens >> min(refused, 30)
    tokens = max(1, tokens)
    return Room(
        Size(settings.inputs, settings.bytes, tokens),
        max(0, tokens - load.tokens),
        max(0, settings.creates_per_hour - load.begun),
        load.batches == 0,
    )


def _named(words: str) -> int | None:
    """The account's limit of enqueued tokens, where the server's refusal names it."""
    found = _LIMIT.search(words)
    return int(re.sub(r"\D", "", found[1])) if found else None


def ripe(pool: Pool, now: Room, settings: OpenAIBatchSettings) -> bool:
    """Whether a batch is packed of this pool now: it is full, or has lingered, or somebody needs it soon; and what
    other batches leave of the account's tokens suffices, or is worth a batch of its own."""
    if now.batches < 1:
        return False
    limit = now.limit
    full = (
        pool.inputs >= limit.inputs
        or pool.tokens >= limit.tokens
        or pool.bytes + pool.inputs * LINE_BYTES >= limit.bytes
    )
    lingered = pool.oldest_seconds >= settings.linger_seconds
    pressing = (
        pool.need_by_seconds is not None
        and pool.need_by_seconds - settings.margin_seconds <= settings.window_seconds + settings.linger_seconds
    )
    fits = now.alone or now.tokens >= min(pool.tokens, limit.tokens) or now.tokens >= _SLIVER * limit.tokens
    return fits and (full or lingered or pressing)


def fill(sizes: Sequence[Size], now: Room) -> int:
    """How many of the texts, in this order, go into the next batch. One that is over every limit goes alone: the server
    may know better."""
    chosen, _ = fitting(sizes, now.next)
    return chosen or int(now.alone and bool(sizes))


def pack(
    ledger: Ledger,
    openai: OpenAISettings,
    settings: OpenAIBatchSettings,
    most: int = 100,
    over: Callable[[], bool] = lambda: False,
) -> list[int]:
    """Packs what is ripe. Returns the ids of the new remote batches: one transaction each, `most` at most, until `over`
    says that it is enough."""
    packed: list[int] = []
    while len(packed) < most and not over():
        with operation("openai.pack"), ledger.transaction() as connection:
            made = _pack_one(connection, openai, settings)
        if made is None:
            break
        packed.append(made)
    return packed


def _pack_one(connection: Connection, openai: OpenAISettings, settings: OpenAIBatchSettings) -> int | None:
    if not remote_items.waiting(connection) or not remote.begin_packing(connection):
        return None
    now = room(remote.load(connection), settings)
    if now is None or now.batches < 1 or not (now.tokens or now.alone):
        return None
    resting = remote_items.resting(connection)
    for pool in remote_items.pools(connection, resting):
        if not ripe(pool, now, settings):
            continue
        spec = _spec_of(connection, pool, openai)
        if spec is None:
            _log.warning(
                "%d texts are ordered from an endpoint or in a model that is not set any more: they wait until "
                "MILLRACE_OPENAI__BASE_URL and __SAME_AS are as they were, or their jobs are cancelled",
                pool.inputs,
            )
            continue
        remote_items.drop_unneeded(connection, pool.spec_hash, now.limit.inputs, resting)
        wanted = remote_items.take(connection, pool.spec_hash, now.limit.inputs, resting)
        chosen = wanted[: fill([Size(1, item.bytes + LINE_BYTES, item.tokens) for item in wanted], now)]
        if chosen:
            return _plan(connection, pool.spec_hash, spec, Order.of(spec, openai), chosen)
    return None


def _spec_of(connection: Connection, pool: Pool, openai: OpenAISettings) -> ModelSpec | None:
    """The model of a pool, of those that the ledger's collections have and the server serves. Where the account is
    another one by now (its key was changed), it is known by the texts' keys."""
    served = [
        spec for model in remote_items.models(connection) if is_served(spec := ModelSpec.from_json(model), openai)
    ]
    for spec in served:
        if spec_hash(spec, openai) == pool.spec_hash:
            return spec
    key, text = remote_items.sample(connection, pool.spec_hash)
    return next((spec for spec in served if embedding_key(spec.fingerprint("passage"), text) == key), None)


def _plan(connection: Connection, shared: bytes, spec: ModelSpec, order: Order, chosen: Sequence[Wanted]) -> int:
    jobs = remote_items.jobs_of(connection, [item.batch_id for item in chosen])
    remote_id = remote.plan(
        connection,
        key=uuid_utils.compat.uuid7().hex,
        spec_hash=shared,
        spec=order.stored(spec),
        inputs=len(chosen),
        tokens=sum(item.tokens for item in chosen),
        priority=min(item.priority for item in chosen),
        need_by=_soonest(chosen),
        jobs=[str(job) for job in jobs],
    )
    remote_items.pack(connection, remote_id, [item.key for item in chosen])
    count("remote_batches", 1, "packed")
    _log.info("packed %d texts into remote batch %d", len(chosen), remote_id)
    return remote_id


def _soonest(chosen: Sequence[Wanted]) -> datetime | None:
    return min((item.need_by for item in chosen if item.need_by is not None), default=None)
