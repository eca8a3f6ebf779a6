"""`millrace reembed`: the vectors of another model for a collection, while it is searched and added to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from workers.cli.output import json_option, note, print_json, say
from workers.cli.progress import PLAIN_SECONDS, counted, duration

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.reembedding import ReembeddingStatus

FAILED, PARTIAL, OVER_BUDGET = 1, 3, 4  # as workers.cli.main has them
_POLL_SECONDS = 0.5

_STATES = {
    "building": "being embedded",
    "auditing": "what was built is being compared with the ledger",
    "switching": "about to be switched",
    "switched": "switched; what is not needed any more is being cleared away",
    "done": "done",
    "cancelling": "cancelled; what was built is being removed",
    "cancelled": "cancelled",
}


@click.command()
@click.argument("collection")
@click.option("--model", metavar="NAME", help="The model that it is to have.")
@click.option("--provider", metavar="NAME", help="Who embeds, then and from then on.  [default: the collection's own]")
@click.option("--dimensions", type=click.IntRange(1), help="Of the vectors, where the model can have fewer.")
@click.option("--max-cost", type=click.FloatRange(0), metavar="USD", help="What may be spent for it, at most.")
@click.option(
    "--priority",
    type=click.Choice(["high", "normal", "low"]),
    default="low",
    show_default=True,
    help="The queue that its work goes to.",
)
@click.option("--tenant", help="Whose budget is spent.  [default: MILLRACE_TENANT]")
@click.option("--wait", is_flag=True, help="Show the progress, and return when the collection is switched.")
@click.option("--status", "show", is_flag=True, help="Show how the last one is going, or went.")
@click.option("--retry", is_flag=True, help="Try again what could not be embedded.")
@click.option("--cancel", is_flag=True, help="End it: the collection stays as it is.")
@json_option
def reembed(
    collection: str,
    model: str | None,
    wait: bool,
    show: bool,
    retry: bool,
    cancel: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Give a collection the vectors of another model.

    They are built beside those that it has, from the texts in the ledger: nothing is extracted again, searches and
    ingest go on, and when everything is there and compared one step puts the new ones in their place. Interrupted at
    any point, it goes on by itself. Exit status of --wait: 0 switched, 1 cancelled, 3 stuck on texts that cannot be
    embedded, 4 over its budget.
    """
    from pipeline.client import Client

    if [model is not None, show, retry, cancel].count(True) != 1:
        raise click.UsageError("say one of --model NAME, --status, --retry and --cancel")
    with Client() as client:
        if model is not None:
            if not as_json:
                note("looking whether every chunk fits the model")
            found = client.reembed(collection, model, **options)
        elif retry:
            note(f"{counted(client.retry_reembedding(collection), 'text')} will be tried again")
            found = client.reembedding(collection)
        else:
            found = (client.cancel_reembedding if cancel else client.reembedding)(collection)
        if wait:
            found = _await(client, found, quiet=as_json)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    if wait and found.stuck:
        return PARTIAL
    if wait and not found.over and found.over_budget:
        return OVER_BUDGET
    return FAILED if wait and not found.switched else 0


def _await(client: Client, found: ReembeddingStatus, *, quiet: bool) -> ReembeddingStatus:
    from pipeline.ledger.diagnosis import REMEDIES

    said = 0.0
    paused = ""
    while not (found.over or found.stuck or found.over_budget):
        why = found.waiting["reason"] if found.waiting and found.waiting["state"] == "paused" else ""
        if quiet and why and why != paused:
            note(f"waiting: {why}; {REMEDIES['paused']}")
        paused = why
        if not quiet and time.monotonic() - said >= PLAIN_SECONDS:
            said = time.monotonic()
            note(_progress(found))
        time.sleep(_POLL_SECONDS)
        found = client.reembedding(found.collection)
    if found.over_budget and found.waiting and not (found.over or found.stuck):
        note(f"job {found.job_id} is not waited for any longer: it is {found.waiting['reason']}")
    return found


def _progress(found: ReembeddingStatus) -> str:
    words = [f"{found.chunks['done']:,}/{found.chunks['total']:,} chunks"]
    if found.rate:
        words.append(f"{found.rate:.{0 if found.rate >= 10 else 1}f}/s")
    if found.eta_seconds is not None:
        words.append(f"{duration(found.eta_seconds)} left")
    told = f"{_STATES[found.state]}: {', '.join(words)}"
    return f"{told}; waiting: {found.waiting['reason']}" if found.waiting else told


def _print(found: ReembeddingStatus) -> None:
    say(f"collection  {found.collection}")
    say(f"model       {_named(found.before)} -> {_named(found.model)} (provider {found.provider})")
    say(f"state       {_STATES[found.state]}")
    chunks = found.chunks
    failed = f", {chunks['failed']:,} failed" if chunks["failed"] else ""
    left = f", {chunks['left']:,} to go" if not found.over else ""
    say(f"chunks      {chunks['done']:,} of {chunks['total']:,}{left}{failed}")
    if found.cost:
        say(f"cost        ${found.cost:,.4f}")
    if found.eta_seconds is not None and not found.over:
        say(f"left        about {duration(found.eta_seconds)}")
    say(f"job         {found.job_id}")
    if found.waiting and found.waiting["reason"] != found.error:
        say(f"waiting     {found.waiting['reason']}")
    if found.error:
        say(f"stuck       {found.error}")
    for error in found.errors:
        say(f"            {error['uri']}, chunk {error['ordinal'] + 1}: {error['error']}")


def _named(model: Any) -> str:
    return f"{model['name']} ({model['dimensions']} dimensions)"


COMMANDS = (reembed,)
