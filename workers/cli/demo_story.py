"""What the demo does with a running stack: ingest -> ask -> tell how to go on."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from pipeline import Client, JobStatus, Settings
from pipeline.settings import read_run_file
from workers.cli.demo_texts import python_documents
from workers.cli.progress import job_progress
from workers.cli.snippet import snippet
from workers.embedded.runfile import live_processes

SHOWN = 3  # results of one question, and errors of one job

PYTHON_QUESTIONS = (
    "Why is my default argument shared between calls?",
    "What makes an object usable as a dictionary key?",
    "Which module compresses files?",
)
OWN_QUESTIONS = ("What is this about?", "How do I get started?", "What can go wrong, and what helps?")


def tell(settings: Settings, collection: str, paths: Sequence[Path], console: Console) -> JobStatus:
    """Ingests the files at the paths, or Python's own documentation; returns how that job ended."""
    with Client(settings) as client:
        status = _ingest(client, collection, paths, console)
        for question in OWN_QUESTIONS if paths else PYTHON_QUESTIONS:
            _ask(client, question, collection, console)
    _tell_how_to_go_on(settings, collection, bool(paths), console)
    return status


def _ingest(client: Client, collection: str, paths: Sequence[Path], console: Console) -> JobStatus:
    console.print(f"[bold]Ingesting[/] into the collection [bold]{collection}[/]")
    with job_progress(console) as show:
        job = client.ingest(list(paths) or python_documents(), collection=collection, on_staged=show)
        try:
            status = client.wait(job.job_id, on_progress=show)
        except KeyboardInterrupt:
            console.print(f"The job goes on. Look at it with: {_program()} job {job.job_id}")
            raise
    documents, chunks = status.documents, status.chunks
    console.print(
        f"  {documents['total']} documents: {documents['indexed']} indexed, {documents['unchanged']} unchanged, "
        f"{documents['failed']} failed; {chunks['total']} chunks, {chunks['embedded']} of them embedded now; "
        f"{status.seconds:.1f} s"
    )
    for error in status.errors[:SHOWN]:
        console.print(f"  [red]failed[/] {escape(error['uri'])}: {escape(error['error'])}")
    return status


def _ask(client: Client, question: str, collection: str, console: Console) -> None:
    started = time.perf_counter()
    found = client.search(question, collection=collection, limit=SHOWN)
    console.print(f"\n[bold cyan]{escape(question)}[/]  [dim]{(time.perf_counter() - started) * 1000:.0f} ms[/]")
    if not found.results:
        console.print("  nothing found")
    for result in found.results:
        title = f"  [bold]{escape(result.title)}[/]" if result.title else ""
        console.print(f"  [green]{result.score:.3f}[/]{title}  [dim]{escape(result.uri)}[/]")
        shown = escape(snippet(result.text, question))
        console.print(Padding(shown, (0, 0, 0, 9)) if console.is_terminal else f"         {shown}")


def _tell_how_to_go_on(settings: Settings, collection: str, own: bool, console: Console) -> None:
    processes = live_processes(read_run_file(settings.home))
    program = _program()
    console.print("\n[bold]The stack is running[/]")
    for name in ("postgres", "redis", "qdrant", "flower"):
        if found := processes.get(name):
            console.print(f"  {name:<9}{escape(found['url'])}", soft_wrap=True)
    console.print("  Passwords are printed by the next line; Flower's user and password are its MILLRACE_FLOWER__AUTH:")
    _print_command(console, f"{program} env")
    question = "your own question" if own else "how do I sort a list by two keys"
    console.print("\n[bold]Try[/]")
    if settings.home != Path.cwd() / ".millrace":
        _print_command(console, f"export MILLRACE_HOME={shlex.quote(str(settings.home))}")
    _print_command(console, f'{program} search "{question}" --collection {collection}')
    _print_command(console, f"{program} ingest PATH --collection {collection} --wait")
    _print_command(console, f"{program} status")
    _print_command(console, f"{program} jobs")
    _print_command(console, f"{program} audit --collection {collection}")
    console.print("\n[bold]Stop[/]")
    _print_command(console, f"{_script() or f'{program} demo'} --down")


def _print_command(console: Console, command: str) -> None:
    """A line to copy: never wrapped, its brackets no markup."""
    console.print(f"  {command}", soft_wrap=True, markup=False)


def _program() -> str:
    """How this person calls `millrace` from where they are."""
    ours = Path(sys.executable).with_name("millrace")
    found = shutil.which("millrace")
    return "millrace" if found and ours.exists() and Path(found).samefile(ours) else _quoted(ours)


def _script() -> str | None:
    """scripts/demo, where this is a checkout."""
    script = Path(__file__).parents[2] / "scripts" / "demo"
    return _quoted(script) if script.exists() else None


def _quoted(path: Path) -> str:
    """The path for a shell, from here where it is below."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
