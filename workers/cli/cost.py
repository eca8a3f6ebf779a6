"""`millrace cost`: what embeddings cost and saved, and what may be spent."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from workers.cli.output import json_option, note, print_json, print_table, say

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.ledger.budgets import Budget
    from pipeline.ledger.usage import CostReport, Usage

BY = ("day", "month", "tenant", "collection", "job", "provider", "model")


class _Amount(click.ParamType[float]):
    """US dollars, or `none`: no limit."""

    name = "USD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, str) and value.lower() == "none":
            return math.inf
        try:
            usd = float(str(value).removeprefix("$"))
        except ValueError:
            usd = math.nan
        if not usd >= 0:
            self.fail(f"{value!r} is no amount of US dollars, such as 12.50, and not `none` (no limit)", param, ctx)
        return usd


@click.command()
@click.option("--job", "job_id", metavar="ID", help="Of one job: all of its time.")
@click.option("--tenant", help="Of one tenant.")
@click.option("--collection", help="Of one collection.")
@click.option("--month", metavar="YYYY-MM", help="Of this month (UTC).  [default: the current one]")
@click.option("--by", type=click.Choice(BY), default="day", show_default=True, help="What a row is.")
@click.option(
    "--set-budget", "usd", type=_Amount(), metavar="USD", help="What may be spent, at most; `none`: no limit."
)
@click.option("--clear-budget", is_flag=True, help="As the settings say again.")
@click.option("--reason", metavar="TEXT", help="Of --set-budget: shown where budgets are listed.")
@json_option
def cost(
    usd: float | None,
    clear_budget: bool,
    reason: str | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Show what embeddings cost, what the cache and the Batch API saved, and the budgets.

    --set-budget is of every month for all together, with --tenant for one tenant, with --job for one job as a whole;
    what would exceed it is not bought, and its job is paused. `millrace resume ID` goes on after it was raised.
    """
    from pipeline.client import Client

    if usd is not None and clear_budget:
        raise click.UsageError("--set-budget and --clear-budget: choose one")
    if reason is not None and usd is None:
        raise click.UsageError("--reason is for --set-budget")
    changing = usd is not None or clear_budget
    if changing and (wanted["collection"] or wanted["month"]):
        raise click.UsageError("a budget is of all, of a --tenant or of a --job")
    with Client() as client:
        if changing:
            _change(client, wanted["tenant"], wanted["job_id"], usd, reason, as_json)
            return
        report = client.cost(**wanted)
        held_up = client.over_budget()
    if as_json:
        print_json({**report.to_json(), "over_budget": held_up})
        return
    _tell(report)
    for line in held_up:
        note(line)


def _change(
    client: Client, tenant: str | None, job_id: str | None, usd: float | None, reason: str | None, as_json: bool
) -> None:
    if usd is None:
        budget = client.clear_budget(tenant=tenant, job_id=job_id)
    else:
        budget = client.set_budget(usd, tenant=tenant, job_id=job_id, reason=reason)
    held_up = client.over_budget()
    if as_json:
        print_json({"budget": budget.to_json(), "over_budget": held_up})
        return
    say(str(budget))
    for line in held_up:
        note(line)


def _tell(report: CostReport) -> None:
    from pipeline.ledger.budgets import dollars

    total, wanted = report.total, report.wanted
    if wanted.job_id is not None:
        say(f"job        {wanted.job_id}")
    if wanted.tenant is not None:
        say(f"tenant     {wanted.tenant}")
    if wanted.collection is not None:
        say(f"collection {wanted.collection}")
    if wanted.month is not None:
        say(f"month      {wanted.month:%B %Y} (UTC)")
    say(f"spent      {dollars(total.cost)} for {total.texts:,} texts, {total.tokens:,} tokens")
    if report.reserved:
        say(f"reserved   {dollars(report.reserved)} for work under way")
    say(f"saved      {dollars(total.cached_cost)} by the cache ({total.cached_texts:,} texts were there)")
    say(f"           {dollars(total.batch_saved)} by the Batch API")
    if total.doubtful_texts:
        say(
            f"doubtful   {dollars(total.doubtful_cost)} for {total.doubtful_texts:,} texts that may have been paid for "
            "without an answer"
        )
    if report.rows:
        say("")
        columns = (report.by, "spent", "texts", "tokens", "requests", "saved by cache", "saved by batch", "doubtful")
        print_table(columns, [_row(name, usage) for name, usage in report.rows])
    say("")
    headings = ("budget", "limit", "spent", "reserved", "left", "set by")
    print_table(headings, [_budget_row(budget) for budget in report.budgets])


def _row(name: str | None, usage: Usage) -> tuple[object, ...]:
    from pipeline.ledger.budgets import dollars

    return (
        name or "searches",
        dollars(usage.cost),
        f"{usage.texts:,}",
        f"{usage.tokens:,}",
        f"{usage.requests:,}",
        dollars(usage.cached_cost),
        dollars(usage.batch_saved),
        dollars(usage.doubtful_cost),
    )


def _budget_row(budget: Budget) -> tuple[object, ...]:
    from pipeline.ledger.budgets import dollars

    who = {"month": "all, a month", "tenant": f"tenant {budget.tenant}, a month", "job": f"job {budget.job_id}"}
    return (
        who[budget.scope],
        "none" if budget.limit is None else dollars(budget.limit),
        dollars(budget.spent + budget.doubtful),
        dollars(budget.reserved),
        "" if budget.limit is None else dollars(budget.left),
        f"{budget.source}: {budget.reason}" if budget.reason else budget.source,
    )


COMMANDS = (cost,)
