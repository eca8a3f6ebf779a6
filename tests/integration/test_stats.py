"""`client.metrics`, `client.stats()` and `millrace stats`: what applications record, what people and programs see."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import SupportsFloat

import pytest
from command_line import eventually
from reporters import let_them_end
from tcp_proxy import proxied

from pipeline import AsyncClient, Client, Settings, load_settings
from pipeline.client import figures
from pipeline.client.figures import MOST_NAMES, Metrics
from pipeline.errors import InvalidRequest
from pipeline.monitoring.cluster import ClusterStats
from pipeline.observe import Measured, Sketch, Slow, recorder
from workers.cli import main

EXAMPLE = Path(__file__).parents[2] / "docs" / "stats.md"


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What other tests recorded in this process is not this test's."""
    let_them_end()
    monkeypatch.setattr(figures, "_own_metrics", Metrics())
    recorder.drain()
    yield
    recorder.drain()


@pytest.fixture
def apart(redis_url: str, postgres_url: str, tmp_path: Path) -> Settings:
    """Settings that need no index; what is recorded is reported at the end alone."""
    return load_settings(
        home=tmp_path / "home",
        redis={"url": redis_url},
        postgres={"url": postgres_url},
        metrics={"report_seconds": 3600.0},
    )


@pytest.fixture
def shell(apart: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line's environment."""
    monkeypatch.setenv("MILLRACE_HOME", str(apart.home))
    monkeypatch.setenv("MILLRACE_REDIS__URL", apart.redis.url.get_secret_value())
    monkeypatch.setenv("MILLRACE_POSTGRES__URL", apart.postgres.url.get_secret_value())
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def measured(apart: Settings) -> None:
    """What two processes reported."""
    for offset in (0.0, 0.1):
        process = ClusterStats(apart.redis)
        sketch = Sketch()
        for step in range(1, 51):
            sketch.add(offset + step / 1000)
        other, sizes = Sketch(), Sketch()
        other.add(2.5)
        sizes.add(17.0)
        process.add(
            Measured(
                counts={
                    ("operation_errors", ("embed", "EmbeddingFailed")): 3,
                    ("operation_errors", ("embed", "other")): 1,
                    ("application_count", ("orders.seen",)): 1_000_000,
                },
                sketches={
                    ("operation_seconds", ("embed",)): sketch,
                    ("operation_seconds", ("embed.compute",)): other,
                    ("application_value", ("order.lines",)): sizes,
                },
                slow=[Slow("embed.compute", 2.5 + offset, 1_800_000_000.0, "other", {"job_id": "j7", "batch_id": "9"})],
            )
        )
        process.close()


# -- the application's own ---------------------------------------------------------------------------------------------


def test_what_an_application_records_is_there_when_its_client_has_closed(apart: Settings) -> None:
    # Given two processes of an application, one after the other
    for value in (3.0, 5.0):
        with Client(apart) as client:
            # When each records values, counts and times
            client.metrics.record("basket.size", value)
            client.metrics.count("baskets", 2)
            client.metrics.count("baskets")
            with client.metrics.time("checkout.seconds"):
                pass

    # Then everybody can read the sums
    with Client(apart) as client:
        window = client.stats()
    size = window.values["basket.size"]
    assert (size.count, size.min, size.mean, size.max) == (2, 3.0, 4.0, 5.0)
    assert window.totals == {"baskets": 6}
    assert window.values["checkout.seconds"].count == 2
    assert 0 < window.values["checkout.seconds"].max < 60


def test_what_fails_is_timed_too(apart: Settings) -> None:
    with Client(apart) as client, pytest.raises(ZeroDivisionError), client.metrics.time("division"):
        1 / 0  # noqa: B018
    with Client(apart) as client:
        assert client.stats().values["division"].count == 1


def test_an_asyncio_application_records_too(apart: Settings) -> None:
    async def application() -> None:
        async with AsyncClient(apart) as client:
            client.metrics.record("answers", 42)
            await client.reset_stats()
        async with AsyncClient(apart) as client:
            assert (await client.stats(1)).values["answers"].max == 42.0
            assert await client.slow_operations() == []

    asyncio.run(application())


def test_figures_come_while_the_client_is_open(apart: Settings) -> None:
    often = apart.model_copy(update={"metrics": apart.metrics.model_copy(update={"report_seconds": 0.5})})
    with Client(often) as client:
        client.metrics.count("early")
        assert eventually(lambda: client.stats().totals.get("early")) == 1


@pytest.mark.parametrize("name", ["", "Upper", "with space", "a" * 65, "é", "a/b", "a\n", None, 7])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    metrics = Metrics()
    for record in (metrics.record, metrics.count):
        with pytest.raises(InvalidRequest, match="no name of a metric"):
            record(name, 1)
    with pytest.raises(InvalidRequest), metrics.time(name):
        pytest.fail("it ran")


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, -math.inf, 1e16, 10**400, "3", None])
def test_a_value_that_is_none_is_refused(value: float) -> None:
    metrics = Metrics()
    for record in (metrics.record, metrics.count):
        with pytest.raises(InvalidRequest, match=r"'size'"):
            record("size", value)


def test_numbers_of_every_kind_are_taken() -> None:
    import numpy as np

    metrics = Metrics()
    numbers: list[SupportsFloat] = [0, 7, 1.5, True, Decimal("0.5"), np.float32(0.25), np.int64(3)]
    for value in numbers:
        metrics.record("size", value)
    assert recorder.drain().sketches["application_value", ("size",)].count == 7


def test_one_name_too_many_is_refused_and_the_others_go_on() -> None:
    # Given an application that puts ids into names, in several threads
    metrics = Metrics()
    refused: list[str] = []

    def record(name: str) -> None:
        try:
            metrics.record(name, 1)
        except InvalidRequest as error:
            refused.append(str(error))

    # When it has used more than there may be
    threads = [threading.Thread(target=record, args=(f"user.{n}",)) for n in range(MOST_NAMES + 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # Then the further ones are refused, naming the limit
    assert len(refused) == 5
    assert all(f"{MOST_NAMES} are the limit" in message for message in refused)
    assert sum(kind == "application_value" for kind, _ in recorder.drain().sketches) == MOST_NAMES


def test_recording_waits_for_nobody_and_closing_for_a_second_where_redis_hangs(apart: Settings) -> None:
    with proxied(apart.redis.url.get_secret_value()) as (proxy, url):
        # Given an application whose Redis answers nothing
        hanging = load_settings(
            home=apart.home,
            redis={"url": url, "timeout": 60.0},
            postgres={"url": apart.postgres.url.get_secret_value()},
            metrics={"report_seconds": 0.5},
        )
        client = Client(hanging)
        proxy.freeze()

        # When it records, long enough for several reports
        began = time.monotonic()
        longest = 0.0
        while time.monotonic() - began < 1.2:
            before = time.perf_counter()
            client.metrics.record("alive", 1)
            longest = max(longest, time.perf_counter() - before)
            time.sleep(0.001)

        # Then no call waited for Redis, and closing for a second alone (a machine that is busy adds its own)
        assert longest < 30.0
        began = time.monotonic()
        client.close()
        assert time.monotonic() - began < 30.0


def test_where_metrics_are_switched_off_nothing_is_recorded(apart: Settings) -> None:
    silent = apart.model_copy(update={"metrics": apart.metrics.model_copy(update={"enabled": False})})
    try:
        with Client(silent) as client:
            client.metrics.record("unheard", 1)
            assert not recorder.drain()
            assert client.stats().values == {}
    finally:
        recorder.enabled = True


def test_the_example_of_the_docs_runs(apart: Settings, shell: None, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = [part.split("```")[0] for part in EXAMPLE.read_text("utf-8").split("```python\n")[1:]]
    exec(compile(example, str(EXAMPLE), "exec"), {})
    assert "orders.imported" in capsys.readouterr().out


# -- the command line --------------------------------------------------------------------------------------------------


def test_people_see_a_table(
    shell: None, measured: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main.run(["stats"]) == 0
    lines = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert "2 processes report. Percentiles are within 2 %, everything else is exact." in lines[0]
    assert lines[1].split() == [
        "operation",
        "count",
        "errors",
        "error",
        "rate",
        *("min", "mean", "p50", "p90", "p95", "p99", "max"),
    ]
    assert lines[2].split()[:6] == ["embed", "100", "8", "8.00%", "1", "ms"]
    assert lines[2].endswith("150 ms")
    assert lines[3].split()[0] == "embed.compute"
    assert "2.5 s" in lines[3]
    assert lines[4] == "embed failed: EmbeddingFailed 6, other 2"
    assert lines[6].split()[:4] == ["order.lines", "2", "17", "17"]
    assert lines[8].split() == ["orders.seen", "2000000"]


def test_pipes_see_plain_lines(shell: None, measured: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["stats", "--minutes", "60"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:3] for row in rows] == [
        ["operation", "embed", "100"],
        ["operation", "embed.compute", "2"],
        ["value", "order.lines", "2"],
        ["count", "orders.seen", "2000000"],
    ]
    assert rows[0][3:6] == ["8", "0.08", "0.001"]
    assert rows[0][-1] == "0.15"


def test_programs_see_one_object(shell: None, measured: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["stats", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["processes"], content["relative_error"]) == (2, 0.02)
    embed = content["operations"]["embed"]
    assert (embed["count"], embed["errors"], embed["error_rate"]) == (100, 8, 0.08)
    assert (embed["min"], embed["max"]) == (0.001, pytest.approx(0.15))
    assert embed["p50"] == pytest.approx(0.05, rel=0.02)
    assert embed["errors_by_class"] == {"EmbeddingFailed": 6, "other": 2}
    assert content["application"]["counts"] == {"orders.seen": 2_000_000}
    assert content["application"]["values"]["order.lines"]["mean"] == 17.0


def test_one_operation_is_shown_with_those_below_it(
    shell: None, measured: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, shown in (("embed", ["embed", "embed.compute"]), ("embed.compute", ["embed.compute"]), ("emb", [])):
        assert main.run(["stats", "--operation", name]) == 0
        assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == shown


def test_reset_shows_the_figures_once_more_and_begins_anew(
    shell: None, measured: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["stats", "--reset", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["reset"] is True
    assert content["operations"]["embed"]["count"] == 100
    assert main.run(["stats", "--json"]) == 0
    assert "embed" not in json.loads(capsys.readouterr().out)["operations"]


def test_the_slowest_are_listed_with_what_they_were_about(
    shell: None, measured: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["stats", "--slow"]) == 0
    first, second = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert first[0] == "2027-01-15 08:00:00"
    assert (first[1:3], first[4:]) == (["embed.compute", "2.6"], ["other", "job_id=j7 batch_id=9"])
    assert second[2] == "2.5"
    assert main.run(["stats", "--slow", "--operation", "search", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"slow": []}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "range"),
        (["--minutes", "1441"], "range"),
        (["--slow-seconds", "soon"], "no number of seconds"),
        (["--slow-seconds", "-1"], "no number of seconds"),
    ],
)
def test_wrong_use_is_told(shell: None, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["stats", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_a_redis_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MILLRACE_REDIS__URL", "redis://127.0.0.1:1/0")
    assert main.run(["stats"]) == 1
    assert "127.0.0.1:1/0 did not answer" in capsys.readouterr().err


# -- what is slow ------------------------------------------------------------------------------------------------------


def test_what_is_slow_changes_without_a_restart(
    apart: Settings, shell: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.ledger.engine import Ledger
    from tasks import slowness

    # Given a worker whose settings say one second
    monkeypatch.setattr(slowness._Own, "default", None)
    monkeypatch.setattr(recorder, "slow_seconds", 0.0)
    slowness.enter(1.0)
    assert recorder.slow_seconds == 1.0
    ledger = Ledger(apart.postgres)

    def after(typed: str) -> tuple[str, float, float]:
        """What the command says, and what the main process and a child go by after their next reports."""
        assert main.run(["stats", "--slow-seconds", typed]) == 0
        with ledger.transaction() as connection:
            slowness.look(connection)
        main_process, recorder.slow_seconds = recorder.slow_seconds, -1.0
        slowness.follow()
        return capsys.readouterr().out.strip(), main_process, recorder.slow_seconds

    # When an operator changes it, and takes it back
    # Then each process goes by it
    assert after("0.25") == ("slow       over 0.25 s", 0.25, 0.25)
    assert after("0") == ("slow       nothing", 0.0, 0.0)
    assert after("default") == ("slow       over 1 s", 1.0, 1.0)
    ledger.close()
