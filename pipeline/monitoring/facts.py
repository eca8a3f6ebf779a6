"""What is known of the whole at one moment: gathered once (`pipeline/health.py`), judged by `checks.py`, as values.

None: it could not be found out, because what would say it is away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Queue:
    """ready: batches in the ledger; messages: of them that wait in Redis, None: unknown."""

    ready: int
    oldest_seconds: float
    messages: int | None = None

    @property
    def size(self) -> int:
        """Ready batches, and messages beyond them (a message of a batch that is ready is not counted twice)."""
        return max(self.ready, self.messages or 0)


@dataclass(frozen=True, slots=True)
class Silent:
    """A worker, or another process of ours, that was last heard of so many seconds ago."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Overdue:
    """A duty that should have run so many seconds ago. disabled: and somebody has switched it off."""

    name: str
    seconds: float
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class Failing:
    """A duty or a schedule whose last run failed. times: in a row."""

    name: str
    error: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class Process:
    """name: worker and part; worker: its id; rss: resident bytes; child: whether it is a pool child, which is what
    memory.hard_mb is for."""

    name: str
    worker: str
    rss: int
    child: bool = True


@dataclass(frozen=True, slots=True)
class Disk:
    """Room of postgres, qdrant or redis. days: until it is full, by its trend; None: not for long, or unknown."""

    name: str
    used_percent: float | None
    days: float | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """What all processes measured of an operation in the last minutes. p95: seconds."""

    count: int
    error_rate: float
    p95: float


@dataclass(frozen=True, slots=True)
class Resting:
    """A circuit that is open although its dependency answers: it has no room, or has answered again just now."""

    dependency: str
    error: str


@dataclass(frozen=True, slots=True)
class Provider:
    """Who embeds for money, where nothing is asked of it now. cause: the class of the error (pipeline/errors.py)."""

    cause: str
    error: str


@dataclass(frozen=True, slots=True)
class Remote:
    """A batch of the Batch API of which there is something to say."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Late:
    """An unfinished job that was needed so many seconds ago; negative: it is known that it will be late. why: of what
    routing could not do about it."""

    name: str
    seconds: float
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """Of this month, in US dollars. tenant: empty: of all together. used: what is held back included."""

    tenant: str
    used: float
    limit: float

    @property
    def percent(self) -> float:
        return 100.0 * self.used / self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Each as of now; the defaults are those of a whole in which nothing is wrong, and nothing is done.

    others_asked: whether Redis, Qdrant and Flower were. beat_seconds: since beat was last heard of; infinite: never.
    consumed: queues of live workers. hard_bytes: `memory.hard_mb` of the settings. machines: host -> used per cent of
    its memory. everything_paused: seconds since then. provider: none: it is asked what there is to ask. model_changes:
    that processes found in the last minutes. budgets: those of which much is used. paused_by_budget: jobs.
    """

    ledger_error: str | None = None
    others_asked: bool = True
    broker_error: str | None = None
    vectors_error: str | None = None
    flower_error: str | None = None
    resting: tuple[Resting, ...] | None = ()
    lost_collections: tuple[str, ...] | None = ()
    queues: Mapping[str, Queue] | None = None
    consumed: frozenset[str] | None = None
    silent_workers: tuple[Silent, ...] | None = ()
    overdue: tuple[Overdue, ...] | None = ()
    failing_duties: tuple[Failing, ...] | None = ()
    failing_schedules: tuple[Failing, ...] | None = ()
    beat_seconds: float | None = None
    open_letters: int | None = 0
    webhooks_given_up: int | None = 0
    processes: tuple[Process, ...] | None = ()
    hard_bytes: int = 900 * 1024**2
    machines: Mapping[str, float] | None = None
    disks: tuple[Disk, ...] | None = ()
    operations: Mapping[str, Operation] | None = None
    everything_paused: float | None = None
    wedged: int | None = 0
    provider: tuple[Provider, ...] | None = ()
    model_changes: int | None = 0
    doubtful_batches: tuple[Remote, ...] | None = ()
    stuck_batches: tuple[Remote, ...] | None = ()
    late_jobs: tuple[Late, ...] | None = ()
    budgets: tuple[Budget, ...] | None = ()
    paused_by_budget: int | None = 0

    @classmethod
    def without_ledger(cls, error: str) -> Facts:
        """Where Postgres is away nothing else is known."""
        return cls(
            ledger_error=error,
            others_asked=False,
            resting=None,
            lost_collections=None,
            silent_workers=None,
            overdue=None,
            failing_duties=None,
            failing_schedules=None,
            open_letters=None,
            webhooks_given_up=None,
            processes=None,
            disks=None,
            wedged=None,
            provider=None,
            model_changes=None,
            doubtful_batches=None,
            stuck_batches=None,
            late_jobs=None,
            budgets=None,
            paused_by_budget=None,
        )
