"""`millrace logs`: what the parts of the stack have written, in one order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from workers.cli.output import for_people, say

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from pathlib import Path

    from workers.embedded.logfiles import Line, LogFile

TAIL_LINES = 40
FOLLOW_SECONDS = 0.3
LEVELS = ("debug", "info", "warning", "error")


class _Since(click.ParamType["datetime"]):
    """A time that has passed: 10m, 2h, or as ISO 8601 writes it (without a zone: the machine's)."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        from datetime import UTC, datetime, timedelta

        from pipeline.errors import InvalidRequest
        from pipeline.intervals import seconds_between

        text = str(value).strip()
        try:
            if text.endswith(("s", "m", "h", "d")):
                return datetime.now(UTC) - timedelta(seconds=seconds_between(text, least=0.0))
            return datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, InvalidRequest):
            self.fail(f"{text!r} is no time; write 30s, 10m, 2h, 1d, or 2026-01-31T09:30", param, ctx)


@click.command()
@click.argument("parts", nargs=-1, metavar="[PART]...")
@click.option("--follow", "-f", is_flag=True, help="Go on printing what is written.")
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(0),
    help=f"Lines of each log, at most.  [default: {TAIL_LINES}; with a filter, all]",
)
@click.option("--job", "job_id", metavar="ID", help="Only lines about this job.")
@click.option("--batch", "batch_id", metavar="ID", help="Only lines about this batch.")
@click.option("--correlation", "correlation_id", metavar="ID", help="Only lines with this correlation id.")
@click.option("--level", type=click.Choice(LEVELS), help="Only lines of this level and above.")
@click.option("--since", type=_Since(), help="Only lines since then: 10m, 2h, 1d, or 2026-01-31T09:30.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line, as it was written.")
def logs(
    parts: tuple[str, ...],
    follow: bool,
    lines: int | None,
    level: str | None,
    since: datetime | None,
    as_json: bool,
    **ids: str | None,
) -> None:
    """Print the logs of the stack's parts, in the order of time.

    PART: such as general1, postgres or supervisor; by default all of them. Lines of other programs, Postgres and
    Redis, are printed as they are, and left out where --job, --batch, --correlation or --level are given.
    """
    import heapq
    import time
    from collections import deque
    from contextlib import suppress

    from pipeline.settings import load_settings
    from workers.embedded.home import Home

    directory = Home.at(load_settings().home).logs
    wanted = {key: value for key, value in ids.items() if value is not None}
    view = _View(wanted, level, since, as_json, one=len(parts) == 1)
    most = lines if lines is not None else TAIL_LINES if not (wanted or level or since) else None
    files = {file.part: file for file in _files(directory, parts)}
    kept: list[Iterable[Line]] = []
    for file in files.values():
        found = (line for line in file.lines(view.glance) if view.shows(line))
        kept.append(found if most is None else deque(found, maxlen=most))
    for line in heapq.merge(*kept, key=lambda line: line.at):
        view.show(line)
    with suppress(KeyboardInterrupt):
        while follow:
            time.sleep(FOLLOW_SECONDS)
            for file in _files(directory, parts):
                files.setdefault(file.part, file)  # a part that has been started since
            fresh = [[line for line in file.new(view.glance) if view.shows(line)] for file in files.values()]
            for line in heapq.merge(*fresh, key=lambda line: line.at):
                view.show(line)


class _View:
    """Which lines are shown, and how."""

    def __init__(
        self, wanted: dict[str, str], level: str | None, since: datetime | None, as_json: bool, *, one: bool
    ) -> None:
        self._wanted = wanted
        self._level = level
        self._since = since
        self._as_json = as_json
        self._one = one
        self._colour = for_people()

    def glance(self, text: str) -> bool:
        """Whether a line may be wanted: most are not, and need not be taken apart."""
        return all(value in text for value in self._wanted.values())

    def shows(self, line: Line) -> bool:
        from pipeline.monitoring.lines import matches

        if self._since is not None and line.at < self._since:
            return False
        if line.fields is None:
            return not self._wanted and self._level is None
        return matches(line.fields, self._wanted, self._level)

    def show(self, line: Line) -> None:
        from pipeline.monitoring.lines import for_people as rendered

        if self._as_json:
            say(line.text if line.fields is not None else _as_json(line))
            return
        text = line.text if line.fields is None else rendered(line.fields, colour=self._colour, local=True)
        for part in text.split("\n"):
            say(part if self._one else f"{line.part} | {part}")


def _as_json(line: Line) -> str:
    import json

    return json.dumps({"process": line.part, "line": line.text}, ensure_ascii=False)


def _files(directory: Path, parts: tuple[str, ...]) -> list[LogFile]:
    """Raises StackNotRunning where there are none, BadParameter for a part without one."""
    from pipeline.errors import StackNotRunning
    from workers.embedded.logfiles import LogFile

    found = [LogFile(path) for path in sorted(directory.glob("*.log"))]
    if not found:
        raise StackNotRunning(f"there are no logs in {directory}; `millrace up` starts a stack there")
    names = [file.part for file in found]
    if unknown := [part for part in parts if part not in names]:
        raise click.BadParameter(
            f"{', '.join(map(repr, unknown))} has no log; there are {', '.join(names)}", param_hint="PART"
        )
    return [file for file in found if not parts or file.part in parts]


COMMANDS = (logs,)
