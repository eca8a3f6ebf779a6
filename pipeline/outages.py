"""What is done about dependencies that are away, beyond waiting: they are asked, and those who look are told."""

from __future__ import annotations

from pipeline.errors import LedgerFull, Unavailable
from pipeline.ledger import circuits
from pipeline.ledger.engine import Ledger
from pipeline.observe import logger
from pipeline.vectors.base import VectorStore

# While anything waits for a provider that is away, it is asked again sooner than this.
_FORGOTTEN_SECONDS = 300.0

_log = logger("outages")


def look_after(ledger: Ledger, vectors: VectorStore) -> bool:
    """Asks Qdrant again where it is away. Returns whether it was found to answer, and nothing waited to try it.

    While it does not answer no batch tries it; where it does, the next dispatch sends one. Where none is ready, the
    answer is all there is to go by.
    """
    with ledger.transaction() as connection:
        circuits.forget_full(connection)
        circuits.forget_rest(connection, circuits.OPENAI, _FORGOTTEN_SECONDS)
        found = circuits.find(connection, circuits.VECTORS)
    if found is None:
        return False
    answers = vectors.alive()
    with ledger.transaction() as connection:
        if not answers:
            circuits.defer(connection, circuits.VECTORS, circuits.AWAY_SECONDS)
            return False
        return not circuits.awaited(connection) and circuits.close(connection, circuits.VECTORS)


def tell_full(ledger: Ledger, error: LedgerFull) -> None:
    """Says in the ledger, for `status`, that its disk is full; there is mostly room for a few words in rows that exist.

    Where there is none, the error in the logs of all has to do.
    """
    try:
        with ledger.transaction() as connection:
            circuits.tell_full(connection, str(error))
    except Unavailable as failure:
        _log.error("postgres has no room, also not to say so: %s", failure)
