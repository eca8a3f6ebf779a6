"""`millrace collections`: what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from workers.cli.output import for_people, json_option, note, print_json, print_table, say

if TYPE_CHECKING:
    from pipeline.status import CollectionInfo


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


def _print_collection(one: CollectionInfo) -> None:
    model = one.model
    fields = ", ".join(f"{key} ({kind})" for key, kind in sorted(one.fields.items())) or "none yet"
    say(f"collection  {one.name}")
    say(f"documents   {one.documents:,}")
    say(f"chunks      {one.chunks:,}")
    say(f"model       {model.get('name')}, {model.get('dimensions')} dimensions, {model.get('precision')}")
    say(f"provider    {one.provider}")
    say(f"filters     {fields}")
    say(f"generation  {one.generation}")
    say(f"in Qdrant   {one.qdrant_name}")
    say(f"made        {one.created_at[:19].replace('T', ' ')} UTC")


COMMANDS = (collections,)
