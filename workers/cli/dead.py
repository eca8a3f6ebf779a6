"""`millrace dead`, `retry` and `discard`: documents that could not be indexed, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from workers.cli.options import correlation_option, limit_option
from workers.cli.output import for_people, json_option, note, print_json, print_table, say

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.ledger.dead_letters import DeadLetter
    from pipeline.retries import Retried

_SHOWN_ERROR_CHARACTERS = 100

_job_option = click.option("--job", "job_id", metavar="ID", help="Only those of this job.")
_document_option = click.option("--document", metavar="URI", help="Only that of this document of the collection.")
_collection_option = click.option("--collection", metavar="NAME", help="Only those of this collection.")
_tenant_option = click.option(
    "--tenant", help="Only those of this tenant.  [default: all; of a document, MILLRACE_TENANT]"
)
_all_option = click.option("--all", "everything", is_flag=True, help="All that there are.")
_ids_argument = click.argument("letter_ids", metavar="[ID]...", nargs=-1, type=click.IntRange(1))


def _selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which `retry` and `discard` are told what is meant."""
    for option in (_all_option, _tenant_option, _collection_option, _document_option, _job_option, _ids_argument):
        command = option(command)
    return command


@click.command()
@click.argument("letter_id", metavar="[ID]", required=False, type=click.IntRange(1))
@_job_option
@_document_option
@_collection_option
@_tenant_option
@click.option("--resolved", is_flag=True, help="Retried, discarded and superseded ones too; they are kept for a week.")
@click.option("--after", metavar="ID", type=click.IntRange(1), help="Go on after this one, the last of a page.")
@limit_option(20)
@json_option
def dead(letter_id: int | None, limit: int, as_json: bool, **which: Any) -> None:
    """List documents that could not be indexed, the newest first; or show all about one.

    What is published of such a document is served on. `millrace retry` tries it again.
    """
    from pipeline.client import Client

    which["job"] = which.pop("job_id")
    with Client() as client:
        if letter_id is not None:
            _show(client.dead_letter(letter_id), as_json)
            return
        found = client.dead_letters(limit=limit, **which)
    if as_json:
        print_json({"dead_letters": [letter.to_json() for letter in found]})
    elif found:
        columns = ["id", "when (UTC)", "uri", "step", "attempts", "error"]
        rows = [_row(letter) for letter in found]
        if which["resolved"]:
            columns.insert(5, "resolution")
            rows = [(*row[:5], letter.resolution, *row[5:]) for row, letter in zip(rows, found, strict=True)]
        print_table(columns, rows)
        if len(found) == limit and for_people():
            note(f"There may be more: `millrace dead --after {found[-1].id}`")
    elif for_people():
        note("There are no dead letters: no document has failed that is not published by now.")


@click.command()
@_selecting
@click.option(
    "--priority",
    type=click.Choice(["high", "normal", "low"]),
    help="The queue that the work goes to.  [default: that of the job that failed]",
)
@correlation_option
@click.option(
    "--wait", is_flag=True, help="Show the progress, and return when everything was tried, or is over its budget."
)
@json_option
def retry(
    letter_ids: tuple[int, ...],
    priority: str | None,
    correlation_id: str | None,
    wait: bool,
    as_json: bool,
    **which: Any,
) -> int:
    """Try documents again that could not be indexed, in a new job.

    Their content is in the ledger: nothing is read again. A document that was ingested or deleted since is left as it
    is.
    """
    from pipeline.client import Client

    with Client() as client:
        named = _named(letter_ids, which)
        done = client.retry(letter_ids, priority=priority, correlation_id=correlation_id, **named)
        return _tell(client, done, wait=wait, as_json=as_json)


@click.command()
@_selecting
@json_option
def discard(letter_ids: tuple[int, ...], as_json: bool, **which: Any) -> None:
    """Let documents go that could not be indexed.

    Their content is dropped from the ledger; what is published of them stays.
    """
    from pipeline.client import Client

    with Client() as client:
        count = client.discard(letter_ids, **_named(letter_ids, which))
    if as_json:
        print_json({"discarded": count})
    else:
        say(f"discarded  {count:,}")


def _named(letter_ids: tuple[int, ...], which: dict[str, Any]) -> dict[str, Any]:
    which["job"] = which.pop("job_id")
    chosen = [which["job"], which["document"], which["collection"]]
    if which["everything"] and (letter_ids or any(chosen)):
        raise click.UsageError("--all means all that there are; leave it out, or everything else")
    if not which["everything"] and not letter_ids and not any(chosen):
        raise click.UsageError("name dead letters by ID, --job, --document or --collection, or say --all")
    return which


def _tell(client: Client, done: Retried, *, wait: bool, as_json: bool) -> int:
    """Waits where that is wanted, and tells what became of it. Returns the exit status."""
    from workers.cli.outcome import exit_status, follow, note_over_budget, wait_for
    from workers.cli.progress import pauses

    if done.superseded:
        note(f"{done.superseded:,} left as they are: their documents have newer versions.")
    if as_json:
        found = [wait_for(client, job, pauses()) if wait else job for job in done.jobs]
        for status in found if wait else ():
            note_over_budget(status)
        print_json(
            {
                "retried": done.retried,
                "superseded": done.superseded,
                "jobs": [status.to_json() for status in found],
            }
        )
        return max((exit_status(status, awaited=wait) for status in found), default=0)
    if not done.jobs:
        say("retried    0: there is no open dead letter with content among them")
        return 0
    if wait:
        return max(follow(client, status, as_json=False) for status in done.jobs)
    say(f"retried    {done.retried:,}")
    for status in done.jobs:
        say(f"job        {status.job_id} ({status.documents['total']:,} in collection {status.collection})")
    return 0


def _row(letter: DeadLetter) -> tuple[object, ...]:
    lines = letter.error.splitlines() or [""]
    return (
        letter.id,
        f"{letter.created_at:%Y-%m-%d %H:%M:%S}",
        letter.uri,
        letter.step,
        letter.attempts,
        lines[0][:_SHOWN_ERROR_CHARACTERS],
    )


def _show(letter: DeadLetter, as_json: bool) -> None:
    if as_json:
        print_json(letter.to_json())
        return
    say(f"document   {letter.uri} (collection {letter.collection}, tenant {letter.tenant})")
    say(f"job        {letter.job_id}")
    say(f"failed     at {letter.created_at:%Y-%m-%d %H:%M:%S} UTC, in {letter.step}: {_tried(letter)}")
    if letter.resolved_at is not None:
        by = f" by job {letter.retried_by}" if letter.retried_by else ""
        say(f"resolved   at {letter.resolved_at:%Y-%m-%d %H:%M:%S} UTC: {letter.resolution}{by}")
    elif letter.size is not None:
        named = letter.media_type or "of no named type"
        say(f"kept       {letter.size:,} bytes, {named}; `millrace retry {letter.id}` tries them again")
    else:
        say("kept       nothing: ingest the document again")
    say(f"error      {letter.error}")
    if letter.chunk is not None:
        say(f"\nchunk {letter.ordinal}\n{letter.chunk}")
    if letter.traceback:
        say(f"\n{letter.traceback}")


def _tried(letter: DeadLetter) -> str:
    from workers.cli.progress import counted

    told = counted(letter.attempts, "attempt")
    return f"{told}, {letter.losses} lost workers" if letter.losses else told


COMMANDS = (dead, retry, discard)
