"""A server that has another model under the same name than before, as far as its answers show it: it is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai_buying import Buyer, texts
from openai_server import OpenAIServer
from remote_scene import RemoteScene

from pipeline.embedding.openai.names import AnsweredNames
from pipeline.observe import recorder


@pytest.fixture(autouse=True)
def _no_name_is_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fresh = AnsweredNames()
    monkeypatch.setattr("pipeline.embedding.openai.asking.answered_names", fresh)
    monkeypatch.setattr("pipeline.openai_batch.harvest.answered_names", fresh)
    recorder.drain()
    yield
    recorder.drain()


def changes() -> float:
    return recorder.drain().counts.get(("openai_model_changes", ()), 0.0)


def test_a_model_that_is_swapped_online_is_told_once_and_its_vectors_are_taken(
    openai_server: OpenAIServer, buyer: Buyer, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = buyer()
    embedder.embed(texts(3))
    assert changes() == 0
    openai_server.control.fault("embeddings", "renamed", name="another-model", times=None)

    found = [embedder.embed(texts(3, about)) for about in ("wheels", "water")]

    assert [one.vectors.shape for one in found] == [(3, 1536), (3, 1536)]
    assert changes() == 1
    (told,) = [message for message in caplog.messages if "another-model" in message]
    assert "did as text-embedding-3-small before" in told


def test_so_is_one_whose_name_changes_between_the_lines_of_a_batch(
    scene: RemoteScene, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = [f"text number {number:02}" for number in range(6)]
    scene.server.control.fault("batch", "renamed", name="another-model", match=wanted[5])
    scene.order(wanted)

    scene.finish()

    scene.assert_bought_once(wanted)
    assert changes() == 1
    assert any("as another-model" in message or "did as another-model" in message for message in caplog.messages)
