"""`millrace pause`, `resume` and `prioritize`: what waits, and what comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from workers.cli.output import for_people, json_option, note, print_json, print_table, say

if TYPE_CHECKING:
    from pipeline.ledger.pauses import Pause

_job_argument = click.argument("job_id", metavar="[ID]", required=False)
_collection_option = click.option("--collection", metavar="NAME", help="A collection instead of a job.")
_all_option = click.option("--all", "everything", is_flag=True, help="Everything.")


@click.command()
@_job_argument
@_collection_option
@_all_option
@click.option("--reason", metavar="TEXT", help="Shown wherever somebody asks why it waits.")
@json_option
def pause(job_id: str | None, collection: str | None, everything: bool, reason: str | None, as_json: bool) -> None:
    """Begin no further work of a job, a collection, or everything.

    What is at work goes on to its end, and documents are taken in as before: they wait. `millrace resume` lets it go
    on. Without anything named, it lists what is paused.
    """
    from pipeline.client import Client

    with Client() as client:
        if job_id is None and collection is None and not everything:
            _tell(client.paused(), as_json)
            return
        found = client.pause(job_id, collection=collection, everything=everything, reason=reason)
    _tell(found, as_json)


@click.command()
@_job_argument
@_collection_option
@_all_option
@json_option
def resume(job_id: str | None, collection: str | None, everything: bool, as_json: bool) -> None:
    """Let a paused job, collection, or everything go on.

    Each has a pause of its own: a job goes on when neither it, nor its collection, nor everything is paused.
    """
    from pipeline.client import Client

    with Client() as client:
        found = client.resume(job_id, collection=collection, everything=everything)
    if not found and not as_json:
        say("nothing is paused")
        return
    _tell(found, as_json)


@click.command()
@click.argument("job_id", metavar="ID")
@click.argument("priority", type=click.Choice(["high", "normal", "low"]))
@json_option
def prioritize(job_id: str, priority: str, as_json: bool) -> None:
    """Give an unfinished job another priority.

    Its waiting work goes to that queue at once; what is at work goes on.
    """
    from pipeline.client import Client
    from workers.cli.outcome import print_job

    with Client() as client:
        status = client.prioritize(job_id, priority)
    if as_json:
        print_json(status.to_json())
    else:
        print_job(status)


def _tell(found: list[Pause], as_json: bool) -> None:
    if as_json:
        print_json({"paused": [pause.to_json() for pause in found]})
    elif found:
        print_table(("paused", "since (UTC)", "reason"), [_row(pause) for pause in found])
    elif for_people():
        note("Nothing is paused; `millrace pause ID`, `--collection NAME` or `--all` does it.")


def _row(pause: Pause) -> tuple[object, ...]:
    return pause.what, pause.since.isoformat()[:19].replace("T", " "), pause.reason


COMMANDS = (pause, resume, prioritize)
