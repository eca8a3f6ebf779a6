"""The state of the whole: how it is, what is missing, what waits, who works.

The facts are gathered here, once; what is wrong with them is judged by `pipeline/monitoring/checks.py`.
"""

from __future__ import annotations

import http.client
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from pipeline import duties as duty_states
from pipeline.assembly import Services
from pipeline.broker import WORK_QUEUES
from pipeline.errors import (
    BoughtElsewhere,
    BrokerUnavailable,
    BudgetExhausted,
    InvalidRequest,
    LeaseLost,
    LedgerUnavailable,
    ProviderLimited,
    VectorsUnavailable,
)
from pipeline.ledger import (
    alerts,
    backlog,
    buying_signs,
    circuits,
    duties,
    fleet,
    jobs,
    overrides,
    pauses,
    schedules,
    usage,
    vital_signs,
)
from pipeline.ledger import services as service_rows
from pipeline.ledger.buying_signs import OnOrder
from pipeline.ledger.circuits import Open
from pipeline.ledger.diagnosis import diagnose
from pipeline.ledger.duties import DutyState
from pipeline.ledger.engine import Connection
from pipeline.lifecycle import FINISHED_JOBS
from pipeline.monitoring import memory, storage
from pipeline.monitoring.checks import Judged, judge
from pipeline.monitoring.facts import (
    Budget,
    Disk,
    Facts,
    Failing,
    Late,
    Operation,
    Overdue,
    Process,
    Provider,
    Queue,
    Remote,
    Resting,
    Silent,
)
from pipeline.monitoring.thresholds import Thresholds
from pipeline.monitoring.window import Window
from pipeline.rebuild import lost_collections
from pipeline.settings import Settings, read_run_file
from pipeline.status import average_rate, job_status, with_rate

# Unfinished jobs that are told of one by one, the oldest first.
_SHOWN_JOBS = 20
# The figures of operations that are judged are those of the last minutes.
WINDOW_MINUTES = 5.0
# Flower is no part of the work, and nobody waits for it.
_FLOWER_SECONDS = 1.0
_MIB = 1024**2
# The duty that raises alerts.
_ASKING = "alerts"


def _names(kind: type[Exception]) -> set[str]:
    return {kind.__name__}.union(*(_names(child) for child in kind.__subclasses__()))


# A search of a collection that is not there says something of who asked; who lost a lease was slower than another; and
# who is asked to wait, or finds another one at it, or a budget used up, is told so as it should be.
_OF_CALLERS = frozenset(
    name
    for kind in (InvalidRequest, LeaseLost, ProviderLimited, BoughtElsewhere, BudgetExhausted)
    for name in _names(kind)
)


def health(services: Services) -> dict[str, Any]:
    """Health and its issues, queues (messages and ready batches), jobs by state, the first of the unfinished ones with
    their diagnoses, live workers. Where Postgres is away, the score is 0 and the rest is empty."""
    try:
        facts = gather(services)
        with services.ledger.transaction() as own:
            thresholds = Thresholds(services.settings.alerts, overrides.read(own))
            by_state = jobs.by_state(own)
            unfinished = jobs.unfinished(own, _SHOWN_JOBS)
            diagnoses = diagnose(own, unfinished)
            used = usage.of_jobs(own, unfinished)
            alive = fleet.alive(own)
            paused = pauses.listing(own)
            away = circuits.listing(own)
            active = alerts.active_by_severity(own)
            on_order = buying_signs.on_order(own)
    except LedgerUnavailable as error:
        return without_ledger(str(error), services.settings)
    return {
        "health": to_json(judge(facts, thresholds)),
        "alerts": active,
        "queues": {
            name: {"messages": queue.messages, "ready_batches": queue.ready, "oldest_seconds": queue.oldest_seconds}
            for name, queue in (facts.queues or {}).items()
        },
        "jobs": {state: by_state.get(state, 0) for state in ("queued", "running", "paused")} | by_state,
        "unfinished": {
            "total": sum(count for state, count in by_state.items() if state not in FINISHED_JOBS),
            "jobs": [
                with_rate(job_status(job, (), waiting, used[job.id]), job, average_rate(job)).to_json()
                for job, waiting in zip(unfinished, diagnoses, strict=True)
            ],
        },
        "paused": [pause.to_json() for pause in paused],
        "circuits": [found.to_json() for found in away],
        "openai": _provider(services.settings, away, on_order),
        "workers": [
            {
                "id": row["id"],
                "host": row["host"],
                "pid": row["pid"],
                "queues": row["queues"].split(","),
                "metrics_url": row["metrics_url"],
                "processes": row["processes"],
            }
            for row in alive
        ],
    }


def _provider(settings: Settings, away: Sequence[Open], on_order: OnOrder) -> dict[str, Any] | None:
    """How it is with who embeds for money, and what is on order there; None where nobody uses it."""
    circuit = next((found for found in away if found.dependency == circuits.OPENAI), None)
    if circuit is None and not on_order.anything and not settings.openai.api_key.get_secret_value():
        return None
    until = circuit.until if circuit else None
    return {
        "state": buying_signs.provider_state(circuit),
        "error": circuit.error if circuit else None,
        "until": until.isoformat() if until else None,
        **on_order.to_json(),
    }


def without_ledger(error: str, settings: Settings) -> dict[str, Any]:
    """What is told where Postgres does not answer, and so nothing else is known."""
    judged = judge(Facts.without_ledger(error), Thresholds(settings.alerts, {}))
    return {
        "health": to_json(judged),
        "alerts": {},
        "queues": {},
        "jobs": {},
        "unfinished": {"total": 0, "jobs": []},
        "paused": [],
        "circuits": [],
        "openai": None,
        "workers": [],
    }


def to_json(judged: Judged) -> dict[str, Any]:
    """The stable JSON form (docs/health.md)."""
    return {
        "score": judged.score,
        "issues": [issue.to_json() for issue in judged.issues],
        "unknown": sorted(judged.unknown),
    }


def gather(services: Services) -> Facts:
    """All that the checks ask for, as of now. Raises LedgerUnavailable; what else is away is in the facts."""
    with services.ledger.transaction() as own:
        depth = backlog.depth(own)
        alive = fleet.alive(own)
        states = duties.states(own)
        signs = vital_signs.read(own)
        silent = vital_signs.silent_workers(own)
        failing = schedules.failing(own)
        open_circuits = circuits.listing(own)
        processes = memory.processes(own)
        beats = service_rows.listing(own, service_rows.BEAT)
        disks = _disks(own)
        bought = _bought(own, services.settings)
    broker_error, messages = _messages(services)
    # Where Redis has just not answered, nobody waits for it a second time.
    window = None if broker_error else _window(services)
    vectors_error, lost = _vectors(services)
    return Facts(
        broker_error=broker_error,
        vectors_error=vectors_error,
        flower_error=_flower(services.settings),
        # Away it is told of already; what is left is a disk that is full, or one that has just answered again.
        resting=tuple(
            Resting(found.dependency, found.error)
            for found in open_circuits
            if found.dependency != circuits.OPENAI and (found.dependency != circuits.VECTORS or vectors_error is None)
        ),
        lost_collections=lost,
        queues={
            name: Queue(int(depth[name]["ready_batches"]), depth[name]["oldest_seconds"], messages.get(name))
            for name in WORK_QUEUES
        },
        consumed=frozenset(queue for row in alive for queue in row["queues"].split(",")),
        silent_workers=tuple(Silent(row["id"], row["seconds"]) for row in silent),
        # One that is disabled is missed by nobody, but for the one without which nothing is taken up again.
        overdue=tuple(
            Overdue(state.name, state.waited_seconds, disabled=not state.enabled) for state in states if _is_late(state)
        ),
        failing_duties=tuple(
            Failing(state.name, str(state.result.get("error", "")), state.failures)
            for state in states
            if state.failed and state.enabled
        ),
        failing_schedules=tuple(
            Failing(str(row["id"]), f"({row['source']}) {row['last_error']}", row["consecutive_failures"])
            for row in failing
        ),
        beat_seconds=min((beat.silent_seconds for beat in beats), default=math.inf),
        open_letters=signs.open_letters,
        webhooks_given_up=signs.given_up,
        processes=tuple(
            Process(found.name, found.worker or "", found.rss, found.memory.get("slot", -1) >= 0) for found in processes
        ),
        hard_bytes=services.settings.memory.hard_mb * _MIB,
        machines=memory.machines(processes),
        disks=disks,
        operations=None if window is None else _operations(window),
        model_changes=None if window is None else round(window.counts.get(("openai_model_changes", ()), 0.0)),
        everything_paused=signs.everything_paused,
        wedged=signs.wedged,
        provider=tuple(
            Provider(found.cause or "", found.error) for found in open_circuits if found.dependency == circuits.OPENAI
        ),
        **bought,
    )


def _bought(own: Connection, settings: Settings) -> dict[str, Any]:
    """What there is to say of remote batches, of jobs with a `need_by`, and of budgets."""
    percent = Thresholds(settings.alerts, overrides.read(own)).of("budget_percent")
    return {
        "doubtful_batches": tuple(Remote(str(found.id), found.message) for found in buying_signs.doubtful(own)),
        "stuck_batches": tuple(Remote(str(found.id), found.message) for found in buying_signs.stuck(own)),
        "late_jobs": tuple(Late(found.job_id, found.seconds, found.why) for found in buying_signs.late(own)),
        "budgets": tuple(
            Budget(found.tenant, found.used, found.limit)
            for found in buying_signs.used_budgets(own, settings.cost, percent)
        ),
        "paused_by_budget": buying_signs.paused_by_budget(own),
    }


def _is_late(state: DutyState) -> bool:
    # That of the alerts, which asks this, is not late while it asks: after an outage it would raise an alert of itself.
    if state.name == _ASKING and state.owner is not None:
        return False
    return duty_states.is_overdue(state) or (state.name == duty_states.RECONCILE and not state.enabled)


def _messages(services: Services) -> tuple[str | None, Mapping[str, int]]:
    try:
        return None, services.broker.depths()
    except BrokerUnavailable as error:
        return str(error), {}


def _vectors(services: Services) -> tuple[str | None, tuple[str, ...] | None]:
    """Why Qdrant is away, and the collections that it has lost; None: not known."""
    if services.vectors.alive():
        with suppress(VectorsUnavailable):  # gone since
            return None, tuple(lost_collections(services.ledger, services.vectors))
    return "Qdrant does not answer", None


def _window(services: Services) -> Window | None:
    """What all processes measured in the last minutes; None where nobody adds it up, or Redis is away."""
    metrics = services.settings.metrics
    if not metrics.enabled or not metrics.cluster:
        return None
    try:
        return services.figures.read(WINDOW_MINUTES)
    except BrokerUnavailable:
        return None


def _operations(window: Window) -> dict[str, Operation]:
    return {
        name: Operation(
            one.count,
            sum(times for error, times in one.errors_by_class.items() if error not in _OF_CALLERS) / max(1, one.count),
            one.p95,
        )
        for name, one in window.operations.items()
    }


def _disks(own: Connection) -> tuple[Disk, ...]:
    """As the newest samples have it; none where nothing was sampled lately."""
    return tuple(
        Disk(store, 100 * room.used / room.limit if room.limit else None, room.full_in_days)
        for store, room in storage.fullness(own).items()
    )


def _flower(settings: Settings) -> str | None:
    """Why Flower is away; None where it answers, or its address is not known."""
    url = settings.flower.url.get_secret_value() or _embedded_flower(settings)
    if not url:
        return None
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_FLOWER_SECONDS)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/healthcheck")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"Flower does not answer: {type(error).__name__}: {error}"
    finally:
        connection.close()
    return None if status < 500 else f"Flower answers with status {status}"


def _embedded_flower(settings: Settings) -> str:
    flower = (read_run_file(settings.home).get("processes") or {}).get("flower")
    return str(flower["url"]) if isinstance(flower, dict) and flower.get("url") else ""
