"""How a job is told: while it is enqueued and awaited, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import click

from workers.cli.output import note, print_json, say
from workers.cli.progress import Show, counted, duration, figures, job_progress, pauses, waiting_reason

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.status import JobStatus

FAILED, PARTIAL, OVER_BUDGET, INTERRUPTED = 1, 3, 4, 130  # as workers.cli.main has them
SHOWN_ERRORS = 10

_COLORS = {"succeeded": "green", "partial": "yellow", "failed": "red", "cancelled": "yellow", "paused": "yellow"}


def exit_status(status: JobStatus, *, awaited: bool = False) -> int:
    """0 for a job that succeeded or goes on, 3 for one done in part, 1 for one that failed or was cancelled. awaited:
    4 for one that is over its budget: it was to be finished, and is not."""
    if awaited and status.over_budget:
        return OVER_BUDGET
    return {"partial": PARTIAL, "failed": FAILED, "cancelled": FAILED}.get(status.state, 0)


class _Seen:
    """Shows every status of a job and keeps the newest, for whoever is interrupted."""

    def __init__(self, status: JobStatus | None = None) -> None:
        self.status = status
        self.show: Show = lambda _: None

    def __call__(self, status: JobStatus) -> None:
        self.status = status
        self.show(status)


def carry_out(
    client: Client, enqueue: Callable[[Show], JobStatus], *, wait: bool, as_json: bool, again: str = ""
) -> int:
    """Enqueues a job, awaits it where that is wanted, and tells what became of it. Returns the exit status.

    enqueue: calls what it is given with the job's status as more of it is durable. again: what running the command
    again does, for a person who stopped it meanwhile; the job itself goes on.
    """
    from pipeline.errors import Transient

    seen = _Seen()
    with _progress(as_json) as seen.show:
        try:
            status = enqueue(seen)
        except KeyboardInterrupt:
            return _cut_off(seen.status, again, as_json)
        except Transient:
            if seen.status is not None:
                note(_durable(seen.status))
            raise
        awaited = wait and not status.finished
        if (reason := waiting_reason(status)) and not (awaited and status.paused):
            note(f"waiting: {reason}")
    if awaited:
        return follow(client, status, as_json=as_json)
    if as_json:
        print_json(status.to_json())
    elif status.finished:
        print_job(status)
    else:
        _print_enqueued(status)
    return exit_status(status)


def follow(client: Client, status: JobStatus, *, as_json: bool, timeout: float | None = None) -> int:
    """Waits until the job is done, or over its budget, and tells what became of it. Returns the exit status. Raises
    WaitTimeout."""
    seen = _Seen(status)
    try:
        with _progress(as_json) as seen.show:
            done = wait_for(client, status, seen, timeout)
    except KeyboardInterrupt:
        note("The job goes on." if as_json else f"The job goes on.\n{_how_to_look(status)}")
        if as_json and seen.status is not None:
            print_json(seen.status.to_json())
        return INTERRUPTED
    note_over_budget(done)
    if as_json:
        print_json(done.to_json())
    else:
        print_job(done)
    return exit_status(done, awaited=True)


def wait_for(client: Client, status: JobStatus, show: Show, timeout: float | None = None) -> JobStatus:
    """The job when it is done, or when a budget has paused it: nothing changes then before somebody acts, and what
    waits here may be a script that nobody looks at. Raises WaitTimeout."""
    from pipeline.errors import BudgetExhausted

    seen = _Seen(status)
    seen.show = show
    try:
        return client.wait(status.job_id, timeout, seen)
    except BudgetExhausted:
        return seen.status or status


def note_over_budget(status: JobStatus) -> None:
    """On stderr, where a job was waited for."""
    if status.waiting is not None and status.over_budget:
        note(f"job {status.job_id} is not waited for any longer: it is {status.waiting.reason}")


def print_job(status: JobStatus) -> None:
    """All about a job, for people: a line for each thing there is to say, its errors last."""
    state = click.style(status.state, fg=_COLORS.get(status.state))
    if status.finished:
        progress = f" after {duration(status.seconds)}"
    elif status.state == "running":
        progress = f", {status.stage}: {figures(status)}, for {duration(status.seconds)} so far"
    else:
        progress = f" for {duration(status.seconds)}"
    say(f"job        {status.job_id} ({status.kind}, collection {status.collection}, priority {status.priority})")
    if status.retry_of is not None:
        say(f"retry of   {status.retry_of}")
    say(f"state      {state}{progress}")
    if status.kind != "reembed":
        say(f"documents  {documents_of(status)}")
    if skipped := status.documents.get("skipped"):
        say(f"left out   {counted(skipped, 'file')} of formats that Millrace does not know, or links to others")
    if status.chunks["total"]:
        say(f"chunks     {chunks_of(status)}")
    if cost := cost_of(status):
        say(f"cost       {cost}")
    if status.route is not None:
        say(f"route      {status.route.reason}")
    if status.waiting is not None:
        until = f", until {status.waiting.until:%H:%M:%S} UTC" if status.waiting.until else ""
        say(f"waiting    {status.waiting.reason}{until}")
        if status.waiting.remedy:
            say(f"           {status.waiting.remedy}")
    if status.error:
        say(f"error      {status.error}")
    _print_errors(status)


def documents_of(status: JobStatus) -> str:
    """Such as `40: 38 indexed, 2 unchanged`."""
    words = {"unchanged": "not there"} if status.kind == "delete" else {}
    numbers = {name: number for name, number in status.documents.items() if name not in {"total", "skipped"}}
    parts = [f"{number:,} {words.get(name, name)}" for name, number in numbers.items()]
    parts = [part for part in parts if not part.startswith("0 ")]
    return f"{status.documents['total']:,}" + (f": {', '.join(parts)}" if parts else "")


def chunks_of(status: JobStatus) -> str:
    """Such as `230: 200 embedded, 30 reused`."""
    chunks = status.chunks
    ahead = f", {chunks['total'] - chunks['indexed']:,} to go" if not status.finished else ""
    return f"{chunks['total']:,}: {chunks['embedded']:,} embedded, {chunks['reused']:,} reused{ahead}"


def cost_of(status: JobStatus) -> str:
    """Such as `$0.0012 of at most $5.00, $0.00040 reserved; saved $0.0003 by the cache`; "" where there is nothing."""
    from pipeline.ledger.budgets import dollars

    cost, usage = status.cost, status.usage
    if cost is None or not (cost.spent or cost.reserved or cost.doubtful or usage.texts or usage.cached_texts):
        return ""
    limit = "" if cost.max is None or math.isinf(cost.max) else f" of at most {dollars(cost.max)}"
    more = ((cost.reserved, "reserved"), (cost.doubtful, "may have been spent besides, without an answer"))
    saved = ((usage.cached_cost, "by the cache"), (usage.batch_saved, "by the Batch API"))
    parts = [f"{dollars(cost.spent)}{limit}", *(f"{dollars(amount)} {what}" for amount, what in more if amount)]
    savings = [f"{dollars(amount)} {what}" for amount, what in saved if amount]
    return ", ".join(parts) + (f"; saved {' and '.join(savings)}" if savings else "")


def _print_errors(status: JobStatus) -> None:
    for error in status.errors[:SHOWN_ERRORS]:
        # Most messages name the document already.
        named = error["error"] if error["uri"] in error["error"] else f"{error['uri']}: {error['error']}"
        say(f"{click.style('failed', fg='red')}     {named}")
    more = max(status.documents["failed"], len(status.errors)) - SHOWN_ERRORS
    if more > 0:
        say(f"           and {more:,} more; `millrace job {status.job_id} --json` lists up to 100")
    if status.dead_letters:
        say(f"           `millrace dead --job {status.job_id}` says why")
        say(f"           `millrace retry --job {status.job_id}` tries again")


def _print_enqueued(status: JobStatus) -> None:
    say(f"job        {status.job_id} ({status.kind}, collection {status.collection}, priority {status.priority})")
    say(f"documents  {documents_of(status)}; they are safe, and on their way")
    _print_errors(status)
    note(_how_to_look(status))


def _how_to_look(status: JobStatus) -> str:
    rows = (("job", "shows how it is"), ("wait", "shows it live"), ("cancel", "stops it"))
    return "\n".join(f"  millrace {command} {status.job_id}  {what}" for command, what in rows)


def _durable(status: JobStatus) -> str:
    return f"{counted(status.documents['total'], 'document')} safe already, in job {status.job_id}; the job goes on."


def _cut_off(status: JobStatus | None, again: str, as_json: bool) -> int:
    """What there is to say to a person who stopped the enqueuing itself."""
    if status is None:
        note(f"Interrupted before anything was enqueued. {again}".rstrip())
    else:
        note(f"Interrupted. {_durable(status)}\n{again}".rstrip())
        if as_json:
            print_json(status.to_json())
    return INTERRUPTED


def _progress(as_json: bool) -> AbstractContextManager[Show]:
    if as_json:
        return nullcontext(pauses())
    from rich.console import Console

    return job_progress(Console(stderr=True))
