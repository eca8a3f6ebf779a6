"""`millrace sync` and `schedules`: collections that are made like a source, once or again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from workers.cli.estimate import check_dry_run, dry_run_option, tell_estimate
from workers.cli.options import (
    as_metadata,
    collection_option,
    correlation_option,
    embedding_options,
    exclude_option,
    include_option,
    metadata_option,
    priority_option,
    rows_options,
    tenant_option,
    wait_option,
    webhook_option,
    when_full_option,
)
from workers.cli.output import for_people, json_option, note, print_json, print_table, say

if TYPE_CHECKING:
    from pipeline.backpressure import WhenFull
    from pipeline.client import Client
    from pipeline.ledger.schedules import Schedule

CHANGES = ("pause", "resume", "run", "remove")


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option(
    "--every",
    metavar="INTERVAL",
    help="Now, and then again and again: 30s, 15m, 1h, 1d. The workers read SOURCE: a path must be the same on every "
    "machine that has one.",
)
@collection_option
@priority_option
@embedding_options
@tenant_option
@metadata_option
@include_option
@exclude_option
@rows_options
@click.option("--force", is_flag=True, help="Delete even more than half of the documents of SOURCE.")
@dry_run_option
@webhook_option
@when_full_option
@correlation_option
@wait_option
@json_option
def sync(
    source: str,
    every: str | None,
    metadata: tuple[tuple[str, str], ...],
    tenant: str | None,
    webhook: str | None,
    when_full: WhenFull,
    dry_run: bool,
    wait: bool,
    as_json: bool,
    **request: Any,
) -> int:
    """Make a collection like a source.

    Indexes what is there, and deletes the documents that are gone or left out. SOURCE: a directory, a glob, an archive
    or a table, a URL such as s3://bucket/prefix. With --every it is a schedule (`millrace schedules`); the same command
    with another interval changes it.
    """
    from pipeline.client import Client
    from workers.cli.outcome import carry_out

    if every is not None and wait:
        raise click.UsageError("--wait is for a single sync; `millrace schedules` shows how one with --every goes")
    if every is not None and webhook is not None:
        raise click.UsageError("--webhook is for a single sync; the runs of one with --every tell nobody")
    given = as_metadata(metadata) or None
    with Client(tenant=tenant) as client:
        if dry_run:
            check_dry_run(wait=wait, every=every)
            return tell_estimate(client, source, {**request, "metadata": given}, as_json=as_json, sync=True)
        if every is not None:
            _tell(client.schedule(source, every=every, metadata=given, **request), as_json)
            return 0
        return carry_out(
            client,
            lambda show: client.sync(
                source, metadata=given, webhook=webhook, when_full=when_full, on_staged=show, **request
            ),
            wait=wait,
            as_json=as_json,
            again="The same command again does nothing twice that is done by then.",
        )


@click.command()
@click.argument("change", metavar="[CHANGE]", type=click.Choice(CHANGES), required=False)
@click.argument("schedule", metavar="[ID|SOURCE]", required=False)
@click.option("--collection", help="Of the source's schedules, the one of this collection.")
@tenant_option
@json_option
def schedules(
    change: str | None, schedule: str | None, collection: str | None, tenant: str | None, as_json: bool
) -> None:
    """List what is synchronised again and again, or change one of it.

    CHANGE: `pause`, `resume`, `run` (now, also while it is paused) or `remove` (its documents stay). Without one,
    every schedule is listed, with its newest job.
    """
    from pipeline.client import Client

    if change is not None and schedule is None:
        raise click.UsageError(f"say which schedule to {change}: its ID, or its SOURCE")
    with Client(tenant=tenant) as client:
        if change is not None and schedule is not None:
            changed = client.change_schedule(schedule, change, collection=collection)  # type: ignore[arg-type]
            _tell(changed, as_json, removed=change == "remove")
        else:
            _list(client, collection, tenant, as_json)


def _list(client: Client, collection: str | None, tenant: str | None, as_json: bool) -> None:
    found = [
        schedule
        for schedule in client.schedules()
        if collection in (None, schedule.collection) and tenant in (None, schedule.tenant)
    ]
    if as_json:
        print_json({"schedules": [schedule.to_json() for schedule in found]})
    elif found:
        columns = ("id", "source", "collection", "every", "state", "next (UTC)", "last job", "its state", "error")
        print_table(columns, [_row(schedule) for schedule in found])
    elif for_people():
        note("There are no schedules; `millrace sync SOURCE --every 1h` makes one.")


def _row(schedule: Schedule) -> tuple[object, ...]:
    return (
        schedule.id,
        schedule.source,
        schedule.collection,
        interval(schedule.every_seconds),
        schedule.state,
        "" if schedule.paused else f"{schedule.next_due:%Y-%m-%d %H:%M:%S}",
        schedule.last_job,
        schedule.job_state,
        schedule.last_error,
    )


def interval(seconds: float) -> str:
    """Such as `90s`, `15m`, `1h`: as `--every` takes it."""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def _tell(schedule: Schedule, as_json: bool, *, removed: bool = False) -> None:
    if as_json:
        print_json(schedule.to_json() | ({"state": "removed"} if removed else {}))
        return
    say(f"schedule   {schedule.id} ({schedule.source}, collection {schedule.collection})")
    if removed:
        say("state      removed; its documents stay")
        return
    say(f"every      {interval(schedule.every_seconds)}")
    say(f"state      {schedule.state}")
    if schedule.last_error:
        say(f"error      {schedule.last_error}")
    if not schedule.paused:
        say(f"next       {schedule.next_due:%Y-%m-%d %H:%M:%S} UTC")
    note("  millrace schedules  shows how it goes")


COMMANDS = (sync, schedules)
