"""`millrace duties`: what the system does on a timer, how that went, and how often it does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from workers.cli.output import for_people, json_option, note, print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.ledger.duties import DutyState
    from pipeline.ledger.services import Service

ACTIONS = ("run", "set")


@click.command()
@click.argument("action", metavar="[run|set]", type=click.Choice(ACTIONS), required=False)
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--dry-run", is_flag=True, help="Of `run`: change nothing, and say what would be done.")
@click.option("--every", metavar="INTERVAL", help="Of `set`: the time between two runs: 30s, 15m, 1h, 1d.")
@click.option("--limit", metavar="ROWS", type=click.IntRange(1), help="Of `set`: rows of one step, at most.")
@click.option(
    "--budget",
    metavar="TIME",
    help="Of `set`: how long one run may take; it ends after the step in which that is over.",
)
@click.option("--enable/--disable", "enabled", default=None, help="Of `set`: whether it runs at all.")
@click.option("--reset", is_flag=True, help="Of `set`: first of all, everything is as the code has it.")
@json_option
def duties(
    action: str | None,
    name: str | None,
    *,
    dry_run: bool,
    every: str | None,
    limit: int | None,
    budget: str | None,
    enabled: bool | None,
    reset: bool,
    as_json: bool,
) -> int:
    """List what the system does on a timer, run one of it now, or change how it runs.

    `run NAME` runs it here, in this process, due or not; nobody else runs it meanwhile. `set NAME` is in effect within
    ten seconds, without a restart of anything.
    """
    changes = {"every": every, "limit": limit, "budget": budget, "enabled": enabled, "reset": reset or None}
    given = {key: value for key, value in changes.items() if value is not None}
    if action is not None and name is None:
        raise click.UsageError(f"say which duty to {action}; `millrace duties` lists them")
    if dry_run and action != "run":
        raise click.UsageError("--dry-run is for `millrace duties run NAME`")
    if given and action != "set":
        raise click.UsageError(f"--{next(iter(given)).replace('enabled', 'enable')} is for `millrace duties set NAME`")
    if action == "set" and not given:
        raise click.UsageError("say what to set: --every, --limit, --budget, --enable, --disable or --reset")
    if action == "run" and name is not None:
        return _run(name, dry_run, as_json)
    if action == "set" and name is not None:
        _set(name, given, as_json)
    else:
        _list(as_json)
    return 0


def _list(as_json: bool) -> None:
    from pipeline.client import Client
    from pipeline.duties import to_json, troubles

    with Client() as client:
        states, beats = client.duties(), client.beats()
    if as_json:
        print_json({"duties": [to_json(state) for state in states], "beats": [_beat_json(beat) for beat in beats]})
        return
    if not states:
        note("No beat or worker has written its duties down yet; `millrace up` starts them.")
        return
    columns = ("duty", "every", "last run", "next", "result", "state")
    print_table(columns, [_row(state) for state in states])
    if for_people():
        say("")
    _tell_beats(beats)
    for trouble in troubles(states):
        note(f"  {trouble.message}")


def _row(state: DutyState) -> tuple[object, ...]:
    from workers.cli.sync import interval

    last = "never"
    if state.ran_seconds_ago is not None:
        last = f"{_time(state.ran_seconds_ago)} ago, took {_time(state.took_seconds or 0.0)}"
    due = "" if not state.enabled else f"in {_time(state.due_seconds)}" if state.due_seconds > 0.5 else "now"
    every = interval(state.interval_seconds) + ("*" if "interval_seconds" in state.changed else "")
    told = "" if state.last_run is None else result_words(state.result)
    return state.name, every, last, due, told, _state_words(state)


def _state_words(state: DutyState) -> str:
    from pipeline.duties import failing, is_overdue

    words = [] if state.enabled else ["disabled"]
    if state.owner is not None:
        words.append(f"running: {state.owner}")
    if is_overdue(state):
        words.append("overdue")
    if failing([state]):
        words.append(f"failed {state.failures} times")
    return ", ".join(words)


def result_words(result: Mapping[str, Any], nothing: str = "nothing to do") -> str:
    """`expired 3, sent 2`; `failed: ...` for one that did not end well."""
    from pipeline.duties import OVER_BUDGET

    if "error" in result:
        return f"failed: {result['error']}"
    counts = [f"{name.replace('_', ' ')} {count:,}" for name, count in result.items() if count and name != OVER_BUDGET]
    return (", ".join(counts) or nothing) + ("; its time was up" if result.get(OVER_BUDGET) else "")


def _tell_beats(beats: Sequence[Service]) -> None:
    alive = [beat for beat in beats if beat.alive]
    if not alive:
        last = f"; the last one, {beats[-1].host} {beats[-1].pid}, fell silent {_time(beats[-1].silent_seconds)} ago"
        say(f"beat       none{last if beats else ''}: workers ask for duties in its place")
    for beat in alive:
        told = f", {rss / 2**20:,.0f} MB" if (rss := beat.memory.get("rss")) else ""
        say(f"beat       {beat.host} {beat.pid}, since {beat.started_at:%Y-%m-%d %H:%M:%S} UTC{told}")


def _beat_json(beat: Service) -> dict[str, Any]:
    return {
        "host": beat.host,
        "pid": beat.pid,
        "alive": beat.alive,
        "started_at": beat.started_at.isoformat(),
        "silent_seconds": beat.silent_seconds,
        "memory": dict(beat.memory),
    }


def _run(name: str, dry_run: bool, as_json: bool) -> int:
    from pipeline.assembly import Services
    from pipeline.settings import load_settings
    from tasks.duties import run_now

    opened = Services(load_settings())
    try:
        run = run_now(opened, name, dry_run=dry_run)
    finally:
        opened.close()
    if as_json:
        told = {"duty": name, "dry_run": dry_run, "counts": dict(run.counts), "seconds": run.seconds}
        print_json(told | {"error": run.error or None})
    else:
        result = result_words({"error": run.error} if run.error else run.counts)
        say(f"{'would do' if dry_run and not run.error else 'result':<10} {result}")
        say(f"{'took':<10} {_time(run.seconds)}")
    return 1 if run.error else 0


def _set(name: str, given: dict[str, Any], as_json: bool) -> None:
    from pipeline.assembly import Services
    from pipeline.client import Client
    from pipeline.duties import to_json
    from pipeline.ledger import duties as ledger_duties
    from pipeline.settings import load_settings
    from tasks.duties import DEFINITIONS, named
    from workers.cli.sync import interval

    named(name)
    opened = Services(load_settings())
    with Client(services=opened) as client:
        with opened.ledger.transaction() as connection:
            ledger_duties.register(connection, DEFINITIONS)  # a ledger that no beat or worker has seen yet
        state = client.change_duty(name, **given)
    if as_json:
        print_json(to_json(state))
        return

    def line(key: str, value: str, told: str) -> None:
        say(f"{key:<10} {value}{'' if told in state.changed else ' (as the code has it)'}")

    say(f"{'duty':<10} {state.name}")
    line("every", interval(state.interval_seconds), "interval_seconds")
    line("limit", f"{state.limit:,} rows", "limit")
    line("budget", interval(state.budget_seconds), "budget_seconds")
    say(f"{'state':<10} {'enabled' if state.enabled else 'disabled'}")


def _time(seconds: float) -> str:
    from workers.cli.progress import duration

    return duration(seconds)


COMMANDS = (duties,)
