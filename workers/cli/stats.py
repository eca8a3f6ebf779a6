"""`millrace stats`: how long everything takes and how often it fails, over the whole cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from workers.cli.output import for_people, json_option, note, print_json, print_table, say

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.monitoring.window import Distribution, OperationStats, SlowOperation, Window

_SLOWEST = 20

_COLUMNS = ("count", "errors", "error rate", "min", "mean", "p50", "p90", "p95", "p99", "max")
_OWN_COLUMNS = ("count", "min", "mean", "p50", "p90", "p95", "p99", "max")


@click.command()
@click.option(
    "--minutes",
    type=click.FloatRange(0, 1440, min_open=True),
    default=5,
    show_default=True,
    help="Of how many minutes; figures are kept for a day.",
)
@click.option("--operation", metavar="NAME", help="Only this operation, or those below it: ledger, search.embed")
@click.option("--slow", is_flag=True, help=f"The {_SLOWEST} slowest of the last hundred slow operations instead.")
@click.option("--reset", is_flag=True, help="Show them, and then forget all figures, for everybody.")
@click.option(
    "--slow-seconds",
    metavar="SECONDS",
    help="From now on, what takes longer counts as slow, in every worker; 0: nothing; default: as the settings say.",
)
@json_option
def stats(
    minutes: float, operation: str | None, slow: bool, reset: bool, slow_seconds: str | None, as_json: bool
) -> None:
    """Show how long operations took and how often they failed.

    The figures are those of all processes together, and the application's own (client.metrics) are among them. Each
    process reports every ten seconds.
    """
    from pipeline.client import Client

    with Client() as client:
        if slow_seconds is not None:
            _set(client.set_slow_seconds(_threshold(slow_seconds)), as_json)
            return
        content = _show_slow(client, operation, as_json) if slow else _show(client, minutes, operation, as_json)
        if reset:
            client.reset_stats()
            if not as_json:
                note("All figures begin anew.")
    if as_json:
        print_json({**content, "reset": True} if reset else content)


def _show(client: Client, minutes: float, operation: str | None, quiet: bool) -> dict[str, Any]:
    metrics = client.settings.metrics
    if not (metrics.enabled and metrics.cluster):
        note("Nothing is measured under these settings: metrics.enabled or metrics.cluster is false.")
    window = client.stats(minutes)
    chosen = {name: found for name, found in window.operations.items() if _is_below(name, operation)}
    if not quiet:
        _tell(window, chosen, own=operation is None)
    return {**window.to_json(), "operations": {name: found.to_json() for name, found in chosen.items()}}


def _show_slow(client: Client, operation: str | None, quiet: bool) -> dict[str, Any]:
    found = [run for run in client.slow_operations(100) if _is_below(run.operation, operation)][:_SLOWEST]
    if not quiet:
        _tell_slow(found)
    return {"slow": [run.to_json() for run in found]}


def _set(seconds: float, as_json: bool) -> None:
    if as_json:
        print_json({"slow_seconds": seconds})
    else:
        say(f"slow       over {seconds:g} s" if seconds else "slow       nothing")


def _threshold(typed: str | None) -> float | None:
    """None: as the settings say."""
    if typed is None or typed == "default":
        return None
    try:
        seconds = float(typed)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise click.BadParameter(f"{typed!r} is no number of seconds, such as 0.5", param_hint="--slow-seconds")
    return seconds


def _is_below(name: str, operation: str | None) -> bool:
    return operation is None or name == operation or name.startswith(f"{operation}.")


def _tell(window: Window, operations: Mapping[str, OperationStats], *, own: bool) -> None:
    """own: the application's own figures too."""
    rows = [("operation", name, *_figures(found)) for name, found in operations.items()]
    values = [("value", name, *_own_figures(found)) for name, found in window.values.items() if own]
    totals = [("count", name, _plain(number)) for name, number in window.totals.items() if own]
    if not for_people():
        # One table: what it is, its name, and its figures, in seconds.
        print_table((), [*rows, *values, *totals])
        return
    number = len(window.processes)
    reporting = "1 process reports" if number == 1 else f"{number:,} processes report"
    say(
        f"{window.since:%Y-%m-%d %H:%M:%S} to {window.until:%H:%M:%S} UTC ({_minutes(window.seconds)}), "
        f"{reporting}. Percentiles are within 2 %, everything else is exact."
    )
    if rows:
        print_table(("operation", *_COLUMNS), [row[1:] for row in rows])
    else:
        note("Nothing of it ran in this time, or it is not reported yet: each process does every ten seconds.")
    for name, found in operations.items():
        if found.errors:
            say(f"{name} failed: {_classes(found.errors_by_class)}")
    if values:
        print_table(("the application's own", *_OWN_COLUMNS), [row[1:] for row in values])
    if totals:
        print_table(("the application's own", "total"), [row[1:] for row in totals])


def _figures(found: OperationStats) -> tuple[str, ...]:
    times = (found.min, found.mean, found.p50, found.p90, found.p95, found.p99, found.max)
    write = _duration if for_people() else _plain
    rate = f"{found.error_rate:.2%}" if for_people() and found.errors else f"{found.error_rate:.4g}"
    return (f"{found.count:,}" if for_people() else str(found.count), str(found.errors), rate, *map(write, times))


def _own_figures(found: Distribution) -> tuple[str, ...]:
    """Of which nobody but the application knows the unit."""
    values = (found.min, found.mean, found.p50, found.p90, found.p95, found.p99, found.max)
    return (str(found.count), *(_plain(value) for value in values))


def _tell_slow(found: list[SlowOperation]) -> None:
    if not found and for_people():
        note("No slow operation is known; `millrace stats --slow-seconds SECONDS` sets what is slow.")
        return
    print_table(
        ("ended (UTC)", "operation", "seconds", "host", "error", "of"),
        [
            (
                f"{run.at:%Y-%m-%d %H:%M:%S}",
                run.operation,
                _plain(run.seconds),
                run.host,
                run.error,
                " ".join(f"{key}={value}" for key, value in run.context.items()),
            )
            for run in found
        ],
    )


def _plain(value: float) -> str:
    return f"{value:.6g}" if value < 1e6 else f"{value:.15g}"


def _duration(seconds: float) -> str:
    """In three digits, with a unit that a person reads: 1.25 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:,.3g} {unit}" if seconds / size < 1000 else f"{seconds / size:,.0f} {unit}"
    return f"{seconds / 1e-6:.2g} µs"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _classes(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in errors.items())


COMMANDS = (stats,)
