"""The progress of a job while somebody watches: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from workers.cli.output import note

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.status import JobStatus

Show = Callable[["JobStatus"], None]

PLAIN_SECONDS = 2.0  # between two lines where there is no terminal, at least
BAR_CHARACTERS = 24
REFRESHES_PER_SECOND = 8
NO_NEWS = "queued"  # what every job waits for at first


@contextmanager
def job_progress(console: Console | None) -> Iterator[Show]:
    """What to call with every new status of a job. None: nothing is shown.

    In a terminal a bar, gone at the end; elsewhere a line when something changed, every two seconds at most.
    """
    if console is None:
        yield lambda _: None
    elif console.is_terminal:
        with _bar(console) as show:
            yield show
    else:
        yield _lines(console)


@contextmanager
def _bar(console: Console) -> Iterator[Show]:
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
    from rich.text import Text

    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description:<9}"), BarColumn(BAR_CHARACTERS), TextColumn("{task.fields[at]}")
    )
    task = bar.add_task("reading", total=None, at="")
    reason = Text("", style="yellow")

    def show(status: JobStatus) -> None:
        done, total = _steps(status)
        # Without a total the bar pulses: nobody knows the number of chunks before the first documents are cut.
        bar.update(task, description=status.stage, completed=done, total=total or None, at=figures(status))
        why = waiting_reason(status)
        reason.plain = f"  waiting: {why}" if why else ""

    with Live(
        console=console,
        get_renderable=lambda: Group(bar, reason) if reason.plain else bar,
        refresh_per_second=REFRESHES_PER_SECOND,
        transient=True,
    ):
        yield show


def _lines(console: Console) -> Show:
    said = ""
    said_at = float("-inf")

    def show(status: JobStatus) -> None:
        nonlocal said, said_at
        words = f"{status.stage}: {figures(status)}"
        if why := waiting_reason(status):
            words += f"; waiting: {why}"
        if status.finished or _ends_the_waiting(status) or words == said or time.monotonic() - said_at < PLAIN_SECONDS:
            return
        said, said_at = words, time.monotonic()
        console.print(words, markup=False, highlight=False, soft_wrap=True)

    return show


def pauses() -> Show:
    """Where progress is not wanted: one line on stderr each time that the job is paused, with what lets it go on."""
    said = ""

    def show(status: JobStatus) -> None:
        nonlocal said
        why = waiting_reason(status) if status.paused and not _ends_the_waiting(status) else ""
        if why and why != said:
            note(f"waiting: {why}")
        said = why

    return show


def figures(status: JobStatus) -> str:
    """How far the job is, such as `120/~900 chunks, 33/s, 24 s left` (~: some documents are still to be cut)."""
    done, total = _steps(status)
    if status.stage == "staging":
        words = [f"{counted(status.documents['total'], 'document')} read"]
    elif not total:
        words = [counted(status.documents["total"], "document")]
    elif status.kind == "delete":
        words = [f"{done:,}/{total:,} documents"]
    else:
        words = [f"{done:,}/{'~' if status.stage == 'preparing' else ''}{total:,} chunks"]
    if status.rate:
        words.append(f"{status.rate:.{0 if status.rate >= 10 else 1}f}/s")
    if status.eta_seconds is not None:
        words.append(f"{duration(status.eta_seconds)} left")
    return ", ".join(words)


def waiting_reason(status: JobStatus) -> str:
    """Why the job does not move; "" where it does, or where it merely waits for its turn or for who looks on here. Of
    one that is paused, also what lets it go on: it may be for ever."""
    if status.waiting is None or status.waiting.state == "staging" or status.waiting.reason == NO_NEWS:
        return ""
    remedy = status.waiting.remedy if status.paused else ""
    return f"{status.waiting.reason}; {remedy}" if remedy else status.waiting.reason


def _ends_the_waiting(status: JobStatus) -> bool:
    """It is told with its end. While its documents are still being read, it goes on."""
    return status.over_budget and status.stage != "staging"


def counted(number: int, thing: str) -> str:
    """Such as `1 document`, `1,500 documents`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `0.04 s`, `2.4 s`, `24 s`, `3 min`, `2 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.{2 if seconds < 1 else 1 if seconds < 10 else 0}f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _steps(status: JobStatus) -> tuple[int, int]:
    """What is done, and what there is to do: chunks, or documents where nothing but documents goes."""
    if status.stage == "staging":
        return 0, 0
    if status.kind == "delete":
        return finished_documents(status), status.documents["total"]
    return status.chunks["indexed"], max(status.chunks["indexed"], status.expected_chunks)


def finished_documents(status: JobStatus) -> int:
    """Documents of the job that nothing more will be done for."""
    return sum(number for name, number in status.documents.items() if name not in {"total", "skipped"})
