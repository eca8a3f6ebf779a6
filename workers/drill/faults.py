"""The faults: which ones come in which order, what each does, and when what it hit works again."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from workers.drill.plain import Sql
from workers.drill.stack import Batch, DrilledStack, Pauser, family, kill, running

KINDS = ("worker", "redis", "qdrant", "postgres", "flush", "stop", "term")
# What a kind of fault may be thrown at, in turns. `child`: one pool child of a worker, which lives on.
_TARGETS: dict[str, tuple[str, ...]] = {
    "worker": ("worker", "child", "child"),
    "redis": ("redis",),
    "qdrant": ("qdrant",),
    "postgres": ("postgres",),
    "flush": ("redis",),
    "stop": ("worker", "child", "qdrant", "worker", "redis", "child", "postgres"),
    "term": ("worker",),
}
# In a round every kind comes so often (once where nothing is said): a pool child is killed in a moment and replaced in
# two seconds, while a part is started again without delay only when it has lived for a minute.
_A_ROUND = {"worker": 3, "stop": 3}
_SHORT_STOP = (1.5, 5.0)  # within the lease: its heartbeats come late, and it keeps its work
_BEYOND_LEASE = (1.5, 4.0)  # more than the lease
_GAP = (0.5, 4.0)
_SHARE_ALONE = 1 / 3
# The supervisor waits longer with each start of a part that lived shorter than this.
STEADY_SECONDS = 61.0
_VERIFY_SECONDS = 2.0
# No pool child is killed under work that lost one before: a third time, and the work itself would be blamed.
_MOST_ATTEMPTS = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of the plan. target: worker, child, redis, qdrant or postgres. seconds: how long a stop lasts.
    gap: seconds of rest before it. pick: chooses the victim among those at work. alone: it comes when no other fault
    is felt, and until it is over no other one comes.
    """

    kind: str
    target: str
    seconds: float
    gap: float
    pick: float
    alone: bool

    @property
    def name(self) -> str:
        """Such as `kill child`, `stop postgres`, `flush`."""
        if self.kind == "flush":
            return self.kind
        return f"{self.kind if self.kind in ('stop', 'term') else 'kill'} {self.target}"


def plan(seed: int, kinds: Sequence[str], lease_seconds: float) -> Iterator[Fault]:
    """The faults of a seed, for ever: rounds in which every kind comes, in any order."""
    chosen = random.Random(f"faults {seed}")  # noqa: S311 - nothing secret is chosen
    turns = dict.fromkeys(kinds, 0)
    first = True
    while True:
        # The first round has every kind once, so that a short drill has all of them.
        wanted = [kind for kind in kinds for _ in range(1 if first else _A_ROUND.get(kind, 1))]
        first = False
        chosen.shuffle(wanted)
        for kind in wanted:
            target = _TARGETS[kind][turns[kind] % len(_TARGETS[kind])]
            turns[kind] += 1
            seconds = 0.0
            if kind == "stop":
                long = chosen.random() < 0.5
                seconds = lease_seconds + chosen.uniform(*_BEYOND_LEASE) if long else chosen.uniform(*_SHORT_STOP)
            yield Fault(
                kind, target, round(seconds, 1), chosen.uniform(*_GAP), chosen.random(), chosen.random() < _SHARE_ALONE
            )


@dataclass(slots=True)
class Hit:
    """A fault that hit work, and what must happen until what it hit works again.

    batches: those claimed by the victim. server: the dependency that must answer, and then serve: since: the time, by
    the database's clock, when it did; before: what was running then. alone: no other fault is felt at the same time.
    """

    fault: Fault
    words: str
    at: float
    batches: tuple[Batch, ...] = ()
    server: str = ""
    not_before: float = 0.0
    since: object = None
    before: tuple[int, ...] = ()
    alone: bool = True
    told: float = 0.0  # seconds after the blow, when it was last said what it waits for

    def recovered(self, stack: DrilledStack, sql: Sql, collection: str) -> bool:
        """Whether it works again. Raises Away."""
        if not self.server:
            return _claimed_again(sql, self.batches)
        if time.monotonic() < self.not_before:
            return False
        if self.since is None:
            if not stack.answers(self.server, sql):
                return False
            self.since = sql.one("SELECT clock_timestamp() AS now")["now"]
            self.before = tuple(batch.id for batch in running(sql, collection))
        return _served(sql, collection, self.since, self.before)

    def waits_for(self, sql: Sql) -> str:
        """What is still to happen, in words. Raises Away."""
        if self.server:
            return f"{self.server} does not answer yet" if self.since is None else "work that was begun since"
        rows = sql.rows(
            f"""SELECT b.id, b.kind, b.state, b.error, b.held,
                       extract(epoch FROM clock_timestamp() - b.sent_at)::float8 AS sent,
                       extract(epoch FROM b.lease_until - clock_timestamp())::float8 AS lease,
                       extract(epoch FROM b.next_attempt_at - clock_timestamp())::float8 AS rest
                  FROM {_WAITING} ORDER BY b.id LIMIT 3""",
            _keys(self.batches),
        )
        return "; ".join(", ".join(_facts(row)) for row in rows)


def _facts(row: Mapping[str, Any]) -> Iterator[str]:
    yield f"batch {row['id']} ({row['kind']}) is {'held' if row['held'] else row['state']}"
    if row["state"] == "running":
        yield f"its lease ends in {row['lease']:.1f} s"
    elif row["rest"] is not None and row["rest"] > 0:
        yield f"it rests for {row['rest']:.1f} s"
    elif row["sent"] is not None:
        yield f"it was sent {row['sent']:.1f} s ago"
    else:
        yield "it is not sent"
    if row["error"]:
        yield str(row["error"])


# The claimed batches h that have not ended, and are not claimed anew: an expired lease counts the epoch up, and so does
# a claim.
_WAITING = """unnest(%(ids)s::bigint[], %(epochs)s::int[]) AS h (id, epoch) JOIN batches b
    ON b.id = h.id AND b.ended_at IS NULL AND b.epoch < h.epoch + 2
   AND NOT (b.epoch = h.epoch + 1 AND b.state = 'running')"""


def _keys(batches: Sequence[Batch]) -> dict[str, list[int]]:
    return {"ids": [batch.id for batch in batches], "epochs": [batch.epoch for batch in batches]}


def _claimed_again(sql: Sql, batches: Sequence[Batch]) -> bool:
    """Whether each batch has ended, or is claimed anew."""
    row = sql.one(f"SELECT count(*) AS waiting FROM {_WAITING}", _keys(batches))
    return bool(row["waiting"] == 0)


def _served(sql: Sql, collection: str, since: object, before: Sequence[int]) -> bool:
    """Whether work that was begun after `since` has reached the index."""
    row = sql.one(
        """SELECT EXISTS (SELECT 1 FROM batches b JOIN collections c ON c.id = b.collection_id
                           WHERE c.name = %(name)s AND b.state = 'indexed' AND b.kind = 'embed'
                             AND b.ended_at > %(since)s AND b.id <> ALL(%(before)s::bigint[])) AS served""",
        {"name": collection, "since": since, "before": list(before)},
    )
    return bool(row["served"])


class Faults:
    """Throws faults at a stack; knows when each part was killed last."""

    def __init__(self, stack: DrilledStack, sql: Sql, pauser: Pauser, collection: str) -> None:
        self._stack = stack
        self._sql = sql
        self._pauser = pauser
        self._collection = collection
        self._killed: dict[str, float] = {}
        self._still: dict[int, float] = {}  # pids that are held still -> until when

    def throw(self, fault: Fault) -> Hit | None:
        """None where it would hit no work now, or a part that is not steady yet: nothing was done then. Raises Away."""
        try:
            if fault.target in ("worker", "child"):
                return self._at_worker(fault)
            return self._at_server(fault)
        except psutil.NoSuchProcess:
            return None

    # workers --------------------------------------------------------------------------------------------------------

    def _at_worker(self, fault: Fault) -> Hit | None:
        workers = {
            pid: (name, children)
            for pid, (name, children) in self._stack.workers().items()
            if name.startswith("general") and (fault.kind == "stop" or fault.target == "child" or self._steady(name))
        }
        claimed = running(self._sql, self._collection)
        victims: list[tuple[str, list[int], set[int]]] = []  # name, pids to be hit, pids that own the claims
        for pid, (name, children) in sorted(workers.items()):
            at_work = sorted({batch.pid for batch in claimed} & children)
            if fault.target == "worker" and at_work:
                victims.append((name, [pid], children))
            elif fault.target == "child":
                victims += [(f"a child of {name}", [child], {child}) for child in at_work]
        if not victims:
            return None
        name, pids, owners = victims[int(fault.pick * len(victims))]
        if fault.target == "worker":
            pids = family(psutil.Process(pids[0]))
        if not pids or self._held(pids):
            return None
        # Held still first, so that nothing changes between the look and the blow.
        self._pauser.stop(pids, max(fault.seconds, _VERIFY_SECONDS))
        hit = tuple(batch for batch in running(self._sql, self._collection) if batch.pid in owners)
        if not hit or (fault.name == "kill child" and self._attempts(hit) > _MOST_ATTEMPTS):
            self._pauser.go(pids)
            return None
        at = time.monotonic()
        if fault.kind == "stop":
            self._hold(pids, at + fault.seconds)
            words = f"stopped {name} for {fault.seconds:.1f} s"
        elif fault.kind == "term":
            self._pauser.go(pids)
            kill(pids[:1], signal.SIGTERM)
            self._killed[name] = at
            words = f"told {name} to end"
        else:
            kill(pids)
            if fault.target == "worker":
                self._killed[name] = at
            words = f"killed {name}"
        return Hit(fault, f"{words}, which had {len(hit)} batches", at, hit)

    def _attempts(self, batches: Sequence[Batch]) -> int:
        row = self._sql.one(
            "SELECT coalesce(max(attempts), 0) AS most FROM batches WHERE id = ANY(%(ids)s)",
            {"ids": [batch.id for batch in batches]},
        )
        return int(row["most"])

    # servers --------------------------------------------------------------------------------------------------------

    def _at_server(self, fault: Fault) -> Hit | None:
        server = self._stack.server(fault.target)
        if server is None or self._held([server.pid]):
            return None
        if fault.kind not in ("stop", "flush") and not self._steady(fault.target):
            return None
        if not running(self._sql, self._collection):
            return None
        at = time.monotonic()
        if fault.kind == "flush":
            words = "flushed Redis"
            if not self._stack.flush():
                return None
        elif fault.kind == "stop":
            pids = family(server)
            self._pauser.stop(pids, fault.seconds)
            self._hold(pids, at + fault.seconds)
            words = f"stopped {fault.target} for {fault.seconds:.1f} s"
        else:
            pids = family(server)
            self._pauser.stop(pids, _VERIFY_SECONDS)  # nobody sees the others die, as if the machine had
            kill(pids)
            self._killed[fault.target] = at
            words = f"killed {fault.target}"
        return Hit(fault, words, at, server=fault.target, not_before=at + fault.seconds)

    # what was done before -------------------------------------------------------------------------------------------

    def _steady(self, part: str) -> bool:
        return time.monotonic() - self._killed.get(part, float("-inf")) > STEADY_SECONDS

    def _hold(self, pids: Sequence[int], until: float) -> None:
        self._still.update(dict.fromkeys(pids, until))

    def _held(self, pids: Sequence[int]) -> bool:
        now = time.monotonic()
        self._still = {pid: until for pid, until in self._still.items() if until > now}
        return any(pid in self._still for pid in pids)
