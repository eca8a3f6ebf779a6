"""`millrace storage`: what the data take, and how long there is room for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.sizes import as_size
from workers.cli.output import for_people, json_option, note, print_json, print_table, say

if TYPE_CHECKING:
    from pipeline.monitoring.storage_report import Room, StorageReport

TABLES_SHOWN = 12
_ALL_AWAY = 3


@click.command()
@json_option
def storage(as_json: bool) -> int:
    """Show what Postgres, Qdrant and Redis hold, how fast it grows, and when they are full.

    The figures of each collection are Qdrant's own, but for the bytes: those are estimated, from its numbers and a
    sample of its points.
    """
    from pipeline.client import Client

    with Client() as client:
        report = client.storage()
    if as_json:
        print_json(report.to_json())
    else:
        _print(report)
    return 1 if len(report.errors) == _ALL_AWAY else 0


def _print(report: StorageReport) -> None:
    from pipeline.monitoring.storage_report import STORES

    rooms = [(store, room) for store in STORES if (room := report.room(store)) is not None]
    if rooms:
        print_table(
            ("store", "used", "of", "growth", "full in"),
            [(store, _used(room), _limit(room), _growth(room), _full(room)) for store, room in rooms],
        )
    if report.qdrant is not None:
        _print_collections(report)
    if report.postgres is not None:
        _print_tables(report)
    if (broker := report.redis) is not None:
        log = f", {as_size(broker.aof_bytes)} of log on disk" if broker.aof_bytes is not None else ""
        _head(f"redis: {broker.keys:,} keys, {as_size(broker.peak)} at most since it started{log}")
    for store, error in report.errors.items():
        note(f"{store} is left out: {error}")


def _print_collections(report: StorageReport) -> None:
    assert report.qdrant is not None
    rows: list[tuple[object, ...]] = []
    for found in report.qdrant.collections:
        name = found.name or f"({found.qdrant_name})"
        if (told := found.description) is None:
            rows.append((name, found.error))
            continue
        health = told.health if told.optimizer == "ok" else f"{told.health}: {told.optimizer}"
        rows.append(
            (
                name,
                health,
                f"{told.points:,}",
                f"{told.vectors:,}",
                f"{told.indexed_vectors:,}",
                told.segments,
                as_size(told.vector_bytes),
                as_size(told.index_bytes),
                as_size(told.payload_bytes),
            )
        )
    _head("qdrant, by collection; the bytes are estimates, without the write-ahead log")
    columns = ("collection", "health", "points", "vectors", "indexed", "segments", "vectors", "index", "payload")
    print_table(columns, rows)


def _print_tables(report: StorageReport) -> None:
    assert report.postgres is not None
    postgres = report.postgres
    held = postgres.longest_transaction_seconds
    oldest = f"; the longest transaction: {held:.1f} s ({postgres.longest_transaction})" if held is not None else ""
    _head(f"postgres, by table{oldest}")
    print_table(
        ("table", "bytes", "indexes", "rows", "dead rows"),
        [
            (table.name, as_size(table.bytes), as_size(table.index_bytes), f"{table.rows:,}", f"{table.dead_rows:,}")
            for table in postgres.tables[:TABLES_SHOWN]
        ],
    )


def _head(line: str) -> None:
    if for_people():
        say(f"\n{line}")


def _used(room: Room) -> str:
    return as_size(room.used) if room.measured else f"about {as_size(room.used)}"


def _limit(room: Room) -> str:
    if room.limit is None:
        return "not known"
    return f"{as_size(room.limit)} ({room.used / room.limit:.0%}, by the {room.told_by})"


def _growth(room: Room) -> str:
    if room.growth is None:
        return "not enough samples yet"
    return f"{as_size(room.growth.per_day)} a day"


def _full(room: Room) -> str:
    if room.limit is None or room.growth is None:
        return "not known"
    if room.full_in_days is None:
        return "it does not grow"
    return f"{room.full_in_days:,.1f} days"


COMMANDS = (storage,)
