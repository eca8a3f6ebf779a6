"""Alerts, from the facts to whoever is told: the story of the duty `alerts`, and what operators do with them.

1. The facts are gathered, and judged by the thresholds that are in effect now.
2. In one transaction alerts are raised, held and cleared, what the system does about them is decided and written down,
   and webhooks are owed.
3. The log and the callbacks of this process are told of what is owed to them, and that is written down after each: a
   worker that is killed in between leaves it to the next one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from pipeline.assembly import Services
from pipeline.duties import Bounds
from pipeline.errors import InvalidRequest
from pipeline.health import gather
from pipeline.ledger import alerts, fleet, overrides, webhooks
from pipeline.ledger.alerts import Alert
from pipeline.ledger.engine import Connection
from pipeline.monitoring import triggers
from pipeline.monitoring.alerts import Standing, Step, step
from pipeline.monitoring.callbacks import Callbacks, Told
from pipeline.monitoring.checks import SEVERITIES, judge, rank
from pipeline.monitoring.facts import Facts
from pipeline.monitoring.thresholds import InEffect, Thresholds, check
from pipeline.observe import count, logger
from pipeline.settings import AlertSettings

# A test alert's webhook is waited for so much longer than one delivery may take.
_TEST_MARGIN_SECONDS = 2.0

_log = logger("alerts")


# -- the duty --------------------------------------------------------------------------------------------------------


def evaluate(services: Services, bounds: Bounds, callbacks: Callbacks) -> dict[str, int]:
    """One look. Returns the score of health, how many alerts are active, were raised and cleared, how many events were
    told, and whether batches were resized. Raises LedgerUnavailable."""
    facts = gather(services)
    counts = decide(services, facts)
    return {**counts, "told": tell(services, bounds, callbacks)}


def decide(services: Services, facts: Facts) -> dict[str, int]:
    """The second step, of the facts."""
    settings = services.settings.alerts
    with services.ledger.transaction() as connection:
        now, rows = alerts.lock_open(connection)
        judged = judge(facts, Thresholds(settings, overrides.read(connection)))
        standing = [Standing(**row) for row in rows]
        steps = step(standing, judged.conditions, judged.unknown, now)
        after = _write(connection, settings, standing, steps)
        resized = _respond(connection, [one for one in after if one.active], now)
    return {
        "score": judged.score,
        "active": sum(one.active for one in after),
        "raised": sum(made.event == "raised" for made in steps),
        "cleared": sum(made.event == "cleared" for made in steps),
        "resized": int(resized),
    }


def _write(
    connection: Connection, settings: AlertSettings, standing: Sequence[Standing], steps: Sequence[Step]
) -> list[Standing]:
    """Writes what has changed, and what is owed for it. Returns all as they stand now."""
    alerts.forget_unraised(connection, [made.standing.id for made in steps if made.forgotten and made.standing.id])
    kept = [made for made in steps if not made.forgotten]
    rows = [
        {
            **asdict(made.standing),
            "raise_owed": made.event in ("raised", "risen"),
            "clear_owed": made.event == "cleared",
        }
        for made in kept
    ]
    ids = alerts.put(connection, rows)
    if url := settings.webhook.get_secret_value():
        events = [
            (alert_id, "cleared" if made.event == "cleared" else "raised")
            for alert_id, made in zip(ids, kept, strict=True)
            if made.event is not None and rank(made.standing.severity) >= rank(settings.webhook_severity)
        ]
        webhooks.owe_alerts(connection, events, url)
    changed = {made.standing.key for made in steps}
    return [one for one in standing if one.key not in changed] + [made.standing for made in kept]


def _respond(connection: Connection, active: Sequence[Standing], now: float) -> bool:
    """What the system does by itself. Returns whether batches have another size now."""
    own = overrides.get(connection, triggers.SHARE)
    share = triggers.Share(own.value, own.changed_at.timestamp()) if own else triggers.Share()
    asked = overrides.get(connection, triggers.TUNING) is not None
    response = triggers.respond(active, share, asked, now)
    told = dict(response.told)
    if response.share is not None:
        overrides.set(connection, triggers.SHARE, response.share, response.reason)
        count("trigger_actions", 1, "shrink" if response.share < share.value else "grow")
        _log.warning(
            "batches have %.0f %% of their size now: %s",
            100 * response.share,
            response.reason,
            extra={"batch_share": response.share},
        )
    if response.restored:
        overrides.clear(connection, triggers.SHARE)
    if response.tuning is not None:
        overrides.set(connection, triggers.TUNING, 1.0, response.tuning)
        count("trigger_actions", 1, "tune")
        _log.warning("tuning of the index is asked for: %s", response.tuning)
    for key, workers in _to_collect(connection, active, response.collect).items():
        if found := fleet.ask_to_collect(connection, workers):
            count("trigger_actions", 1, "collect")
            what = f"asked {', '.join(found)} to give memory back"
            told[key] = f"{told[key]}; {what}" if key in told else what
            _log.warning("%s", what)
    for key, action in told.items():
        alerts.note_action(connection, key, action)
    return response.share is not None


def _to_collect(
    connection: Connection, active: Sequence[Standing], subjects: Sequence[str]
) -> Mapping[tuple[str, str], list[str]]:
    """Key of a memory alert -> workers that are to give memory back; those that were asked lately are left alone."""
    keys = {one.subject: one.key for one in active if one.type == triggers.MEMORY}
    rows = fleet.alive(connection) if subjects else []
    lately = fleet.asked_lately(connection, triggers.STEP_SECONDS) if subjects else set()
    found: dict[tuple[str, str], list[str]] = {}
    for subject in subjects:
        workers = [row["id"] for row in rows if subject == row["host"] or _is_of(subject, row["id"])]
        if due := [worker for worker in workers if worker not in lately]:
            found[keys[subject]] = due
            lately |= set(due)
    return found


def _is_of(process: str, worker: str) -> bool:
    """Whether a process is of a worker; its name begins with the worker's, without the start."""
    return process.startswith(f"{worker.partition('#')[0]} ")


def tell(services: Services, bounds: Bounds, callbacks: Callbacks) -> int:
    """The third step. Returns how many events were told."""
    with services.ledger.transaction() as connection:
        owed = alerts.owed(connection, bounds.rows)
    done = 0
    for alert, event in owed:
        callbacks.tell(alert)
        with services.ledger.transaction() as connection:
            alerts.told(connection, alert, event)
        done += 1
        if bounds.over:
            break
    return done


# -- operators -------------------------------------------------------------------------------------------------------


def listing(
    services: Services, severity: str | None, since_seconds: float | None, *, cleared: bool, limit: int
) -> list[Alert]:
    """Alerts, the newest first. severity: of this one and above. Raises InvalidRequest for one that is none."""
    if severity is not None and severity not in SEVERITIES:
        raise InvalidRequest(f"severity {severity!r} is none of {', '.join(SEVERITIES)}")
    wanted = SEVERITIES[rank(severity) :] if severity is not None else SEVERITIES
    with services.ledger.transaction() as connection:
        return alerts.listing(connection, severities=wanted, since_seconds=since_seconds, cleared=cleared, limit=limit)


def acknowledge(services: Services, ids: Sequence[int] | None, by: str) -> list[int]:
    """Raises InvalidRequest, naming ids that are none. Returns those that were active and are acknowledged now."""
    with services.ledger.transaction() as connection:
        if ids is not None and (unknown := alerts.missing(connection, ids)):
            raise InvalidRequest(
                f"there is no alert {', '.join(map(str, unknown))}; `millrace alerts --all` lists them"
            )
        return alerts.acknowledge(connection, ids, by)


def thresholds(services: Services) -> list[InEffect]:
    """All that are in effect, by name."""
    with services.ledger.transaction() as connection:
        own = overrides.read(connection)
    return Thresholds(services.settings.alerts, own).listing()


def set_threshold(services: Services, name: str, value: float, reason: str | None = None) -> None:
    """In effect with the next look, everywhere. Raises InvalidRequest."""
    override = check(name, value)
    with services.ledger.transaction() as connection:
        overrides.set(connection, override, value, reason)


def unset_threshold(services: Services, name: str) -> bool:
    """Back to the setting. False where nothing was set. Raises InvalidRequest."""
    override = check(name)
    with services.ledger.transaction() as connection:
        return overrides.clear(connection, override)


def test(services: Services, by: str) -> tuple[Alert, list[Told]]:
    """Sends a test alert through every callback of this machine, and the webhook; says what became of each."""
    url = services.settings.alerts.webhook.get_secret_value()
    with services.ledger.transaction() as connection:
        alert = alerts.raise_test(connection, f"a test, sent by {by}; nothing is wrong")
        if url:
            webhooks.owe_alerts(connection, [(alert.id, "raised")], url)
    told = Callbacks().tell(replace(alert, cleared_at=None))
    if url:
        told.append(_deliver(services, alert))
    return alert, told


def _deliver(services: Services, alert: Alert) -> Told:
    """Begins the delivery here, unless a worker has begun it, and waits for the first answer."""
    deadline = time.monotonic() + services.settings.webhooks.timeout + _TEST_MARGIN_SECONDS
    row: dict[str, Any] = {}
    while True:
        services.deliverer.run(limit=8)
        with services.ledger.transaction() as connection:
            (row,) = webhooks.of_alert(connection, alert.id)
        if row["state"] != "ready" or row["error"] is not None or time.monotonic() > deadline:
            break
        services.deliverer.wait(0.2)
    if row["state"] == "delivered":
        return Told("webhook")
    return Told("webhook", f"{row['error'] or 'no answer yet'} (it is tried again)")
