"""Topping up the queues: the backlog waits in Postgres, a bounded window of it is sent to the broker.

Runs after staging, after every finished task and at every reconcile. Messages are sent after the commit that stamped
them, so a send that fails leaves nothing but a stamp, and that is taken back or outlives itself.
"""

from __future__ import annotations

from pipeline.broker import TASKS, WORK_QUEUES, Broker
from pipeline.errors import BrokerUnavailable
from pipeline.ledger import backlog, circuits, staging
from pipeline.ledger.engine import Connection, Ledger
from pipeline.observe import operation
from pipeline.settings import WorkSettings

_RESTAGE_LIMIT = 500
_RESTAGE_PAGE = 50

# A queue is topped up when this part of its window is free: picking many costs hardly more than picking one.
_REFILL_AT = 2
# Of the window of a queue, this part is for old work of the next lower one.
_RISING_SHARE = 4
_LOOKS = 4

_Message = tuple[str, int, str]  # task, id of the batch, queue


def dispatch(ledger: Ledger, broker: Broker, work: WorkSettings, *, vectors_answered: bool = False) -> int:
    """Sends what fits into the windows. Returns how many messages were sent. While Qdrant is away nothing is sent to be
    embedded, but for one batch from time to time that tries.

    vectors_answered: Qdrant has just taken something; where it was away, it is not any more.

    Raises BrokerUnavailable where Redis is away (nothing is lost: reconcile sends it later), LedgerUnavailable.
    """
    with operation("dispatch"):
        return _dispatch(ledger, broker, work, vectors_answered)


def _dispatch(ledger: Ledger, broker: Broker, work: WorkSettings, vectors_answered: bool) -> int:
    with ledger.transaction() as connection:
        to_do = backlog.to_do(connection, work)
        if to_do.vectors_away and vectors_answered:
            circuits.close(connection, circuits.VECTORS)
            to_do = backlog.to_do(connection, work)
        if to_do.blocked and staging.restage_blocked(connection, _RESTAGE_LIMIT, _RESTAGE_PAGE):
            to_do = backlog.to_do(connection, work)
    probes = _send_probe(ledger, broker) if to_do.probe_due else 0
    return probes + _top_up(ledger, broker, work, to_do)


def _send_probe(ledger: Ledger, broker: Broker) -> int:
    """Looks for it where it is soonest taken. Where none is ready, `reconcile` asks Qdrant itself."""
    picked: list[_Message] = []
    with ledger.transaction() as connection:
        for priority, queue in enumerate(WORK_QUEUES):
            batch_id = backlog.pick_probe(connection, priority)
            if batch_id is not None:
                picked.append((TASKS["embed"], batch_id, queue))
                break
    try:
        return _send(ledger, broker, picked)
    except BrokerUnavailable:
        with ledger.transaction() as connection:
            circuits.defer(connection, circuits.VECTORS, 0.0)
        raise


def _top_up(ledger: Ledger, broker: Broker, work: WorkSettings, to_do: backlog.ToDo) -> int:
    if not to_do.windows:
        return 0
    depths = broker.depths()
    room = {
        priority: window - depths[WORK_QUEUES[priority]]
        for priority, window in to_do.windows.items()
        if window - depths[WORK_QUEUES[priority]] >= max(1, window // _REFILL_AT)
    }
    if not room:
        return 0
    picked: list[_Message] = []
    with ledger.transaction() as connection:
        for priority, free in room.items():
            backlog.lock_queue(connection, priority)
            picked += _pick(connection, priority, free, work)
    return _send(ledger, broker, picked)


def _pick(connection: Connection, priority: int, room: int, work: WorkSettings) -> list[_Message]:
    """What was found to be paused took the place of others, who are asked for again; but not without end, while a long
    backlog is being paused."""
    messages: list[_Message] = []
    for _ in range(_LOOKS):
        found = backlog.pick(connection, priority, room - len(messages), work)
        messages += [(TASKS[item.kind], item.id, WORK_QUEUES[priority]) for item in found.sendings]
        if not found.held:
            break
    return messages


def rise(ledger: Ledger, broker: Broker, work: WorkSettings) -> int:
    """Sends work that has waited too long to the next higher queue, a share of whose window it may fill: it moves even
    where nobody consumes its own. Its priority stays. Returns how many messages were sent.

    Raises BrokerUnavailable, LedgerUnavailable.
    """
    with ledger.transaction() as connection:
        windows = backlog.rising(connection, work)
    picked: list[_Message] = []
    for priority, window in windows.items():
        queue = WORK_QUEUES[priority - 1]
        carried = broker.queued(queue)
        with ledger.transaction() as connection:
            found = backlog.pick_old(connection, priority, max(1, window // _RISING_SHARE), carried, work)
        picked += [(TASKS[item.kind], item.id, queue) for item in found]
    return _send(ledger, broker, picked)


def _send(ledger: Ledger, broker: Broker, picked: list[_Message]) -> int:
    try:
        return broker.send(picked) if picked else 0
    except BrokerUnavailable:
        # Which of them arrived is not known; one that is sent twice finds nothing to claim.
        with ledger.transaction() as connection:
            backlog.unstamp(connection, [batch_id for _, batch_id, _ in picked])
        raise


def find_lost_messages(ledger: Ledger, broker: Broker) -> int:
    """After a flush of Redis, or a message that died with its worker: clears the stamps of what is gone."""
    carried = broker.carried()
    with ledger.transaction() as connection:
        return backlog.forget_lost_messages(connection, carried)
