"""`millrace search` and `embed`: answers out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from workers.cli.options import as_filters, collection_option, filter_option, limit_option, tenant_option
from workers.cli.output import for_people, json_option, note, print_json, print_table, say
from workers.cli.progress import counted, figures
from workers.cli.snippet import snippet

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.search import Result, SearchResult
    from pipeline.status import EmbedResult

SHOWN_NUMBERS = 6  # of a vector
SHOWN_TEXT = 60  # characters
INDENT = 9
RECENT_JOBS = 50

_DEGRADED = {
    "unverified": "Postgres does not answer: these results are the index's own, and may be a little early or late",
    "incomplete": "the collection is changing fast: there may be more results than these",
    "lost": "Qdrant lost the collection; `millrace rebuild` puts back what is not found until then",
}


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="QUERY...")
@limit_option(10)
@filter_option
@collection_option
@tenant_option
@json_option
def search(
    words: tuple[str, ...],
    limit: int,
    filters: tuple[tuple[str, str], ...],
    collection: str,
    tenant: str | None,
    as_json: bool,
) -> None:
    """Find the passages that answer a question.

    By meaning and by words together, best first.
    """
    from pipeline.client import Client

    query = " ".join(words)
    with Client(tenant=tenant) as client:
        started = time.perf_counter()
        found = client.search(query, collection=collection, limit=limit, filters=as_filters(filters))
        seconds = time.perf_counter() - started
        if as_json:
            print_json(found.to_json())
            return
        if not found.results:
            note(_why_nothing(client, collection, bool(filters)))
            return
    if for_people():
        for rank, result in enumerate(found.results, 1):
            _print_result(rank, result, query)
    else:
        print_table((), [_row(rank, result, query) for rank, result in enumerate(found.results, 1)])
    _print_how(found, seconds)


@click.command()
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@click.option("--role", type=click.Choice(["passage", "query"]), default="passage", show_default=True,
              help="What the texts are; some models embed the two differently.")  # fmt: skip
@json_option
def embed(texts: tuple[str, ...], role: Any, as_json: bool) -> None:
    """Show the vectors of texts.

    One that was computed before is not computed again.
    """
    from pipeline.client import Client

    with Client() as client:
        result = client.embed(texts, role=role)
    if as_json:
        print_json(result.to_json())
    else:
        _print_vectors(texts, result)


def _print_result(rank: int, result: Result, query: str) -> None:
    from shutil import get_terminal_size
    from textwrap import fill

    width = get_terminal_size().columns
    title = f"{click.style(result.title, bold=True)}  " if result.title else ""
    where = click.style(" ".join(filter(None, [result.uri, _place(result)])), dim=True)
    say(f"{rank:>2} {click.style(f'{result.score:.3f}', fg='green')} {title}{where}")
    say(fill(snippet(result.text, query), width, initial_indent=" " * INDENT, subsequent_indent=" " * INDENT))


def _place(result: Result) -> str:
    """Where in its document the chunk stands, for people."""
    page, section = result.metadata.get("page"), result.metadata.get("section")
    return ", ".join(filter(None, [f"page {page}" if page else "", str(section) if section else ""]))


def _row(rank: int, result: Result, query: str) -> tuple[object, ...]:
    return rank, f"{result.score:.3f}", result.uri, result.title, snippet(result.text, query)


def _print_how(found: SearchResult, seconds: float) -> None:
    """Beside the results: how many, how long, and what was not as usual."""
    steps = ", ".join(f"{name} {value:.0f}" for name, value in found.timings_ms.items())
    note(f"{counted(len(found.results), 'result')} from {found.collection} in {seconds * 1000:.0f} ms ({steps})")
    for name in found.degraded:
        note(f"degraded: {_DEGRADED.get(name, name)}")


def _why_nothing(client: Client, collection: str, filtered: bool) -> str:
    """Why a search may have found nothing, and what to do."""
    at_work = [job for job in client.jobs(limit=RECENT_JOBS) if job.collection == collection and not job.finished]
    some = client.documents(collection=collection, limit=1)
    if at_work:
        job = at_work[0]
        return f"Nothing found yet: job {job.job_id} is still at work ({job.stage}: {figures(job)}). Ask again later."
    if not some:
        whose = "" if client.tenant == client.settings.tenant else f" of tenant {client.tenant}"
        return (
            f"Nothing found: collection {collection} has no documents{whose}. "
            f"`millrace ingest PATH --collection {collection}` adds some."
        )
    if filtered:
        return (
            "Nothing found: no document matches the filters and the query. `millrace documents --filter` tries filters."
        )
    return "Nothing found."


def _print_vectors(texts: tuple[str, ...], result: EmbedResult) -> None:
    for text, vector in zip(texts, result.vectors, strict=True):
        numbers = ", ".join(f"{value:+.4f}" for value in vector[:SHOWN_NUMBERS])
        short = text if len(text) <= SHOWN_TEXT else text[: SHOWN_TEXT - 3] + "..."
        say(f"[{numbers}, ...]  {short}")
    runs = [f"{run.texts} of {run.padded_tokens} padded tokens in {run.seconds * 1000:.0f} ms" for run in result.runs]
    note(f"{result.model}, {result.vectors.shape[1]} dimensions")
    note(f"{result.hits} stored already, {result.misses} computed, {result.seconds * 1000:.0f} ms in all")
    for run in runs:
        note(f"  batch: {run}")


COMMANDS = (search, embed)
