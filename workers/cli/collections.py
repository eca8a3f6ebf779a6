"""`millrace collections` and `audit`: what there is, and whether the index has all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from workers.cli.output import for_people, json_option, note, print_json, print_table, say

if TYPE_CHECKING:
    from pipeline.audit import AuditReport
    from pipeline.status import CollectionInfo

UNCLEAN = 1

# What each kind of fault means to whoever searches.
_MEANINGS = {
    "missing": "chunks that a search should find are not in the index",
    "orphaned": "points in the index belong to no document that the ledger knows",
    "duplicate": "of the orphaned points repeat a chunk that is there already",
    "stale": "points of removed documents should have left the index by now",
}


@click.command()
@click.argument("name", required=False)
@json_option
def collections(name: str | None, as_json: bool) -> None:
    """List the collections, or show one."""
    from pipeline.client import Client
    from pipeline.errors import UnknownCollection

    with Client() as client:
        found = client.collections()
    if name is not None:
        found = [one for one in found if one.name == name]
        if not found:
            raise UnknownCollection(f"there is no collection {name!r}; `millrace collections` lists them")
    if as_json:
        print_json({"collections": [one.to_json() for one in found]})
    elif name is not None:
        _print_collection(found[0])
    elif found:
        print_table(
            ("name", "documents", "chunks", "model", "generation"),
            [(one.name, one.documents, one.chunks, one.model.get("name"), one.generation) for one in found],
        )
    elif for_people():
        note("There are no collections yet; `millrace ingest PATH` makes one.")


@click.command()
@click.option("--collection", help="One collection.  [default: all of them]")
@click.option("--verbose", is_flag=True, help="List the ids of the points that are wrong, up to a thousand of a kind.")
@json_option
def audit(collection: str | None, verbose: bool, as_json: bool) -> int:
    """Compare the index with the ledger, point by point.

    Changes nothing. Exit status: 0 when the index is as it should be, 1 when it is not.
    """
    from pipeline.client import Client

    with Client() as client:
        names = [collection] if collection else [one.name for one in client.collections()]
        reports = [client.audit(name) for name in names]
    clean = all(report.clean for report in reports)
    if as_json:
        print_json(_total(reports, verbose))
    else:
        for report in reports:
            _print_report(report, verbose)
        if not reports:
            note("There are no collections yet: nothing to compare.")
    return 0 if clean else UNCLEAN


def _print_collection(one: CollectionInfo) -> None:
    model = one.model
    fields = ", ".join(f"{key} ({kind})" for key, kind in sorted(one.fields.items())) or "none yet"
    say(f"collection  {one.name}")
    say(f"documents   {one.documents:,}")
    say(f"chunks      {one.chunks:,}")
    say(f"model       {model.get('name')}, {model.get('dimensions')} dimensions, {model.get('precision')}")
    say(f"filters     {fields}")
    say(f"generation  {one.generation}")
    say(f"in Qdrant   {one.qdrant_name}")
    say(f"made        {one.created_at[:19].replace('T', ' ')} UTC")


def _total(reports: list[AuditReport], verbose: bool) -> dict[str, Any]:
    """The counts of all the reports together, and each."""
    each = [report.to_json() for report in reports]
    counts = ("expected", "present", "missing", "orphaned", "duplicate", "stale", "leaving", "arriving")
    total: dict[str, Any] = {name: sum(one[name] for one in each) for name in counts}
    if verbose:
        kinds = sorted({kind for report in reports for kind in report.listed})
        total["ids"] = {kind: [point for report in reports for point in report.listed.get(kind, ())] for kind in kinds}
    return {**total, "collections": each}


def _print_report(report: AuditReport, verbose: bool) -> None:
    counts = report.to_json()
    verdict = click.style("clean", fg="green") if report.clean else click.style("not clean", fg="red")
    say(f"{report.collection}: {verdict}, {report.present:,} of {report.expected:,} expected points are there")
    for kind, meaning in _MEANINGS.items():
        if counts[kind]:
            say(f"  {counts[kind]:,} {kind}: {meaning}")
            for point in report.listed.get(kind, ()) if verbose else ():
                say(f"    {point}")
    if report.arriving or report.leaving:
        say(f"  {report.arriving:,} arriving and {report.leaving:,} leaving, as they should")
    if not report.clean:
        say("  Work that is under way can look like this for a moment: run it again when `millrace jobs` shows none.")


COMMANDS = (collections, audit)
