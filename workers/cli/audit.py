"""`millrace audit` and `rebuild`: whether the index has what the ledger says, and that it has it again."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from workers.cli.output import json_option, note, print_json, say
from workers.cli.progress import BAR_CHARACTERS, PLAIN_SECONDS, REFRESHES_PER_SECOND, counted, duration

if TYPE_CHECKING:
    from pipeline.audit import AuditReport
    from pipeline.rebuild import Rebuilt

UNCLEAN = 1

# What each kind of fault means to whoever searches.
_MEANINGS = {
    "missing": "chunks that a search should find are not in the index",
    "orphaned": "points in the index belong to no document that the ledger knows",
    "duplicate": "of the orphaned points repeat a chunk that is there already",
    "stale": "points of removed documents should have left the index by now",
    "wrong": "points say something else than the ledger: another vector, other words, other metadata",
}
# What it means that the ledger does not agree with itself.
_ISSUES = {
    "embeddings": "chunks have no embedding stored: they could not be put back without embedding them again",
    "published": "documents show another version than the newest that was published",
    "chunks": "documents have other chunks in the ledger than their published version says",
    "open_twice": "versions are open of documents that have another one open",
    "pending": "open versions wait for another number of chunks than are left to be indexed",
    "jobs": "jobs have ended, but not all of their versions",
    "costs": "jobs have another cost than what was used, or reserved, for them",
}

Show = Callable[[float, "AuditReport"], None]


@click.command()
@click.option("--collection", metavar="NAME", help="One collection.  [default: all of them]")
@click.option("--all", "everything", is_flag=True, help="All collections.")
@click.option("--repair", is_flag=True, help="Put back what is missing or wrong; delete what does not belong there.")
@click.option("--sample", type=click.IntRange(0), help="Compare vector and payload of so many points.  [default: 200]")
@click.option("--all-vectors", is_flag=True, help="Compare vector and payload of every point.")
@click.option("--verbose", is_flag=True, help="List the ids of the points that are wrong, up to a thousand of a kind.")
@json_option
def audit(
    collection: str | None,
    everything: bool,
    repair: bool,
    sample: int | None,
    all_vectors: bool,
    verbose: bool,
    as_json: bool,
) -> int:
    """Compare the index with the ledger, point by point.

    Changes nothing, unless --repair is given: then the index is mended from the embeddings that are stored, without
    embedding anything. Work may go on meanwhile. Exit status: 0 when the index is as it should be, or is again; 1 when
    it is not.
    """
    from pipeline.client import Client

    if collection and everything:
        raise click.UsageError("--collection and --all exclude each other")
    reports = []
    with Client() as client:
        for name in [collection] if collection else [one.name for one in client.collections()]:
            with _progress(f"comparing {name}", quiet=as_json) as show:
                report = client.audit(name, repair=repair, sample=sample, all_vectors=all_vectors, on_progress=show)
            reports.append(report)
            if not as_json:
                _print_report(report, verbose)
    if as_json:
        print_json(_total(reports, verbose))
    elif not reports:
        note("There are no collections yet: nothing to compare.")
    return 0 if all(report.mended for report in reports) else UNCLEAN


@click.command()
@click.argument("collection")
@click.option("--fresh", is_flag=True, help="Drop what Qdrant has of it first.")
@click.option("--yes", is_flag=True, help="Do not ask before dropping.")
@json_option
def rebuild(collection: str, fresh: bool, yes: bool, as_json: bool) -> int:
    """Make a collection that Qdrant has lost again, from the ledger alone.

    Nothing is embedded again. What is there stays; what does not belong there is deleted. Ingest and searches go on
    meanwhile. Interrupted, it goes on where it was when it is run again.
    """
    from pipeline.client import Client

    with Client() as client:
        if fresh and not yes:
            _confirm(collection)
        with _progress(f"rebuilding {collection}", quiet=as_json) as show:
            rebuilt = client.rebuild(collection, fresh=fresh, on_progress=show)
    if as_json:
        print_json(rebuilt.to_json())
    else:
        _print_rebuilt(rebuilt)
    return 0 if rebuilt.whole else UNCLEAN


def _confirm(collection: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("--fresh drops what Qdrant has of the collection; give --yes where nobody can be asked")
    click.confirm(f"Drop what Qdrant has of {collection}? Searches find less meanwhile.", abort=True, err=True)


@contextmanager
def _progress(what: str, *, quiet: bool) -> Iterator[Show]:
    """A bar in a terminal, gone at the end; elsewhere a line every two seconds; nothing where it is to be quiet."""
    if quiet:
        yield lambda _done, _report: None
        return
    if not sys.stderr.isatty():
        said = time.monotonic()

        def tell(done: float, report: AuditReport) -> None:
            nonlocal said
            if time.monotonic() - said >= PLAIN_SECONDS:
                said = time.monotonic()
                note(f"{what}: {done:.0%}, {_figures(report)}")

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(BAR_CHARACTERS),
        TextColumn("{task.fields[at]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=REFRESHES_PER_SECOND,
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=1.0, at="")
        yield lambda done, report: bar.update(task, completed=done, at=_figures(report))


def _figures(report: AuditReport) -> str:
    """How far it is, such as `12,000 points, 3,000 put back`."""
    words = [counted(report.expected, "point")]
    if report.repaired is None:
        return words[0]
    if report.repaired.upserted:
        words.append(f"{report.repaired.upserted:,} put back")
    if report.repaired.deleted:
        words.append(f"{report.repaired.deleted:,} deleted")
    return ", ".join(words)


def _total(reports: list[AuditReport], verbose: bool) -> dict[str, Any]:
    """The counts of all the reports together, and each."""
    each = [report.to_json() for report in reports]
    counts = (
        "expected", "present", "missing", "orphaned", "duplicate", "stale", "leaving", "arriving", "wrong", "compared"
    )  # fmt: skip
    total: dict[str, Any] = {name: sum(one[name] for one in each) for name in counts}
    total["ledger"] = dict(sum((Counter(report.ledger) for report in reports), Counter()))
    mended = [report.repaired for report in reports if report.repaired is not None]
    total["repaired"] = {
        name: sum(getattr(one, name) for one in mended) for name in ("upserted", "deleted", "embedded", "failed")
    } if mended else None  # fmt: skip
    if verbose:
        kinds = sorted({kind for report in reports for kind in report.listed})
        total["ids"] = {kind: [point for report in reports for point in report.listed.get(kind, ())] for kind in kinds}
    return {**total, "collections": each}


def _print_report(report: AuditReport, verbose: bool) -> None:
    verdict = click.style("clean", fg="green") if report.clean else click.style("not clean", fg="red")
    say(f"{report.collection}: {verdict}, {report.present:,} of {report.expected:,} expected points are there")
    if report.collection_missing:
        say("  Qdrant has no such collection")
    found = [(kind, getattr(report, kind), meaning, kind) for kind, meaning in _MEANINGS.items()]
    found += [(issue, report.ledger.get(issue, 0), meaning, f"ledger.{issue}") for issue, meaning in _ISSUES.items()]
    for kind, count, meaning, listed in found:
        if count:
            say(f"  {count:,} {kind}: {meaning}")
            for one in report.listed.get(listed, ()) if verbose else ():
                say(f"    {one}")
    if report.arriving or report.leaving:
        say(f"  {report.arriving:,} arriving and {report.leaving:,} leaving, as they should")
    if report.repaired is not None and not report.clean:
        _print_repaired(report)
    elif report.collection_missing:
        say(f"  `millrace rebuild {report.collection}` makes it again")
    elif not report.clean and set(report.ledger) != {"embeddings"}:
        say("  `millrace audit --repair` mends the index")


def _print_repaired(report: AuditReport) -> None:
    done = report.repaired
    assert done is not None
    verdict = click.style("mended", fg="green") if report.mended else click.style("not all is mended", fg="red")
    say(f"  {verdict}: {done.upserted:,} put back, {done.deleted:,} deleted, {done.embedded:,} embedded")
    if done.failed:
        say(f"  {done.failed:,} could not be put back: {done.error}")


def _print_rebuilt(rebuilt: Rebuilt) -> None:
    done = rebuilt.repaired
    verdict = click.style("rebuilt", fg="green") if rebuilt.whole else click.style("not whole", fg="red")
    rate = done.upserted / max(rebuilt.seconds, 0.001)
    say(f"{rebuilt.collection}: {verdict}, {counted(rebuilt.points, 'point')}")
    say(
        f"  {done.upserted:,} put back, {done.deleted:,} deleted, {done.embedded:,} embedded"
        f" in {duration(rebuilt.seconds)} ({rate:,.0f} points/s)"
    )
    if done.failed:
        say(f"  {done.failed:,} could not be put back: {done.error}")
    for issue, count in rebuilt.audit.ledger.items():
        say(f"  {count:,} {issue}: {_ISSUES[issue]}")


COMMANDS = (audit, rebuild)
