"""The program `millrace`: its commands, its exit statuses, and how an error is told.

0 done, 1 failed, 2 wrong use, 3 done in part, 4 what was waited for is over its budget. A command raises; what that
means for the person is decided here alone.
"""

from __future__ import annotations

import logging
import sys
import traceback

import click

from workers.cli import (
    alerts,
    audit,
    batches,
    collections,
    control,
    cost,
    dead,
    demo,
    documents,
    drill,
    duties,
    jobs,
    logs,
    parts,
    reembed,
    search,
    stack,
    stats,
    storage,
    sync,
)
from workers.cli.output import print_json
from workers.light_import import leave_out_clients

FAILED, WRONG_USE, PARTIAL, OVER_BUDGET, INTERRUPTED = 1, 2, 3, 4, 130

# In the order in which `millrace --help` shows them. Command modules import what they need inside their functions:
# `millrace --help` loads none of it.
COMMANDS: tuple[click.Command, ...] = (
    *demo.COMMANDS,
    *stack.COMMANDS,
    *logs.COMMANDS,
    *documents.COMMANDS,
    *sync.COMMANDS,
    *search.COMMANDS,
    *jobs.COMMANDS,
    *control.COMMANDS,
    *dead.COMMANDS,
    *cost.COMMANDS,
    *batches.COMMANDS,
    *collections.COMMANDS,
    *audit.COMMANDS,
    *reembed.COMMANDS,
    *duties.COMMANDS,
    *alerts.COMMANDS,
    *stats.COMMANDS,
    *storage.COMMANDS,
    *drill.COMMANDS,
    *parts.COMMANDS,
)


class _InOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    commands={command.name: command for command in COMMANDS if command.name},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="millrace")
def millrace() -> None:
    """Keep a vector index true to a body of documents.

    Start with `millrace up`, then `millrace ingest PATH`. MILLRACE_HOME (./.millrace) is where the stack lives.
    """


def run(arguments: list[str]) -> int:
    """Runs one command line; returns its exit status, and has told of every error."""
    as_json = "--json" in arguments
    try:
        status = millrace.main(arguments or ["--help"], prog_name="millrace", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last place where it can be told in words
        status, message = _explain(error)
        click.echo(f"error: {message}", err=True)
        if as_json:
            print_json(
                {
                    "error": message,
                    "type": "Interrupted" if status == INTERRUPTED else type(error).__name__,
                    "exit_code": status,
                }
            )
        return status
    return status if isinstance(status, int) else 0


def _explain(error: BaseException) -> tuple[int, str]:
    """The exit status of an error, and its words."""
    from pipeline.errors import InvalidRequest, MillraceError

    match error:
        case click.UsageError():
            if error.ctx is not None:
                click.echo(error.ctx.get_usage(), err=True)
            return WRONG_USE, error.format_message()
        case click.ClickException():
            return FAILED, error.format_message()
        case click.Abort() | KeyboardInterrupt():
            return INTERRUPTED, "interrupted"
        case MillraceError():
            return WRONG_USE if isinstance(error, InvalidRequest) else FAILED, str(error)
        case _:
            traceback.print_exception(error)
            return FAILED, f"a fault in Millrace: {error!r}. The lines above say where"


def main() -> None:
    """The entry point of the program."""
    leave_out_clients()
    # A command says itself what matters; without this, what libraries log would come between its lines.
    logging.getLogger().addHandler(logging.NullHandler())
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
