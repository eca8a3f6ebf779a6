"""`millrace worker`, `beat`, `flower` and `migrate`: one part each, for containers and for more machines."""

from __future__ import annotations

from typing import Literal

import click

from workers.cli.options import log_format_option, with_log_format
from workers.cli.output import json_option, print_json, say


@click.command()
@click.option("--queues", "-Q", help="Queues to work on, parted by commas.  [default: high,normal,low]")
@click.option("--express", is_flag=True, help="Work on rescue duties and high alone, with one child.")
@click.option("--concurrency", "-c", type=click.IntRange(1, 64), help="Pool children [MILLRACE_WORKER__CONCURRENCY].")
@click.option("--name", "-n", help="The name before the @ of the host.  [default: worker and the process id]")
@log_format_option
def worker(
    queues: str | None,
    express: bool,
    concurrency: int | None,
    name: str | None,
    log_format: Literal["json", "text"] | None,
) -> None:
    """Run a worker in the foreground."""
    import os

    from pipeline.settings import load_settings
    from workers.programs import EXPRESS_QUEUES, GENERAL_QUEUES, program_environment, worker_argv

    settings = with_log_format(load_settings(), log_format)
    if express and queues:
        raise click.UsageError("--express and --queues exclude each other")
    chosen = queues.split(",") if queues else EXPRESS_QUEUES if express else GENERAL_QUEUES
    known = {*GENERAL_QUEUES, *EXPRESS_QUEUES}
    if unknown := [queue for queue in chosen if queue not in known]:
        raise click.BadParameter(f"no queue {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    children = concurrency or (1 if express else settings.worker.concurrency)
    label = name or f"{'express' if express else 'worker'}-{os.getpid()}"
    _become(worker_argv(label, chosen, children), program_environment(settings))


@click.command()
@click.option("--schedule", type=click.Path(file_okay=False), help="Where it keeps its state.  [default: HOME/beat]")
@log_format_option
def beat(schedule: str | None, log_format: Literal["json", "text"] | None) -> None:
    """Run beat in the foreground.

    It is the clock of the duties: one is enough, a second does no harm.
    """
    from pathlib import Path

    from pipeline.settings import load_settings
    from workers.programs import beat_argv, forget_dead_beat, program_environment

    settings = with_log_format(load_settings(), log_format)
    directory = (Path(schedule) if schedule else settings.home / "beat").absolute()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    forget_dead_beat(directory)
    _become(beat_argv(directory), program_environment(settings))


@click.command()
@click.option("--address", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="The port to listen on.")
@log_format_option
def flower(address: str, port: int, log_format: Literal["json", "text"] | None) -> None:
    """Run Flower in the foreground.

    MILLRACE_FLOWER__AUTH is its user:password. It is read-only unless MILLRACE_FLOWER__READ_ONLY is false.
    """
    from pipeline.errors import InvalidSettings
    from pipeline.settings import load_settings
    from workers.programs import flower_argv, program_environment

    settings = with_log_format(load_settings(), log_format)
    if not settings.flower.auth.get_secret_value():
        raise InvalidSettings("MILLRACE_FLOWER__AUTH is not set: Flower is not started without user:password")
    directory = (settings.home / "flower").absolute()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _become(flower_argv(directory, address, port), program_environment(settings))


@click.command()
@json_option
def migrate(as_json: bool) -> None:
    """Bring the database to the schema of this version."""
    from pipeline.errors import InvalidSettings
    from pipeline.ledger.migrate import current, upgrade
    from pipeline.settings import load_settings

    url = load_settings().postgres.url.get_secret_value()
    if not url:
        raise InvalidSettings("MILLRACE_POSTGRES__URL is not set, and no stack runs; `millrace up` starts one")
    before = current(url)
    upgrade(url)
    after = current(url)
    if as_json:
        print_json({"before": before, "after": after})
    else:
        say(f"the schema is at {after}" + ("" if before == after else f" (was {before or 'empty'})"))


def _become(argv: list[str], environment: dict[str, str]) -> None:
    """Replaces this process, so that signals reach the part itself."""
    import os
    import sys

    sys.stdout.flush()
    os.execve(argv[0], argv, environment)  # noqa: S606 - no shell is wanted


COMMANDS = (migrate, worker, beat, flower)
