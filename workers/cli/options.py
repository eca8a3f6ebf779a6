"""The options that several commands share, and KEY=VALUE."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import click

if TYPE_CHECKING:
    from pipeline.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])


class _Pair(click.ParamType[tuple[str, str]]):
    """KEY=VALUE as (key, value); the value may hold further equals signs, or nothing."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not KEY=VALUE, such as lang=en", param, ctx)
        return key, text


PAIR = _Pair()

collection_option = click.option("--collection", default="default", show_default=True, help="The collection.")
tenant_option = click.option("--tenant", help="Whose documents.  [default: MILLRACE_TENANT]")
priority_option = click.option(
    "--priority",
    type=click.Choice(["high", "normal", "low"]),
    default="normal",
    show_default=True,
    help="The queue that the job's work goes to.",
)
_embedding_options = (
    click.option(
        "--provider",
        type=click.Choice(["local", "openai", "openai_batch", "auto"]),
        help="Who embeds: here, OpenAI at once, its Batch API within a day, or what fits.  [default: the collection's]",
    ),
    click.option("--model", metavar="NAME", help="Of a collection that is made now.  [default: that of the settings]"),
    click.option("--dimensions", type=click.IntRange(1), metavar="N", help="Of its vectors.  [default: the model's]"),
    click.option(
        "--need-by", metavar="WHEN", help="When the documents shall be found: 2h, or a time such as 2026-12-24T18:00."
    ),
    click.option(
        "--max-cost", type=click.FloatRange(0), metavar="USD", help="What it may cost; beyond that the job is paused."
    ),
)


def embedding_options(command: Command) -> Command:
    """Who embeds, with what, by when and for how much."""
    decorated: Any = command
    for option in reversed(_embedding_options):
        decorated = option(decorated)
    return cast(Command, decorated)


correlation_option = click.option(
    "--correlation-id", metavar="ID", help="What you call this request, in every log line of its work (docs/logs.md)."
)
log_format_option = click.option(
    "--log-format", type=click.Choice(["json", "text"]), help="How the log is written [MILLRACE_LOGS__FORMAT]."
)
wait_option = click.option(
    "--wait",
    is_flag=True,
    help="Show the progress, and return when the job is done, or over its budget (exit status 4).",
)
webhook_option = click.option(
    "--webhook", metavar="URL", help="Told, with a signed POST, when the job has ended (docs/webhooks.md)."
)
when_full_option = click.option(
    "--when-full",
    type=click.Choice(["wait", "refuse"]),
    default="wait",
    show_default=True,
    help="Where too much is on its way already: wait until workers have caught up, or end with an error.",
)
filter_option = click.option(
    "--filter",
    "filters",
    type=PAIR,
    multiple=True,
    help="Only documents whose metadata has this value; several must all match, the same key twice: either value.",
)
metadata_option = click.option(
    "--metadata",
    type=PAIR,
    multiple=True,
    help="Added to every document; numbers, true, false and null as in JSON, anything else is text.",
)
include_option = click.option(
    "--include", metavar="PATTERN", multiple=True, help="Of a directory, only these files (as in .gitignore)."
)
exclude_option = click.option(
    "--exclude", metavar="PATTERN", multiple=True, help="Of a directory, not these files (as in .gitignore)."
)

_rows_options = (
    click.option("--id-column", metavar="NAME", help="A row a document, named by this column."),
    click.option(
        "--text-column",
        "text_columns",
        metavar="NAME",
        multiple=True,
        help="A row a document, with the text of this column; several in this order.  [default: all but the id]",
    ),
    click.option("--title-column", metavar="NAME", help="The title of a row.  [default: title, if there is one]"),
    click.option(
        "--metadata-column",
        "metadata_columns",
        metavar="NAME",
        multiple=True,
        help="Of a row, only these as metadata.  [default: all that are not text]",
    ),
    click.option("--records", metavar="PATH", help="Where in a JSON object the list of records is: result.items"),
    click.option("--sheet", metavar="NAME", help="The sheet of a workbook.  [default: the first]"),
    click.option(
        "--delimiter", metavar="CHARACTER", help="Of a CSV file; \\t is a tab.  [default: told from the file]"
    ),
)


def rows_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that make a row of a table a document; the command gets them as `rows`, None where none is given."""

    @wraps(command)
    def with_rows(
        *args: Any,
        id_column: str | None,
        text_columns: tuple[str, ...],
        title_column: str | None,
        metadata_columns: tuple[str, ...],
        records: str | None,
        sheet: str | None,
        delimiter: str | None,
        **others: Any,
    ) -> Any:
        given = (id_column, text_columns, title_column, metadata_columns or None, records, sheet)
        rows = None
        if any(given) or delimiter:
            from pipeline.sources import Rows

            rows = Rows(*given, "\t" if delimiter == "\\t" else delimiter)
        return command(*args, rows=rows, **others)

    decorated: Callable[..., Any] = with_rows
    for option in reversed(_rows_options):
        decorated = option(decorated)
    return decorated


def with_log_format(settings: Settings, log_format: Literal["json", "text"] | None) -> Settings:
    """The settings with what was typed, if anything was."""
    if log_format is None:
        return settings
    return settings.model_copy(update={"logs": settings.logs.model_copy(update={"format": log_format})})


def limit_option(default: int) -> Callable[[Command], Command]:
    return click.option(
        "--limit", type=click.IntRange(1), default=default, show_default=True, help="How many, at most."
    )


def as_filters(pairs: Iterable[tuple[str, str]]) -> dict[str, str | list[str]]:
    """Filters as the client takes them: a key that was given several times matches any of its values."""
    values: dict[str, list[str]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    return {key: found[0] if len(found) == 1 else found for key, found in values.items()}


def as_metadata(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Metadata of what was typed: `pages=12` is a number, `draft=true` a truth value, `title=12 men` is text."""
    metadata: dict[str, Any] = {}
    for key, value in pairs:
        if key in metadata:
            raise click.BadParameter(f"{key!r} is given twice", param_hint="--metadata")
        metadata[key] = _scalar(value)
    return metadata


def _scalar(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse)  # NaN and Infinity are no JSON, whatever Python thinks
    except ValueError:
        return text
    return text if isinstance(value, list | dict) else value


def _refuse(name: str) -> None:
    raise ValueError(name)
