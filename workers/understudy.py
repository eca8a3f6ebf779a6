"""Beat's understudy: every worker asks for duties that nobody runs, so that a dead beat costs seconds.

The main process looks at the duties' rows every few seconds. While no beat reports, it sends the ticks of all that is
due; while one does, those of duties that are due for long, whose ticks were lost. Of several workers one does it; were
it two, the duty's row would see to it that it runs once. Where Redis is away nobody can be asked: alerts are looked for
by a process of its own (`workers/standin.py`), everything else waits.
"""

from __future__ import annotations

import threading

from pipeline.broker import Broker
from pipeline.errors import BrokerUnavailable, SchemaMismatch, Unavailable
from pipeline.ledger import duties
from pipeline.ledger.engine import Ledger
from pipeline.observe import logger
from tasks.duties import DEFINITIONS, DUTIES
from workers import standin
from workers.schedule import MOST_TICKS, expiry

# As often as `reconcile` runs.
_LOOK_SECONDS = 3.0
# Between two times that it writes down what the code knows: a ledger may have been restored, or emptied.
_REGISTER_LOOKS = 100

_TASKS = {duty.name: duty.task for duty in DUTIES}

_log = logger("understudy")


class Understudy:
    """A thread of the worker's main process; its ledger and broker are the caller's."""

    def __init__(self, ledger: Ledger, broker: Broker, every_seconds: float = _LOOK_SECONDS) -> None:
        self._ledger = ledger
        self._broker = broker
        self._every = every_seconds
        self._looks = 0
        self._standin = standin.Standin()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="understudy", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=self._every)
        self._standin.stop(self._every)

    def look(self) -> list[str]:
        """Asks for what is late. Returns the names. Raises LedgerUnavailable, SchemaMismatch, BrokerUnavailable."""
        with self._ledger.transaction() as connection:
            if self._looks % _REGISTER_LOOKS == 0:
                duties.register(connection, DEFINITIONS)
            late = [(name, every) for name, every in duties.ask_late(connection) if name in _TASKS]
        self._looks += 1
        if late:
            try:
                self._broker.tick([(_TASKS[name], expiry(every)) for name, every in late], MOST_TICKS)
            except BrokerUnavailable:
                if standin.DUTIES[0] in {name for name, _ in late}:
                    self._standin.start()
                raise
        return [name for name, _ in late]

    def _run(self) -> None:
        # Not at once: beat and the workers of a stack start together.
        while not self._stop.wait(self._every):
            try:
                if asked := self.look():
                    _log.info("asked for %s in beat's place", ", ".join(asked))
            except (Unavailable, SchemaMismatch) as error:
                _log.warning("nobody is asked for duties: %s", error)
            except Exception:  # noqa: BLE001 - whatever it was, the next look may do better
                _log.exception("a look at the duties failed")
