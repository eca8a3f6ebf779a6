"""`millrace demo`: the whole system at work on text that is here already, or on a person's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.settings import Settings
    from workers.embedded.home import Home

COLLECTION = "demo"
MARKER = "demo.json"  # in a home that the demo made: the names of the collections that are its own


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--down", "stop", is_flag=True, help="Stop the stack and remove what the demo made.")
def demo(paths: tuple[Path, ...], stop: bool) -> int:
    """Ingest text, ask three questions about it, leave the stack running.

    The text is the documentation that Python carries, or the files at PATHS.
    """
    import sys

    from rich.console import Console

    from pipeline.settings import load_settings
    from workers.cli.demo_story import tell
    from workers.embedded.home import Home

    if stop and paths:
        raise click.UsageError("--down takes no paths")
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    settings = load_settings()
    home = Home.at(settings.home)
    if stop:
        _tidy(home, console)
        return 0
    _start(home, settings, console)
    collection = f"{COLLECTION}-{_slug(paths[0].resolve().name)}" if paths else COLLECTION
    made = _made_by_the_demo(home)
    if made is not None:
        _mark(home, made | {collection})
    status = tell(_settings_of_the_stack(home), collection, paths, console)
    return {"succeeded": 0, "partial": 3}.get(status.state, 1)


def _start(home: Home, settings: Settings, console: Console) -> None:
    """Starts the stack of this home where none runs."""
    import time

    from rich.markup import escape

    from workers.cli.output import waiting
    from workers.embedded.background import start_in_background

    place = escape(str(home.path))
    if home.is_locked():
        console.print(f"[bold]Using[/] the stack that runs on {place}")
        return
    fresh = not (home.path / "postgres").exists()
    console.print("[bold]Starting[/] Postgres, Redis, the vector server, workers, beat and Flower")
    started = time.perf_counter()
    with waiting("starting", quiet=not console.is_terminal) as words:
        start_in_background(
            settings, settings.worker.count, settings.worker.concurrency, lambda event: words(f"{event.part} is ready")
        )
    console.print(f"  all answer after {time.perf_counter() - started:.1f} s; their data is in {place}")
    if fresh:
        _mark(home, set())


def _settings_of_the_stack(home: Home) -> Settings:
    """The settings with the addresses of this home's stack, whatever servers the environment names."""
    from pipeline.settings import load_settings, read_run_file

    return load_settings(**{**read_run_file(home.path).get("settings", {}), "home": home.path})


def _tidy(home: Home, console: Console) -> None:
    """Stops the stack; removes its home where the demo made it and nobody put anything of their own into it."""
    import shutil

    from rich.markup import escape

    from workers.cli.output import waiting
    from workers.embedded.shutdown import stop_stack

    place = escape(str(home.path))
    removable = home.is_locked() and _holds_only_the_demo(home, console)
    with waiting("stopping", quiet=not console.is_terminal):
        stopped = stop_stack(home.path)
    console.print("Stopped." if stopped else f"No stack runs on {place}.")
    if removable:
        shutil.rmtree(home.path)
        console.print(f"Removed {place}.")
    elif home.path.exists():
        console.print(f"{place} stays, with its data; remove it where it is not needed.")


def _holds_only_the_demo(home: Home, console: Console) -> bool:
    from rich.markup import escape

    from pipeline import Client, MillraceError

    made = _made_by_the_demo(home)
    if made is None:
        return False
    try:
        with Client(_settings_of_the_stack(home)) as client:
            return {found.name for found in client.collections()} <= made
    except MillraceError as error:
        console.print(f"What the stack holds cannot be read, so it stays: {escape(str(error))}")
        return False


def _made_by_the_demo(home: Home) -> set[str] | None:
    """The collections that the demo made in a home of its own making; None where the home is somebody else's."""
    try:
        return set(json.loads((home.path / MARKER).read_text("utf-8"))["collections"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mark(home: Home, collections: set[str]) -> None:
    (home.path / MARKER).write_text(json.dumps({"collections": sorted(collections)}), "utf-8")


def _slug(name: str) -> str:
    """The name of a file or directory as a part of a collection's name."""
    import re

    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "files"


COMMANDS = (demo,)
