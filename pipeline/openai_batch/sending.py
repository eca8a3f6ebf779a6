"""Messages for remote batches: an id each, into the work queue of its priority.

Never into `control`: harvesting takes minutes. And what may take minutes never into `high`, which the one slot for
rescue work serves too.
"""

from __future__ import annotations

from pipeline.broker import REMOTE_TASK, WORK_QUEUES, Broker
from pipeline.errors import BrokerUnavailable
from pipeline.ledger import remote_messages
from pipeline.ledger.engine import Ledger


def send_due(ledger: Ledger, broker: Broker, limit: int) -> int:
    """Sends those for which something is to be done. Returns how many.

    Raises BrokerUnavailable (nothing is lost: the duty sends it later), LedgerUnavailable.
    """
    with ledger.transaction() as connection:
        picked = remote_messages.pick_due(connection, limit)
    if not picked:
        return 0
    try:
        return broker.send((REMOTE_TASK, batch_id, _queue(priority, long)) for batch_id, priority, long in picked)
    except BrokerUnavailable:
        # Which of them arrived is not known; one that is sent twice finds nothing to claim.
        with ledger.transaction() as connection:
            remote_messages.unstamp(connection, [batch_id for batch_id, _, _ in picked])
        raise


def _queue(priority: int, long: bool) -> str:
    return WORK_QUEUES[max(priority, 1) if long else priority]


def find_lost_messages(ledger: Ledger, broker: Broker) -> int:
    """After a flush of Redis, or a message that died with its worker: clears the stamps of what is gone."""
    with ledger.transaction() as connection:
        if not remote_messages.awaited(connection):
            return 0
    carried = broker.carried((REMOTE_TASK,))
    with ledger.transaction() as connection:
        return remote_messages.forget_lost_messages(connection, carried)
