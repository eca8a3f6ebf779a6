"""`millrace ingest --dry-run` and `sync --dry-run`: what it would cost, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from workers.cli.output import note, print_json, print_table, say, waiting

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.estimates import Estimate, Offer

SHOWN_ERRORS = 10
# Of what a job is asked for with, what an estimate depends on.
_ASKED = (
    *("collection", "provider", "need_by", "max_cost", "model", "dimensions", "metadata", "include", "exclude"),
    "rows",
)

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Only tell what it would cost and how long it would take (docs/cost.md)."
)


def tell_estimate(client: Client, source: Any, request: dict[str, Any], *, as_json: bool, sync: bool = False) -> int:
    """Reads all of it, and tells. Nothing is enqueued."""
    asked = {name: request[name] for name in _ASKED if name in request}
    with waiting("reading", quiet=as_json) as show:
        last = 0

        def on_progress(documents: int, chunks: int) -> None:
            nonlocal last
            if documents >= last + 100:
                last = documents
                show(f"reading: {documents:,} documents, {chunks:,} chunks")

        found = client.estimate(source, sync=sync, on_progress=on_progress, **asked)
    if as_json:
        print_json(found.to_json())
    else:
        _tell(found, sync)
    return 0


def _tell(found: Estimate, sync: bool) -> None:
    from pipeline.ledger.budgets import dollars

    made = "" if found.exists else ", which would be made"
    model, documents = found.model, found.documents
    say(f"collection {found.collection}{made}: {model['name']}, {model['dimensions']} dimensions")
    parts = [f"{documents['new']:,} new", f"{documents['unchanged']:,} unchanged"]
    parts += [f"{documents[name]:,} {name}" for name in ("failed", "deleted") if documents[name]]
    say(f"documents  {documents['total']:,}: {', '.join(parts)}")
    if documents["skipped"]:
        say(f"left out   {documents['skipped']:,} files of formats that Millrace does not know, or links to others")
    most = "" if found.exact_tokens else "at most "
    say(f"chunks     {found.chunks.texts:,} of {most}{found.chunks.tokens:,} tokens")
    say(f"to embed   {found.new.texts:,} texts of {most}{found.new.tokens:,} tokens")
    if found.cached.texts:
        saved = f", which saves {dollars(found.saved_by_cache)}" if found.saved_by_cache else ""
        say(f"cached     {found.cached.texts:,} texts of {found.cached.tokens:,} tokens{saved}")
    if found.ordered.texts:
        say(f"on order   {found.ordered.texts:,} texts that are being bought already")
    if found.repeated.texts:
        say(f"repeated   {found.repeated.texts:,} texts, which count once")
    say("")
    print_table(("provider", "cost", "time", ""), [_row(offer) for offer in found.offers])
    if found.provider == "auto" and found.auto is not None:
        say(f"auto would choose {found.auto[1]}")
    for error in found.errors[:SHOWN_ERRORS]:
        say(f"{click.style('would fail', fg='red')} {error['uri']}: {error['error']}")
    if (more := documents["failed"] - SHOWN_ERRORS) > 0:
        say(f"           and {more:,} more; --json lists up to 100")
    note("Nothing was enqueued, written or spent.")


def _row(offer: Offer) -> tuple[str, str, str, str]:
    from pipeline.ledger.budgets import dollars
    from pipeline.routing.rule import duration

    if offer.cost is None or offer.seconds is None:
        return offer.provider, "", "", f"not for this collection: {offer.basis}"
    over = "" if offer.within_budget else "; MORE THAN THE BUDGET LEAVES"
    over += "" if offer.in_time else "; LATER THAN IT IS NEEDED"
    if not offer.seconds:
        return offer.provider, dollars(offer.cost), "at once", offer.basis
    time = ("up to " if offer.provider == "openai_batch" else "about ") + duration(offer.seconds)
    return offer.provider, dollars(offer.cost), time, offer.basis + over


def check_dry_run(**given: object) -> None:
    """Raises UsageError for an option that means nothing where nothing is done."""
    for name, value in given.items():
        if value:
            raise click.UsageError(f"--{name.replace('_', '-')} is not for --dry-run, which does nothing")
