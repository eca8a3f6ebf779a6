"""The server of /metrics, in this process."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pipeline.monitoring.exposition import Exposition
from pipeline.observe import Measured
from pipeline.settings import MetricsSettings
from workers.metrics_server import MetricsServer


def exposition() -> Exposition:
    """Of a worker that has searched twice, once in vain."""
    totals = Measured()
    totals.count(("operation_errors", ("search", "VectorsUnavailable")), 1)
    totals.count(("nobody_knows", ()), 1)
    totals.count(("operation_errors", ("one label",)), 1)
    sketch = totals.sketch(("operation_seconds", ("search",)))
    assert sketch is not None
    sketch.add(0.01)
    sketch.add(3.0)
    memory = {"rss": 5, "uss": None, "pid": 1, "slot": -1}
    return Exposition(lambda: totals, lambda: [memory], lambda: {("dead_letters", ()): 7.0})


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    made = MetricsServer(MetricsSettings(), exposition())
    yield made
    made.stop()


def test_prometheus_and_openmetrics_read_what_is_served(server: MetricsServer) -> None:
    assert server.url is not None
    plain = httpx.get(server.url, timeout=60.0)
    open_metrics = httpx.get(
        server.url, timeout=60.0, headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )

    for answer, parse in (
        (plain, text_string_to_metric_families),
        (open_metrics, openmetrics.text_string_to_metric_families),
    ):
        samples = [sample for family in parse(answer.text) for sample in family.samples]
        found = {(sample.name, *sorted(sample.labels.values())): sample.value for sample in samples}
        assert found["millrace_operation_errors_total", "VectorsUnavailable", "search"] == 1
        assert found["millrace_operation_seconds_count", "search"] == 2
        assert found["millrace_operation_seconds_sum", "search"] == pytest.approx(3.01)
        assert found["millrace_process_resident_bytes", "main"] == 5
        assert found["millrace_cluster_dead_letters",] == 7
        upto = {float(sample.labels["le"]): sample.value for sample in samples if "le" in sample.labels}
        assert upto[1.0] == 1
        assert upto[float("inf")] == 2
        assert not [key for key in found if "nobody_knows" in key[0] or "one label" in key]


def test_get_of_one_path_is_served_and_nothing_else(server: MetricsServer) -> None:
    assert server.url is not None
    base = server.url.removesuffix("/metrics")

    assert httpx.get(f"{base}/metrics?name=x", timeout=60.0).status_code == 200
    assert httpx.get(f"{base}/", timeout=60.0).status_code == 404
    assert httpx.get(f"{base}/metrics/../etc", timeout=60.0).status_code == 404
    assert {
        httpx.request(method, server.url, timeout=60.0).status_code for method in ("POST", "PUT", "DELETE", "HEAD")
    } == {501}


def test_clients_that_say_nothing_keep_nobody_from_being_served(server: MetricsServer) -> None:
    # Given somebody who connects, and says nothing, fewer times than there is room for
    assert server.url is not None
    address = httpx.URL(server.url)
    silent = [socket.create_connection((address.host, address.port or 0)) for _ in range(5)]

    # When Prometheus asks, then it is answered; and the server ends at once
    assert httpx.get(server.url, timeout=60.0).status_code == 200
    for connection in silent:
        connection.close()
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    stopping.join(60.0)
    assert not stopping.is_alive()


def test_a_port_that_is_in_use_is_told_of_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with caplog.at_level(logging.WARNING):
            server = MetricsServer(MetricsSettings(port=port), exposition())

    assert server.url is None
    assert f"127.0.0.1:{port}" in caplog.text
    assert "MILLRACE_METRICS__PORT" in caplog.text
    server.stop()


def test_an_address_that_is_none_is_told_of_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert MetricsServer(MetricsSettings(address="no.such.host.invalid"), exposition()).url is None

    assert "no.such.host.invalid" in caplog.text


@pytest.mark.parametrize("settings", [MetricsSettings(server=False), MetricsSettings(enabled=False)])
def test_it_is_off_where_the_settings_say_so(settings: MetricsSettings) -> None:
    server = MetricsServer(settings, exposition())

    assert server.url is None
    server.stop()
