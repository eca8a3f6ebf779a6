"""That the benchmark of OpenAI runs, and tells what it says it tells. Its figures here mean nothing."""

from __future__ import annotations

from contextlib import closing

from openai_server import OpenAIServer
from remote_scene import RemoteScene, batch_settings

from benchmarks import openai_batch, openai_online
from benchmarks.report import Options
from pipeline import Settings


def test_workers_embed_at_the_limit_and_below_it() -> None:
    figures = openai_online.measure(Options(quick=True))

    for part in (figures["at_the_limit"], figures["below_it"]):
        assert set(part) == {"1", "2"}
        assert all(
            found["texts_per_second"] > 0 and found["errors"] == found["refused"] == 0 for found in part.values()
        )
    assert figures["by_tokens"]["texts_per_second"] > 0
    assert figures["below_it"]["1"]["of_linear"] == 1


def test_a_batch_is_carried_out_and_its_steps_are_timed(settings: Settings, openai_server: OpenAIServer) -> None:
    openai_server.control.timing(in_progress=None)
    given = batch_settings(settings, openai_server)
    with closing(RemoteScene(given, openai_server)) as scene:
        scene.order([f"text {number}" for number in range(60)])
        figures = openai_batch.carried_out(given, openai_server)

    assert (figures["inputs"], figures["done"], figures["billed_twice"]) == (60, 60, 0)
    assert figures["harvest_seconds"] > 0
    assert figures["result_mb"] > 0
    assert figures["files_left"] == 0
    assert figures["memory_over_baseline_mb"] > 0
