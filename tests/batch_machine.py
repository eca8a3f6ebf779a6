"""The pure protocol of remote batches on a walk at random: workers that stop between any two steps and may come back
when another has taken over, and a server on which everything goes wrong that can.

A walk knows nothing of who chooses its steps: Hypothesis does, and, where many walks are wanted, plain chance.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from batch_server_model import LAG_SECONDS, LINES, MODES, THEMES, UNSEEN_SECONDS, RemoteBatch, Server, vector_of
from batch_worker_model import BEGIN, Ledger, Purchase, Row, Worker

from pipeline.document import digest
from pipeline.openai_batch import after, verdicts
from pipeline.openai_batch.answers import Failure

TEXTS = 5
KEYS = [digest(str(number).encode()) for number in range(TEXTS)]


@dataclass(frozen=True)
class Several:
    """One to four of these, again and again in turns."""

    of: Sequence[Any]


_ANY = range(10)
_ENDS = "completed completed completed completed expired expired cancelled token_limit named no_file broken strange on"

# What may happen: name -> how often, and what it is given.
STEPS: dict[str, tuple[int, dict[str, Sequence[Any] | Several]]] = {
    "pack": (1, {"most": range(1, TEXTS + 1)}),
    "work": (10, {"modes": Several(MODES), "steps": range(1, 15), "hurry": (True, True, False)}),
    "leave": (2, {"stalled": (True, False)}),
    "come_back": (2, {"which": _ANY, "steps": range(1, 10), "modes": Several(MODES)}),
    "arrive": (2, {"which": _ANY}),
    "serve": (4, {"which": _ANY, "how": _ENDS.split(" "), "kinds": Several(["good"] * 12 + list(LINES))}),
    "pass_time": (2, {"seconds": (1, 20, 100, 100, 100, 200, 4000, 30_000, 100_000)}),
    "be_slow": (2, {"lag": (0.0, LAG_SECONDS, LAG_SECONDS), "unseen": (0.0, 0.0, UNSEEN_SECONDS)}),
    "cancel": (1, {"which": _ANY}),
    "look_around": (1, {}),
}


class Walk:
    """happen() does a step, check() holds everything against what must always be so, finish() lets the server answer
    again and wants an end. theme: of THEMES."""

    def __init__(self, theme: tuple[Sequence[str], Sequence[str]]) -> None:
        self.theme = theme
        self.ledger, self.server = Ledger(), Server(BEGIN)
        self.ledger.purchases = {key: Purchase() for key in KEYS}
        self.worker: Worker | None = None
        self.stalled: list[Worker] = []
        self._packed = 0
        self.pack(TEXTS)

    def happen(self, name: str, given: dict[str, Any]) -> None:
        getattr(self, name)(**given)

    # -- what may happen ---------------------------------------------------------------------------------------------

    def pack(self, most: int) -> None:
        if not (chosen := self.ledger.wanted()[:most]):
            return
        self._packed += 1
        key = f"key{self._packed}"
        for one in chosen:
            self.ledger.purchases[one].row = key
        self.ledger.rows[key] = Row(key, inputs=len(chosen), next_at=self.server.now)

    def work(self, modes: Sequence[str], steps: int, hurry: bool) -> None:
        """hurry: the time passes until there is something to do."""
        if self.worker is None:
            due = [row.next_at for row in self.ledger.rows.values() if row.next_at is not None and not row.owned]
            if hurry and due:
                self.server.now = max(self.server.now, min(due))
            row = self.ledger.claim(self.server.now)
            if row is None:
                return
            self.worker = Worker(self.ledger, self.server, row, self.theme)
        if not self.worker.go_on(steps, _in_turns(modes)):
            self.worker = None

    def leave(self, stalled: bool) -> None:
        """The worker is killed; or it stands still, loses its lease, and does not know."""
        if self.worker is not None:
            self.ledger.take_back(self.worker.row, self.server.now)
            self.stalled += [self.worker] if stalled else []
            self.worker = None

    def come_back(self, which: int, steps: int, modes: Sequence[str]) -> None:
        if self.stalled:
            worker = self.stalled[which % len(self.stalled)]
            if not worker.go_on(steps, _in_turns(modes)):
                self.stalled.remove(worker)

    def arrive(self, which: int) -> None:
        if self.server.on_their_way:
            self.server.arrive(which)

    def serve(self, which: int, how: str, kinds: Sequence[str]) -> None:
        if live := self._live():
            self.server.go_on(live[which % len(live)], how, kinds)

    def pass_time(self, seconds: int) -> None:
        self.server.now += timedelta(seconds=seconds)

    def be_slow(self, lag: float, unseen: float) -> None:
        self.server.lag, self.server.unseen = lag, unseen

    def cancel(self, which: int) -> None:
        found = [row for row in self.ledger.rows.values() if row.closed_at is None and row.ended_at is None]
        if found:
            row = found[which % len(found)]
            self.ledger.rows[row.key] = replace(row, cancel_reason="nobody needs it", next_at=self.server.now)

    def look_around(self) -> None:
        """All batches are listed, and those that no row knows are taken in."""
        found = self.server.listed(BEGIN, "ok")
        assert not isinstance(found, Failure)
        for batch in found:
            row = self.ledger.rows.get(batch["metadata"].get("millrace_key", ""))
            change = after.found_stray(row, batch) if row is not None and not row.owned else None
            if row is not None and change is not None:
                taken = self.ledger.rows[row.key] = replace(row, owned=True)
                self.ledger.commit(taken, change)
                self.ledger.release(taken, self.server.now, 0.0)

    # -- what is always so -------------------------------------------------------------------------------------------

    def check(self) -> None:
        ledger, server = self.ledger, self.server
        assert server.faults == []
        for key in KEYS:
            places = [place for place in (ledger.purchases, ledger.embeddings, ledger.dead) if key in place]
            assert len(places) == 1, f"text {KEYS.index(key)} is in {len(places)} places"
        for one in ledger.purchases.values():
            assert one.row is None or ledger.rows[one.row].state not in {"reconciled", "closed"}, "nobody buys it"
        for key, times in server.billed.items():
            assert times <= 1 + server.excuses[key], f"text {KEYS.index(key)} was paid for {times} times"
        for key, vector in ledger.embeddings.items():
            assert (vector == vector_of(key)).all(), f"text {KEYS.index(key)} has another vector"
        for key, reason in ledger.dead.items():
            assert key in server.deadly or server.blame[key] >= verdicts.MOST_ATTEMPTS, reason

    # -- in the end --------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Everything answers again: every text gets its vector or has its reason, and the ledger shows what was paid
        for."""
        self.server.lag = self.server.unseen = 0.0
        self.server.now += timedelta(seconds=LAG_SECONDS)
        for worker in [*self.stalled, *([self.worker] if self.worker is not None else [])]:
            self.ledger.take_back(worker.row, self.server.now)
        self.worker = None
        for _ in range(400):
            while self.server.on_their_way:
                self.server.arrive(0)
            self.look_around()
            if self._is_done():
                break
            for batch in self._live():
                self.server.go_on(batch, "cancelled" if batch.cancelling else "completed", ["good"])
            self.pack(TEXTS)
            while (row := self.ledger.claim(self.server.now)) is not None:
                Worker(self.ledger, self.server, row).go_on(1000, _in_turns(["ok"]))
            self.check()
            self.server.now += timedelta(seconds=60)
        assert self._is_done(), f"this does not end: {self.ledger.rows}"
        assert len(self.ledger.embeddings) + len(self.ledger.dead) == TEXTS
        shown = [key for key, _ in self.ledger.paid]
        doubtful = any(row.doubtful for row in self.ledger.rows.values())
        for key, times in self.server.billed.items():
            assert shown.count(key) >= times or doubtful, f"text {KEYS.index(key)} was paid for {times} times, unseen"
        for row in self.ledger.rows.values():
            assert not row.doubtful or row.attempt > 1 or self.server.excuses, "nothing is doubtful without a reason"

    def _is_done(self) -> bool:
        return not self.ledger.purchases and all(row.state == "closed" for row in self.ledger.rows.values())

    def _live(self) -> list[RemoteBatch]:
        return [batch for batch in self.server.batches.values() if not batch.ended]


def _in_turns(chosen: Sequence[str]) -> Iterator[str]:
    while True:
        yield from chosen


def walk_by_chance(chance: random.Random, steps: int) -> set[tuple[str, str]]:
    """One walk of so many steps, and its end. Raises AssertionError where something is not as it must be.

    Returns the steps of remote batches, from state to state."""
    walk = Walk(chance.choice(THEMES))
    names, weights = list(STEPS), [often for often, _ in STEPS.values()]
    for name in chance.choices(names, weights, k=steps):
        walk.happen(name, {what: _chosen(of, chance) for what, of in STEPS[name][1].items()})
        walk.check()
    walk.finish()
    return walk.ledger.steps


def _chosen(of: Sequence[Any] | Several, chance: random.Random) -> Any:
    if isinstance(of, Several):
        return chance.choices(of.of, k=chance.randint(1, 4))
    return chance.choice(of)
