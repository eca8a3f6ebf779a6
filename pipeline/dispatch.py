"""Topping up the queues: the backlog waits in Postgres, a bounded window of it is sent to the broker.

Runs after staging, after every finished task and at every reconcile. Messages are sent after the commit that stamped
them, so a send that fails leaves nothing but a stamp, and that is taken back or outlives itself.
"""

from __future__ import annotations

from pipeline.broker import TASKS, WORK_QUEUES, Broker
from pipeline.errors import BrokerUnavailable
from pipeline.ledger import backlog, staging
from pipeline.ledger.engine import Ledger
from pipeline.settings import WorkSettings

_RESTAGE_LIMIT = 500
_RESTAGE_PAGE = 50


def dispatch(ledger: Ledger, broker: Broker, work: WorkSettings) -> int:
    """Sends what fits into the windows. Returns how many messages were sent.

    Raises BrokerUnavailable where Redis is away (nothing is lost: reconcile sends it later), LedgerUnavailable.
    """
    with ledger.transaction() as connection:
        to_do = backlog.to_do(connection, work)
        if to_do.blocked and staging.restage_blocked(connection, _RESTAGE_LIMIT, _RESTAGE_PAGE):
            to_do = backlog.to_do(connection, work)
    if not to_do.priorities:
        return 0
    depths = broker.depths()
    picked: list[tuple[str, int, str]] = []
    with ledger.transaction() as connection:
        for priority in to_do.priorities:
            queue = WORK_QUEUES[priority]
            room = work.window - depths[queue]
            if room > 0:
                backlog.lock_queue(connection, priority)
                found = backlog.pick(connection, priority, room, work)
                picked += [(TASKS[item.kind], item.id, queue) for item in found]
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
