"""Schedules as people ask for them, and how runs that are due get to a worker."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pipeline.assembly import Services
from pipeline.broker import SYNC_TASK, Broker
from pipeline.errors import BrokerUnavailable, InvalidRequest, Unavailable
from pipeline.intervals import seconds_between
from pipeline.ledger import fleet, jobs, schedules
from pipeline.ledger.engine import Connection, Ledger
from pipeline.ledger.schedules import Schedule, SyncOptions
from pipeline.observe import logger
from pipeline.providers import Asked, check_cost, deadline, ensure_collection
from pipeline.sources import Rows, check_metadata, file_path
from pipeline.submission import correlation
from pipeline.sync import open_to_sync

# Names of parameters whose values let somebody in.
_SECRET = re.compile(r"pass|secret|token|credential|signature|api.?key|access.?key|^(key|sig|auth)$", re.IGNORECASE)

# A run occupies a pool child for as long as it lists. It goes to a queue that the express worker, which rescues, does
# not consume.
_RUN_QUEUES = {"high": "normal", "normal": "normal", "low": "low"}
_GENERAL_QUEUE = "normal"


ScheduleChange = Literal["pause", "resume", "run", "remove"]

_CHANGES: Mapping[str, Callable[[Connection, int], object]] = {
    "pause": schedules.pause,
    "resume": schedules.resume,
    "run": schedules.make_due,
    "remove": schedules.remove,
}
_SEND_LIMIT = 100

_log = logger("schedules")


def source_text(source: str | Path) -> str:
    """How a schedule names its source: a path is absolute, a URL is as it is. Raises InvalidRequest where it holds a
    secret: the ledger keeps none."""
    text = os.fspath(source)
    scheme, separator, _ = text.partition("://")
    if not isinstance(source, str) or not separator:
        return os.path.abspath(os.path.expanduser(text))
    if scheme.lower() == "file":
        return str(file_path(text))
    _refuse_secrets(text, scheme)
    return text


def _refuse_secrets(url: str, scheme: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    names = [pair.partition("=")[0] for pair in re.split("[&;]", parts.query)]
    if "@" in parts.netloc or any(_SECRET.search(name) for name in names):
        raise InvalidRequest(
            f"a schedule holds no credentials, and this {scheme}:// URL does; "
            "give them to the workers' environment, and leave them out of the URL"
        )


def put(
    services: Services,
    source: str | Path,
    every: str | float | timedelta,
    options: SyncOptions,
    collection: str,
    tenant: str,
) -> Schedule:
    """Makes or changes a schedule; its next run is due now.

    Raises InvalidRequest, CollectionMismatch, SourceRefused.
    """
    seconds = seconds_between(every)
    jobs.priority_number(options.priority)
    asked = Asked(options.provider, options.model, options.dimensions)
    asked.check()
    if isinstance(deadline(options.need_by), datetime):
        raise InvalidRequest(f"each run of a schedule has a need_by of its own: 2h and not {options.need_by}")
    check_cost(options.max_cost)
    options = replace(options, correlation_id=correlation(options.correlation_id))
    if options.metadata is not None:
        check_metadata(options.metadata, "the metadata of this schedule")
    text = source_text(source)
    rows = Rows.from_json(options.rows) if options.rows is not None else None
    open_to_sync(text, services.settings.sources, include=options.include, exclude=options.exclude, rows=rows)
    with services.ledger.transaction() as connection:
        ensure_collection(services, connection, collection, asked)
        made = schedules.put(
            connection, collection=collection, tenant=tenant, source=text, options=options, every_seconds=seconds
        )
    _send_soon(services)
    return made


def change(
    services: Services, wanted: int | str | Path, how: ScheduleChange, collection: str | None, tenant: str
) -> Schedule:
    """Carries out a change; the schedule as it is then, or was. Raises InvalidRequest."""
    if how not in _CHANGES:
        raise InvalidRequest(f"a schedule can {', '.join(_CHANGES)}, not {how!r}")
    with services.ledger.transaction() as connection:
        found = find(connection, wanted, collection=collection, tenant=tenant)
        _CHANGES[how](connection, found.id)
        changed = schedules.listing(connection, schedule_id=found.id)
    if how in ("run", "resume"):
        _send_soon(services)
    return changed[0] if changed else found


def _send_soon(services: Services) -> None:
    try:
        send_due(services.ledger, services.broker, _SEND_LIMIT)
    except Unavailable as error:
        _log.warning("the duty will send what is due: %s", error)


def find(connection: Connection, wanted: int | str | Path, *, collection: str | None, tenant: str) -> Schedule:
    """The schedule of this id, or of this source. Raises InvalidRequest where there is none, or more than one."""
    if isinstance(wanted, int) or (isinstance(wanted, str) and wanted.isdecimal()):
        found = schedules.listing(connection, schedule_id=min(int(wanted), 2**63 - 1))
    else:
        found = [
            schedule
            for schedule in schedules.listing(connection, source=source_text(wanted))
            if schedule.tenant == tenant and collection in (None, schedule.collection)
        ]
    if not found:
        raise InvalidRequest(f"there is no schedule {wanted}; `millrace schedules` lists them")
    if len(found) > 1:
        several = ", ".join(f"{schedule.id} ({schedule.collection})" for schedule in found)
        raise InvalidRequest(f"{wanted} has several schedules: {several}; name one by its id")
    return found[0]


def general_slots(connection: Connection) -> int:
    """Pool children that list sources, and do the work that comes of it."""
    return sum(row["slots"] for row in fleet.alive(connection) if _GENERAL_QUEUE in row["queues"].split(","))


def send_due(ledger: Ledger, broker: Broker, limit: int) -> int:
    """Sends runs that are due to the queues. At most half of the workers' slots list sources at one time: the others
    do the work that comes of it.

    Returns how many were sent. Raises BrokerUnavailable (nothing is lost: the duty sends it later), LedgerUnavailable.
    """
    with ledger.transaction() as connection:
        picked = schedules.pick_due(connection, limit, max(1, general_slots(connection) // 2))
    if not picked:
        return 0
    try:
        return broker.send((SYNC_TASK, schedule_id, _RUN_QUEUES[priority]) for schedule_id, priority in picked)
    except BrokerUnavailable:
        # Which of them arrived is not known; one that is sent twice finds nothing to claim.
        with ledger.transaction() as connection:
            schedules.unstamp(connection, [schedule_id for schedule_id, _ in picked])
        raise


def find_lost_messages(ledger: Ledger, broker: Broker) -> int:
    """After a flush of Redis, or a message that died with its worker: clears the stamps of what is gone."""
    carried = broker.carried((SYNC_TASK,))
    with ledger.transaction() as connection:
        return schedules.forget_lost_messages(connection, carried)
