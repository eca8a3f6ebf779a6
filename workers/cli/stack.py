"""`millrace up`, `down`, `status` and `env`: the embedded stack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from workers.cli.options import log_format_option, with_log_format
from workers.cli.output import for_people, json_option, note, print_json, print_table, say, waiting

if TYPE_CHECKING:
    from pipeline.settings import Settings
    from workers.embedded.supervisor import Event


@click.command()
@click.option("--detach", "-d", is_flag=True, help="Return when everything answers, and leave it running.")
@click.option("--workers", type=click.IntRange(0, 64), help="General worker processes [MILLRACE_WORKER__COUNT].")
@click.option("--concurrency", type=click.IntRange(1, 64), help="Pool children of each [MILLRACE_WORKER__CONCURRENCY].")
@click.option("--drillable", is_flag=True, help="Let `millrace drill` kill, stop and flush parts of this stack.")
@log_format_option
@json_option
def up(
    detach: bool,
    workers: int | None,
    concurrency: int | None,
    drillable: bool,
    log_format: Literal["json", "text"] | None,
    as_json: bool,
) -> None:
    """Start the embedded stack.

    Postgres, Redis, the vector server, an express and general workers, beat and Flower, on loopback, with data,
    credentials and logs in MILLRACE_HOME.
    """
    from pipeline.settings import load_settings
    from workers.embedded.background import run_stack, start_in_background

    settings = with_log_format(load_settings(), log_format)
    count = settings.worker.count if workers is None else workers
    children = settings.worker.concurrency if concurrency is None else concurrency
    if detach:
        with waiting("starting", quiet=as_json) as tell:
            processes = start_in_background(
                settings, count, children, lambda event: _tell_start(event, tell), drillable=drillable
            )
        _print_up(processes, settings, as_json)
        if not as_json:
            say("\nIt runs in the background: `millrace status` shows it, `millrace down` stops it.")
        return

    def report(event: Event) -> None:
        if event.kind == "up":
            _print_up(event.processes, settings, as_json)
            if not as_json:
                say("\nCtrl-C stops it.")
        elif event.kind == "restarted":
            note(f"{event.part} {event.message}; starting it again")
        elif event.kind == "stopping" and not as_json:
            note("stopping")
        elif event.kind == "failed":
            note("\n".join(event.tail))
        elif not as_json:
            _tell_start(event, note)

    run_stack(settings, count, children, report, drillable=drillable)


@click.command()
@json_option
def down(as_json: bool) -> None:
    """Stop the embedded stack.

    Returns when nothing of it is left. Workers hand back what they are doing; the next `up` goes on with it.
    """
    from pipeline.settings import load_settings
    from workers.embedded.shutdown import stop_stack

    settings = load_settings()
    with waiting("stopping", quiet=as_json):
        stopped = stop_stack(settings.home)
    if as_json:
        print_json({"stopped": stopped, "home": str(settings.home.absolute())})
    else:
        say("stopped" if stopped else f"nothing is running on {settings.home.absolute()}")


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show what runs, how it is, and what there is to do."""
    from pipeline.errors import MillraceError
    from pipeline.settings import load_settings, read_run_file
    from workers.embedded.runfile import live_processes

    settings = load_settings()
    found: dict[str, Any] = {"processes": live_processes(read_run_file(settings.home))}
    if settings.postgres.url.get_secret_value():
        from pipeline.client import Client

        try:
            with Client(settings) as client:
                found |= client.status()
        except MillraceError as error:
            found |= _away(str(error), settings)
    else:
        found |= _away(f"no stack runs on {settings.home.absolute()}", settings)
        for issue in found["health"]["issues"]:
            issue["remedy"] = "start one with `millrace up`, or set MILLRACE_POSTGRES__URL to reach another"
    if as_json:
        print_json(found)
    else:
        _print_status(found)


@click.command()
def env() -> None:
    """Print the addresses for a shell.

    With passwords: eval "$(millrace env)" lets any program find the stack.
    """
    import shlex

    from pipeline.errors import StackNotRunning
    from pipeline.settings import load_settings, read_run_file
    from workers.embedded.stack import environment_variables

    settings = load_settings()
    addresses = read_run_file(settings.home).get("settings")
    if not addresses:
        raise StackNotRunning(f"no stack runs on {settings.home.absolute()}; start one with `millrace up`")
    for name, value in environment_variables(settings.home, addresses).items():
        say(f"export {name}={shlex.quote(value)}")


def _tell_start(event: Event, tell: Any) -> None:
    if event.kind == "ready":
        tell(f"{event.part} is ready after {event.seconds:.1f} s")


def _print_up(processes: dict[str, Any], settings: Settings, as_json: bool) -> None:
    if as_json:
        print_json(processes)
        return
    from pipeline.settings import load_settings, mask_url, read_run_file
    from workers.embedded.home import STACK_FILE
    from workers.embedded.stack import address_variables

    _print_processes(processes)
    say(f"\nPasswords: `millrace env` prints them; they are in {settings.home.absolute() / STACK_FILE}")
    run = read_run_file(settings.home)
    if run.get("drillable"):
        say("Drillable: `millrace drill` may kill, stop and flush its parts while it works.")
    addresses = address_variables(run["settings"])
    for section in ("postgres", "redis", "qdrant"):
        name = f"MILLRACE_{section.upper()}__URL"
        configured = getattr(load_settings(), section).url.get_secret_value()
        if configured != addresses[name]:
            note(f"{name} is set to {mask_url(configured)}: commands here use that, not this stack")


def _print_processes(processes: dict[str, Any]) -> None:
    rows: list[tuple[object, ...]] = []
    for name, found in processes.items():
        if isinstance(found, list):
            rows += [(worker["name"], worker["pid"], f"{len(worker['children'])} children") for worker in found]
        elif found is not None:
            rows.append((name, found["pid"], found.get("url")))
    if rows:  # nothing here is of an embedded stack where the servers are elsewhere
        print_table(("part", "pid", "address"), rows)


def _print_status(found: dict[str, Any]) -> None:
    _print_processes(found["processes"])
    health = found["health"]
    say(f"health {health['score']} of 100")
    for issue in health["issues"]:
        cost = f"-{issue['points']}" if issue["points"] else ""  # others of its kind cost all that the check may
        say(f"  {cost:<4} {issue['severity']:<8} {issue['message']}")
        say(f"       {issue['remedy']}")
    if health["unknown"] and health["score"]:
        say(f"  not known now: {', '.join(health['unknown'])}")
    if raised := sum(found["alerts"].values()):
        say(f"alerts {raised} that nobody has acknowledged; `millrace alerts` lists them")
    if found["queues"]:
        print_table(
            ("queue", "messages", "ready batches", "oldest"),
            [
                (name, _number(queue["messages"]), _number(queue["ready_batches"]), _age(queue["oldest_seconds"]))
                for name, queue in found["queues"].items()
            ],
        )
    _print_workers(found["workers"])
    if found["jobs"]:
        say("jobs: " + ", ".join(f"{count} {state}" for state, count in found["jobs"].items()))
    _print_openai(found["openai"])
    for pause in found["paused"]:
        say(f"paused: {pause['what']}" + (f" ({pause['reason']})" if pause["reason"] else ""))
    _print_unfinished(found["unfinished"])


def _number(count: int | None) -> str:
    if count is None:  # Redis is away
        return "?" if for_people() else ""
    return f"{count:,}" if for_people() else f"{count}"


def _age(seconds: float) -> str:
    from workers.cli.progress import duration

    return f"{seconds}" if not for_people() else duration(seconds) if seconds else ""


def _print_workers(workers: list[dict[str, Any]]) -> None:
    """Those that have reported lately, on all machines, and what their processes have resident."""
    if not workers:
        return
    rows = []
    for worker in workers:
        sizes = [one["rss"] / 2**20 for one in worker["processes"] or () if one.get("rss")]
        memory = f"{sum(sizes):,.0f} MB, the largest {max(sizes):,.0f} MB" if sizes else ""
        children = sum(1 for one in worker["processes"] or () if one["slot"] >= 0)
        rows.append((worker["id"], ", ".join(worker["queues"]), children, memory))
    print_table(("worker", "queues", "children", "memory"), rows)


def _print_openai(openai: dict[str, Any] | None) -> None:
    """Who embeds for money, where somebody uses it: whether it takes anything now, and what is on order there."""
    if openai is None:
        return
    from workers.cli.progress import duration

    told = openai["state"]
    if openai["until"]:
        told += f", until {openai['until'][11:19]} UTC"
    elif openai["error"]:
        told += ", to be tried again now"
    told += f" ({openai['error']})" if openai["error"] else ""
    if openai["batches"]:
        states = ", ".join(f"{count} {state}" for state, count in openai["batches"].items())
        age = duration(openai["oldest_seconds"])
        told += f"; Batch API: {states}, {openai['inputs']:,} texts, the oldest {age} old"
    if openai["unpacked"]:
        told += f"; {openai['unpacked']:,} texts wait to be packed"
    say(f"openai: {told}")


def _print_unfinished(unfinished: dict[str, Any]) -> None:
    """What goes on, and of each job that does not get on, why."""
    if not unfinished["jobs"]:
        return
    columns = ("job", "state", "stage", "chunks", "waiting")
    print_table(
        columns,
        [
            (
                job["job_id"],
                job["waiting"]["state"].replace("_", " ") if job["waiting"] else job["state"],
                job["stage"],
                f"{job['chunks']['indexed']}/{job['chunks']['total']}",
                job["waiting"]["reason"] if job["waiting"] else "",
            )
            for job in unfinished["jobs"]
        ],
    )
    if (more := unfinished["total"] - len(unfinished["jobs"])) > 0:
        say(f"and {more:,} more; `millrace jobs` lists the newest")


def _away(issue: str, settings: Settings) -> dict[str, Any]:
    """The rest of the status where the ledger does not answer."""
    from pipeline.health import without_ledger

    return without_ledger(issue, settings)


COMMANDS = (up, down, status, env)
