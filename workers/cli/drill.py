"""`millrace drill`: faults thrown at one's own stack, and what became of the documents meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from workers.cli.output import json_option, note, print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS = ("worker", "redis", "qdrant", "postgres", "flush", "stop", "term")
DEFAULT_KINDS = "worker,redis,qdrant,postgres,flush,stop"


class _Kinds(click.ParamType[tuple[str, ...]]):
    """Kinds of faults, with commas between them."""

    name = "KIND,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        found = tuple(dict.fromkeys(part.strip() for part in str(value).split(",") if part.strip()))
        unknown = [kind for kind in found if kind not in KINDS]
        if unknown or not found:
            self.fail(
                f"{', '.join(unknown) or 'nothing'} is no kind of fault; there are {', '.join(KINDS)}", param, ctx
            )
        return found


@click.command()
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True, help="How long.")
@click.option("--faults", type=click.IntRange(1), help="So many faults, however long they take.")
@click.option("--kinds", type=_Kinds(), default=DEFAULT_KINDS, show_default=True, help=f"Of {', '.join(KINDS)}.")
@click.option("--seed", type=int, help="The same seed plans the same faults and documents.  [default: from the clock]")
@click.option("--keep", is_flag=True, help="Keep the drill's collection and documents afterwards.")
@json_option
def drill(minutes: float, faults: int | None, kinds: Sequence[str], seed: int | None, keep: bool, as_json: bool) -> int:
    """Throw faults at this stack, and prove that no document suffers.

    Kills, stops and flushes parts of the embedded stack of MILLRACE_HOME, which must have been started with
    `millrace up --drillable`, while generated documents are written to a collection of their own and searched for.
    Prints what was lost, duplicated, stale or half there, and how long each fault was felt. Exit status 0: nothing
    was; 1: something was.
    """
    import time

    from pipeline.settings import load_settings
    from workers.drill.stack import DrilledStack

    stack = DrilledStack(load_settings().home)  # what is refused is refused at once
    from workers.drill.story import Drill, Options

    chosen = int(time.time()) % 1_000_000 if seed is None else seed
    collection = f"drill-{chosen}-{time.strftime('%Y%m%dT%H%M%S')}"
    options = Options(chosen, kinds, faults or 0, minutes * 60)
    one = Drill(stack, options, collection, (lambda _: None) if as_json else note)
    try:
        one.say(f"seed {chosen}; documents go to collection {collection!r}")
        report = one.run()
        one.say("the judge compares the index with what was asked for")
        verdict = one.verdict()
        if not keep:
            one.say("the documents of the drill are deleted")
            one.clean_up()
    except BaseException:
        one.abandon()
        raise
    finally:
        one.close()
    found = report.to_json(verdict)
    if as_json:
        print_json(found)
    else:
        _print(found)
    return 0 if report.passed(verdict) else 1


def _print(found: dict[str, Any]) -> None:
    felt = found["recovery_seconds_by_kind"]
    print_table(
        ("fault", "times", "felt for, median s", "longest s"),
        [
            (name, times, felt.get(name, {}).get("median"), felt.get(name, {}).get("max"))
            for name, times in found["faults_by_kind"].items()
        ],
    )
    say(
        f"{found['faults']} faults while {found['jobs']} jobs made {found['creations']} documents, "
        f"{found['updates']} updates and {found['deletes']} deletions"
    )
    say(f"lost {found['lost']}, duplicate {found['duplicate']}, stale {found['stale']}, half {found['half_documents']}")
    for name in ("wrong_vectors", "wrong_metadata", "embedded_twice", "failed", "unrecovered"):
        if found[name]:
            say(f"{name.replace('_', ' ')}: {found[name]}")
    searches = found["searches"]
    say(f"{searches['made']} answers of searches checked, {searches['anomalies']} wrong")
    say(f"recovery: median {found['median_recovery_seconds']} s, longest {found['max_recovery_seconds']} s")
    for line in found["details"]:
        say(f"  {line}")
    say("passed: every document is there once, as it was last asked for" if found["passed"] else "FAILED")


COMMANDS = (drill,)
