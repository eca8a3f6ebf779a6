"""`millrace ingest`, `sync`, `delete` and `documents`: what is in a collection."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from workers.cli.options import (
    as_filters,
    as_metadata,
    collection_option,
    exclude_option,
    filter_option,
    include_option,
    limit_option,
    metadata_option,
    priority_option,
    provider_option,
    tenant_option,
    wait_option,
)
from workers.cli.output import json_option, note, print_json, print_table

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.document import Document
    from workers.cli.progress import Show

STDIN = "-"
URI_PAGE = 5000


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@collection_option
@priority_option
@provider_option
@tenant_option
@metadata_option
@include_option
@exclude_option
@click.option("--uri", help="The name of the document that `-` reads.")
@click.option("--idempotency-key", metavar="KEY", help="The same key and request again is the same job.")
@wait_option
@json_option
def ingest(
    paths: tuple[str, ...],
    collection: str,
    priority: str,
    provider: str,
    tenant: str | None,
    metadata: tuple[tuple[str, str], ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    uri: str | None,
    idempotency_key: str | None,
    wait: bool,
    as_json: bool,
) -> int:
    """Index files, directories, globs and web pages.

    What is ingested again replaces what was there; what did not change costs nothing. A collection that does not
    exist is made. `-` reads one document from standard input, named by --uri.
    """
    from pipeline.client import Client
    from workers.cli.outcome import carry_out

    source: list[str] | list[Document] = [_standard_input(uri)] if _reads_stdin(paths, uri) else list(paths)
    again = (
        "Run the same command again: the job goes on where it was cut off."
        if idempotency_key
        else "Run the same command again: what is indexed by then is not done twice."
    )
    with Client(tenant=tenant) as client:

        def enqueue(show: Show):  # type: ignore[no-untyped-def]
            return client.ingest(
                source,
                collection=collection,
                priority=priority,
                provider=provider,
                metadata=as_metadata(metadata),
                include=include,
                exclude=exclude,
                idempotency_key=idempotency_key,
                on_staged=show,
            )

        return carry_out(client, enqueue, wait=wait, as_json=as_json, again=again)
