"""`millrace batches`: what is on order with the Batch API, how far it is, what it cost, what it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from workers.cli.output import for_people, json_option, note, print_json, print_table, say

if TYPE_CHECKING:
    from pipeline.openai_batch.report import BatchStatus

_MOST_JOBS = 20


@click.command()
@click.argument("batch_id", metavar="[ID]", type=click.IntRange(1), required=False)
@click.option("--cancel", metavar="ID", type=click.IntRange(1), help="Cancel this one: what it has finished is kept.")
@click.option("--reason", metavar="TEXT", help="Of `--cancel`: shown wherever somebody asks why.")
@click.option("--closed", metavar="N", type=click.IntRange(0), default=20, help="So many that are done, the newest.")
@json_option
def batches(batch_id: int | None, *, cancel: int | None, reason: str | None, closed: int, as_json: bool) -> None:
    """List the batches of OpenAI's Batch API, show one, or cancel one.

    Those that are at work, and the newest that are done. One that is cancelled gives what it has finished; what is
    still wanted of the rest is ordered anew, or bought online where it would be late.
    """
    from pipeline.client import Client

    if batch_id is not None and cancel is not None:
        raise click.UsageError("show one or cancel one: `millrace batches ID`, `millrace batches --cancel ID`")
    if reason is not None and cancel is None:
        raise click.UsageError("--reason is for `millrace batches --cancel ID`")
    with Client() as client:
        if cancel is not None:
            _cancel(client, cancel, reason, as_json)
        elif batch_id is not None:
            _show(client.batch(batch_id), as_json)
        else:
            _list(client.batches(closed=closed), as_json)


def _cancel(client: Any, batch_id: int, reason: str | None, as_json: bool) -> None:
    changed = client.cancel_batch(batch_id, reason) if reason else client.cancel_batch(batch_id)
    found = client.batch(batch_id)
    if as_json:
        _show(found, as_json)
    elif changed:
        say(f"batch {batch_id} is being cancelled; what it has finished is kept")
    else:
        ended = "has ended already" if found.ended_at or found.closed_at else "is being cancelled already"
        say(f"batch {batch_id} {ended}")


def _list(found: list[BatchStatus], as_json: bool) -> None:
    if as_json:
        print_json({"batches": [batch.to_json() for batch in found]})
    elif found:
        columns = ("batch", "state", "age", "texts", "done", "tokens", "cost", "jobs", "waits for")
        print_table(columns, [_row(batch) for batch in found])
    elif for_people():
        note("Nothing is on order with the Batch API; `millrace ingest PATH --provider openai_batch` orders.")


def _row(batch: BatchStatus) -> tuple[object, ...]:
    from pipeline.ledger.budgets import dollars
    from workers.cli.progress import duration

    return (
        batch.id,
        _state(batch),
        duration(batch.age_seconds),
        f"{batch.inputs:,}",
        f"{batch.done_by_now:,}",
        f"{batch.tokens:,}",
        dollars(batch.cost),
        len(batch.jobs),
        batch.waits_for or batch.error or "",
    )


def _state(batch: BatchStatus) -> str:
    """Ours, and the server's own word where it says more."""
    words = [batch.state]
    if batch.status not in {None, batch.state}:
        words.append(str(batch.status))
    if batch.doubtful:
        words.append("doubtful")
    return ", ".join(words)


def _show(batch: BatchStatus, as_json: bool) -> None:
    from pipeline.ledger.budgets import dollars
    from workers.cli.progress import duration

    if as_json:
        print_json(batch.to_json())
        return
    told = batch.to_json()
    say(f"{'batch':<10} {batch.id}, key {batch.key}")
    say(f"{'state':<10} {_state(batch)}")
    say(f"{'waits for':<10} {batch.waits_for or 'nothing'}")
    say(f"{'age':<10} {duration(batch.age_seconds)}")
    say(f"{'model':<10} {told['model']}")
    say(
        f"{'texts':<10} {batch.inputs:,}: {batch.done_by_now:,} done, {batch.failed:,} failed, "
        f"{batch.missing:,} without an answer"
    )
    say(f"{'tokens':<10} {batch.tokens:,}")
    say(f"{'cost':<10} {dollars(batch.cost)}")
    say(f"{'at OpenAI':<10} {batch.remote_id or 'not yet'}, attempt {batch.attempt}")
    for name, words in (
        ("need by", told["need_by"]),
        ("cancelled", batch.cancel_reason),
        ("error", batch.error),
        ("duplicates", ", ".join(told["duplicates"])),
    ):
        if words:
            say(f"{name:<10} {words}")
    if batch.doubtful:
        say(f"{'doubtful':<10} some of it may have been paid for more than once (docs/batch-api.md)")
    for job in batch.jobs[:_MOST_JOBS]:
        say(f"{'job':<10} {job}")
    if len(batch.jobs) > _MOST_JOBS:
        say(f"{'':<10} and {len(batch.jobs) - _MOST_JOBS:,} more")


COMMANDS = (batches,)
