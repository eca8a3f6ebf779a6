"""`millrace alerts`: what is wrong, who has seen it, and from when on it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from workers.cli.output import for_people, json_option, note, print_json, print_table, say

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.ledger.alerts import Alert
    from pipeline.settings import Severity

SEVERITIES = ("low", "medium", "high", "critical")
ACTIONS = ("ack", "set", "unset", "thresholds", "test")


@click.command()
@click.argument("action", metavar="[ack|set|unset|thresholds|test]", type=click.Choice(ACTIONS), required=False)
@click.argument("arguments", metavar="[ID]...|[NAME [VALUE]]", nargs=-1)
@click.option("--severity", type=click.Choice(SEVERITIES), help="Only alerts of this severity and above.")
@click.option("--since", metavar="TIME", help="Those too that have cleared since then: 30m, 2h, 1d.")
@click.option("--all", "everything", is_flag=True, help="Those too that have cleared; of `ack`: all that are active.")
@click.option("--by", metavar="NAME", help="Of `ack`: who has seen them.  [default: this user]")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many, at most.")
@json_option
def alerts(
    action: str | None,
    arguments: tuple[str, ...],
    *,
    severity: str | None,
    since: str | None,
    everything: bool,
    by: str | None,
    limit: int,
    as_json: bool,
) -> int:
    """List alerts, acknowledge them, or change the thresholds by which they are raised.

    `ack ID...` (or --all) says that somebody has seen them. `thresholds` lists the thresholds; `set NAME VALUE` and
    `unset NAME` change one within half a minute, without a restart: queue_size, or operation_time_ms.search for one
    operation. `test` sends a test alert through every callback. docs/operations.md has an entry for each alert.
    """
    from pipeline.client import Client

    _check_options(action, severity=severity, since=since, everything=everything, by=by)
    with Client() as client:
        match action:
            case "ack":
                _acknowledge(client, arguments, everything, by, as_json)
            case "set":
                _set(client, arguments, as_json)
            case "unset":
                _unset(client, arguments, as_json)
            case "thresholds":
                _none(action, arguments)
                _thresholds(client, as_json)
            case "test":
                _none(action, arguments)
                return _test(client, as_json)
            case _:
                found = client.alerts(
                    severity=cast("Severity | None", severity), since=since, cleared=everything, limit=limit
                )
                _list(found, as_json)
    return 0


def _check_options(action: str | None, **given: Any) -> None:
    of_action: dict[str | None, set[str]] = {None: {"severity", "since", "everything"}, "ack": {"everything", "by"}}
    for name, value in given.items():
        if value and name not in of_action.get(action, set()):
            option = "all" if name == "everything" else name
            raise click.UsageError(f"--{option} is not for `millrace alerts{f' {action}' if action else ''}`")


def _none(action: str, arguments: tuple[str, ...]) -> None:
    if arguments:
        raise click.UsageError(f"`millrace alerts {action}` takes nothing; not {arguments[0]!r}")


def _list(found: list[Alert], as_json: bool) -> None:
    if as_json:
        print_json({"alerts": [{**alert.to_json(), "remedy": _remedy(alert)} for alert in found]})
        return
    if not found:
        if for_people():
            note("There are no alerts.")
        return
    if not for_people():
        print_table((), [_row(alert) for alert in found])
        return
    for alert in found:
        _tell(alert)


def _tell(alert: Alert) -> None:
    """In a few lines, the longest last: what is wrong, what the system did about it, and what to do."""
    number, severity, state, name, raised, cleared, message, action = _row(alert)
    ended = f", cleared {cleared}" if cleared else ""
    say(f"{number!s:<5} {severity:<8} {name}: {state}; raised {raised}{ended} UTC")
    say(f"      {message}")
    if action:
        say(f"      the system did: {action}")
    if not cleared and (remedy := _remedy(alert)):
        say(f"      {remedy}")


def _row(alert: Alert) -> tuple[str | int, str, str, str, str, str, str, str | None]:
    by = f" by {alert.acknowledged_by}" if alert.state == "acknowledged" else ""
    # It clears when it has been gone for a while; until then nobody is to look for it.
    over = f", over since {alert.gone_at:%H:%M:%S}" if alert.gone_at and alert.cleared_at is None else ""
    return (
        alert.id,
        alert.severity,
        f"{alert.state}{by}{over}",
        f"{alert.type} {alert.subject}".rstrip(),
        f"{alert.raised_at:%Y-%m-%d %H:%M:%S}",
        f"{alert.cleared_at:%Y-%m-%d %H:%M:%S}" if alert.cleared_at else "",
        alert.message,
        alert.action,
    )


def _remedy(alert: Alert) -> str:
    from pipeline.monitoring.checks import remedy_of

    return remedy_of(alert.type, alert.subject)


def _acknowledge(client: Client, arguments: tuple[str, ...], everything: bool, by: str | None, as_json: bool) -> None:
    if bool(arguments) == everything:
        raise click.UsageError("name the alerts by id, or --all")
    try:
        ids = [int(argument) for argument in arguments]
    except ValueError:
        raise click.BadParameter("an alert is named by its number", param_hint="ID") from None
    seen = client.acknowledge(ids, everything=everything, by=by)
    if as_json:
        print_json({"acknowledged": seen})
    else:
        say(
            f"acknowledged {', '.join(map(str, seen))}"
            if seen
            else "nothing to acknowledge: somebody has, or it is over"
        )


def _set(client: Client, arguments: tuple[str, ...], as_json: bool) -> None:
    if len(arguments) != 2:
        raise click.UsageError("`millrace alerts set NAME VALUE`; `millrace alerts thresholds` lists the names")
    name, text = arguments
    try:
        value = float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number", param_hint="VALUE") from None
    client.set_threshold(name, value)
    if as_json:
        print_json({"name": name, "value": value})
    else:
        say(f"{name} is {value:g} from now on")


def _unset(client: Client, arguments: tuple[str, ...], as_json: bool) -> None:
    if len(arguments) != 1:
        raise click.UsageError("`millrace alerts unset NAME`; `millrace alerts thresholds` lists what is set")
    changed = client.unset_threshold(arguments[0])
    if as_json:
        print_json({"name": arguments[0], "changed": changed})
    else:
        say(f"{arguments[0]} is as in the settings" + ("" if changed else ", as it was"))


def _thresholds(client: Client, as_json: bool) -> None:
    found = client.thresholds()
    if as_json:
        print_json({"thresholds": [one.to_json() for one in found]})
        return
    rows = [
        (one.name, f"{one.value:g}", one.unit, f"set; else {one.default:g}" if one.changed and one.default else
         "set" if one.changed else "")
        for one in found
    ]  # fmt: skip
    print_table(("threshold", "value", "unit", ""), rows)


def _test(client: Client, as_json: bool) -> int:
    alert, told = client.test_alert()
    if as_json:
        print_json({"alert": alert.to_json(), "callbacks": [one.to_json() for one in told]})
    else:
        print_table(("callback", "result"), [(one.callback, one.error or "took it") for one in told])
        if not any(one.callback == "webhook" for one in told):
            note("No webhook is set; MILLRACE_ALERTS__WEBHOOK names one.")
    return 1 if any(one.error for one in told) else 0


COMMANDS = (alerts,)
