"""`millrace ingest`, `delete` and `documents`: what is in a collection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from workers.cli.estimate import check_dry_run, dry_run_option, tell_estimate
from workers.cli.options import (
    as_filters,
    as_metadata,
    collection_option,
    correlation_option,
    embedding_options,
    exclude_option,
    filter_option,
    include_option,
    limit_option,
    metadata_option,
    priority_option,
    rows_options,
    tenant_option,
    wait_option,
    webhook_option,
    when_full_option,
)
from workers.cli.output import for_people, json_option, note, print_json, print_table

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.status import JobStatus
    from workers.cli.progress import Show

STDIN = "-"
URI_PAGE = 5000

key_option = click.option("--idempotency-key", metavar="KEY", help="The same request with this key is the same job.")


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@collection_option
@priority_option
@embedding_options
@tenant_option
@metadata_option
@include_option
@exclude_option
@rows_options
@click.option("--uri", help="The name of the document that `-` reads.")
@dry_run_option
@key_option
@webhook_option
@when_full_option
@correlation_option
@wait_option
@json_option
def ingest(
    paths: tuple[str, ...],
    metadata: tuple[tuple[str, str], ...],
    uri: str | None,
    tenant: str | None,
    dry_run: bool,
    wait: bool,
    as_json: bool,
    **request: Any,
) -> int:
    """Index files, directories, archives, globs, web pages and object stores.

    What is ingested again replaces what was there; what did not change costs nothing. A collection that is missing
    is made. `-` reads one document from standard input, named by --uri.

    A table (CSV, Parquet, XLSX, JSON) is one document; with --id-column, --text-column or --records every row is one.
    """
    from pipeline.client import Client
    from workers.cli.outcome import carry_out

    given = as_metadata(metadata)
    goes_on = (
        "goes on where it was cut off" if request["idempotency_key"] else "does nothing twice that is done by then"
    )
    with Client(tenant=tenant) as client:
        source = _standard_input(paths, uri, client.settings.sources.max_bytes) or list(paths)
        if dry_run:
            check_dry_run(wait=wait)
            return tell_estimate(client, source, {**request, "metadata": given}, as_json=as_json)

        def enqueue(show: Show) -> JobStatus:
            status = client.ingest(source, metadata=given, on_staged=show, **request)
            if not status.documents["total"]:
                note("There was nothing to ingest: files of formats that Millrace does not know are left out.")
            return status

        return carry_out(client, enqueue, wait=wait, as_json=as_json, again=f"The same command again {goes_on}.")


@click.command()
@click.argument("names", nargs=-1, metavar="[URI]...")
@filter_option
@collection_option
@priority_option
@tenant_option
@key_option
@webhook_option
@when_full_option
@correlation_option
@wait_option
@json_option
def delete(
    names: tuple[str, ...],
    filters: tuple[tuple[str, str], ...],
    collection: str,
    tenant: str | None,
    wait: bool,
    as_json: bool,
    **request: Any,
) -> int:
    """Delete documents, by uri, by path or by filter.

    The path of a directory, an archive or a table means every document in it.
    """
    from pipeline.client import Client
    from workers.cli.outcome import carry_out

    if not names and not filters:
        raise click.UsageError("say which documents: URI..., or --filter KEY=VALUE")
    with Client(tenant=tenant) as client:
        uris = list(_uris(client, names, collection))
        return carry_out(
            client,
            lambda show: client.delete(
                uris, filters=as_filters(filters), collection=collection, on_staged=show, **request
            ),
            wait=wait,
            as_json=as_json,
        )


@click.command()
@click.argument("prefix", default="", metavar="[PREFIX]")
@filter_option
@limit_option(100)
@collection_option
@tenant_option
@json_option
def documents(
    prefix: str,
    filters: tuple[tuple[str, str], ...],
    limit: int,
    collection: str,
    tenant: str | None,
    as_json: bool,
) -> None:
    """List the documents that a search can find.

    PREFIX: those whose uri begins so, or those at or below a path.
    """
    from pipeline.client import Client

    with Client(tenant=tenant) as client:
        # One more than is wanted says whether there are more.
        found = client.documents(
            collection=collection, prefix=_prefix(prefix), filters=as_filters(filters), limit=limit + 1
        )
    shown, more = found[:limit], len(found) > limit
    if as_json:
        print_json({"collection": collection, "documents": shown, "more": more})
        return
    if shown:
        rows = [(row["uri"], row["title"], row["chunks"], row["published_at"][:19].replace("T", " ")) for row in shown]
        print_table(("uri", "title", "chunks", "published (UTC)"), rows)
    elif for_people():
        narrower = " like that" if prefix or filters else ""
        note(f"Collection {collection} has no documents{narrower}. `millrace jobs` shows what is on its way.")
    if more:
        note(f"There are more than these {limit:,}: --limit shows more, a PREFIX or --filter shows others.")


def _standard_input(paths: Sequence[str], uri: str | None, max_bytes: int) -> list[Any] | None:
    """The document that `-` means; None where paths are given."""
    import sys

    from pipeline.document import Document

    if STDIN not in paths:
        if uri is not None:
            raise click.UsageError("--uri names the document that `-` reads; a path has its own name")
        return None
    if len(paths) > 1:
        raise click.UsageError("`-` (standard input) is one document, and goes with no other path")
    if uri is None:
        raise click.UsageError("`-` needs --uri NAME: the document's name, such as notes/today.md")
    if sys.stdin.isatty():
        note("reading the document from the keyboard; Ctrl-D ends it")
    # One byte more than is allowed, so that what is too large is refused and not cut.
    return [Document(uri, sys.stdin.buffer.read(max_bytes + 1))]


def _uris(client: Client, names: Sequence[str], collection: str) -> Iterator[str]:
    """The uris that a person means: as they are where there is such a document, else what the path was ingested as."""
    for name in names:
        place = _place(name)
        if client.uris(collection=collection, prefix=name, limit=1) == [name]:
            yield name
        elif client.uris(collection=collection, prefix=place, limit=1) == [place]:
            yield place
        elif below := list(_below(client, place, collection)):
            yield from below
        else:
            yield name  # not there, and counted as such


def _below(client: Client, place: str, collection: str) -> Iterator[str]:
    """Every document below a directory, in an archive, or of the rows of a table."""
    if not place.startswith(("file://", "s3://", "gs://")):
        return
    for separator in ("/", "!/", "#"):
        after = ""
        while page := client.uris(
            collection=collection, prefix=place.rstrip("/") + separator, after=after, limit=URI_PAGE
        ):
            yield from page
            after = page[-1]


def _place(name: str) -> str:
    """The uri under which what a person types was ingested."""
    from os.path import expanduser

    from pipeline.errors import MillraceError
    from pipeline.sources import file_uri

    scheme, separator, _ = name.partition("://")
    if not separator:
        return file_uri(expanduser(name))
    if scheme.lower() in {"http", "https"}:
        from pipeline.sources.web import page_uri

        try:
            return page_uri(name)
        except MillraceError:
            return name
    return name


def _prefix(typed: str) -> str:
    """What the uris that are wanted begin with."""
    import os

    if not typed or "://" in typed or not os.path.lexists(os.path.expanduser(typed)):
        return typed
    return _place(typed).rstrip("/") + ("/" if os.path.isdir(os.path.expanduser(typed)) else "")


COMMANDS = (ingest, delete, documents)
