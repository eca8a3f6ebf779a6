"""`millrace jobs`, `job`, `wait` and `cancel`: what was asked for, and how it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from workers.cli.options import limit_option
from workers.cli.output import for_people, json_option, note, print_json, print_table

if TYPE_CHECKING:
    from pipeline.status import JobStatus

STATES = ("queued", "running", "paused", "succeeded", "partial", "failed", "cancelled")

job_argument = click.argument("job_id", metavar="ID")


@click.command()
@limit_option(20)
@click.option("--state", type=click.Choice(STATES), help="Only jobs in this state.")
@json_option
def jobs(limit: int, state: str | None, as_json: bool) -> None:
    """List jobs, the newest first."""
    from pipeline.client import Client

    with Client() as client:
        found = client.jobs(limit=limit, state=state)
    if as_json:
        print_json({"jobs": [status.to_json() for status in found]})
    elif found:
        columns = ("job", "state", "kind", "collection", "documents", "chunks", "made (UTC)", "waiting")
        print_table(columns, [_row(status) for status in found])
    elif for_people():
        note(f"There are no {state} jobs." if state else "There are no jobs yet; `millrace ingest PATH` makes one.")


@click.command()
@job_argument
@json_option
def job(job_id: str, as_json: bool) -> int:
    """Show how a job is going, or how it ended.

    Exit status: 0 while it goes on and when it succeeded, 3 when a part of it failed, 1 when it failed or was
    cancelled.
    """
    from pipeline.client import Client
    from workers.cli.outcome import exit_status, print_job

    with Client() as client:
        status = client.job(job_id)
    if as_json:
        print_json(status.to_json())
    else:
        print_job(status)
    return exit_status(status)


@click.command()
@job_argument
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Give up after so many seconds.")
@json_option
def wait(job_id: str, timeout: float | None, as_json: bool) -> int:
    """Show a job's progress until it is done.

    The job goes on when this is stopped. One that somebody has paused is waited for, which is said; one that a budget
    has paused is not. Exit status: 0 when the job succeeded, 3 when a part of it failed, 1 when it failed or was
    cancelled, or when the time was over, 4 when it is over its budget (`millrace cost`).
    """
    from pipeline.client import Client
    from workers.cli.outcome import follow

    with Client() as client:
        return follow(client, client.job(job_id), as_json=as_json, timeout=timeout)


@click.command()
@job_argument
@json_option
def cancel(job_id: str, as_json: bool) -> None:
    """Stop a job.

    What it has published stays; what was on its way leaves the index.
    """
    from pipeline.client import Client
    from workers.cli.outcome import print_job

    with Client() as client:
        before = client.job(job_id)
        status = client.cancel(job_id)
    if as_json:
        print_json(status.to_json())
        return
    print_job(status)
    if before.finished:
        note(f"There was nothing left to cancel: the job was {before.state} already.")


def _row(status: JobStatus) -> tuple[object, ...]:
    from workers.cli.progress import finished_documents

    return (
        status.job_id,
        status.state,
        status.kind,
        status.collection,
        f"{finished_documents(status)}/{status.documents['total']}",
        f"{status.chunks['indexed']}/{status.chunks['total']}",
        status.created_at[:19].replace("T", " "),
        status.waiting.reason if status.waiting else "",
    )


COMMANDS = (jobs, job, wait, cancel)
