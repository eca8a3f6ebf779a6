"""A worker that is told to stop: work goes back at its next step, blamed on nobody, and nothing done is done again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from workshop import Workshop, with_work

from pipeline import Settings
from pipeline.embedding.base import Embedded, Role
from pipeline.testing import ConstantEmbedder
from tasks import leaving
from tasks.base import Done, Skipped, Waiting

PATIENCE_SECONDS = 60.0


class SlowEmbedder(ConstantEmbedder):
    """Embeds text by text, and calls `between` before each. By its own account it is so slow that each is a part."""

    def __init__(self) -> None:
        super().__init__()
        self.between: Callable[[str], None] = lambda _: None

    @property
    def tokens_per_second(self) -> float | None:
        return 1.0

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        if role == "passage":
            for text in texts:
                self.between(text)
                if on_progress is not None:
                    on_progress(1)
        return super().embed(texts, role, on_progress)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set: this worker was told to stop."""
    event = threading.Event()
    monkeypatch.setattr(leaving, "leaving", event.is_set)
    return event


@pytest.fixture
def embedder() -> SlowEmbedder:
    return SlowEmbedder()


@pytest.fixture
def workshop(settings: Settings, embedder: SlowEmbedder) -> Iterator[Workshop]:
    made = Workshop(with_work(settings, heartbeat_seconds=0.3), embedder)
    yield made
    made.close()


def batch(workshop: Workshop, batch_id: int) -> dict[str, object]:
    (row,) = workshop.sql(
        """SELECT state, attempts, losses, alone, sent_at IS NULL AS unsent,
                  next_attempt_at IS NULL OR next_attempt_at <= clock_timestamp() AS due, error
             FROM batches WHERE id = %(id)s""",
        id=batch_id,
    )
    return row


def test_an_embedding_is_handed_back_at_its_next_step_and_what_is_done_of_it_is_kept(
    workshop: Workshop, embedder: SlowEmbedder, told: threading.Event
) -> None:
    # Given the embedding of four texts, in the third of which the worker is told to stop
    workshop.put({name: f"about {name}" for name in "abcd"})
    workshop.prepare()
    (ready,) = workshop.ready("embed")
    texts: list[str] = []

    def tell(text: str) -> None:
        texts.append(text)
        if len(texts) == 3:
            told.set()

    embedder.between = tell
    outcome = workshop.perform(ready.id)

    # Then it is handed back for now, and blamed on nobody
    assert isinstance(outcome, Waiting)
    assert batch(workshop, ready.id) == {
        "state": "ready",
        "attempts": 0,
        "losses": 0,
        "alone": False,
        "unsent": False,  # another message is on its way
        "due": True,
        "error": "its worker was stopped; another one goes on",
    }
    assert workshop.value("SELECT count(*) AS n FROM embeddings") == 2

    # And another worker computes only what is missing
    told.clear()
    embedder.between = lambda _: None
    assert workshop.perform(ready.id) == Done(1)
    assert len(workshop.embedded()) == len(set(workshop.embedded())) == 4
    (job,) = workshop.client.jobs()
    assert (job.state, job.chunks["embedded"]) == ("succeeded", 4)


def test_a_message_that_a_leaving_worker_takes_is_sent_again_at_once(workshop: Workshop, told: threading.Event) -> None:
    workshop.put({"a": "words"})
    (ready,) = workshop.ready()
    assert workshop.services.broker.depths()["normal"] == 1

    told.set()
    outcome = workshop.perform(ready.id)

    assert outcome == Skipped("its worker was stopped; another one goes on")
    assert workshop.services.broker.depths()["normal"] == 2, "the first one was taken by now"
    assert batch(workshop, ready.id)["attempts"] == 0


def test_work_that_does_not_get_to_its_next_step_is_handed_back_all_the_same_and_its_result_is_void(
    workshop: Workshop, embedder: SlowEmbedder, told: threading.Event
) -> None:
    # Given an embedding that hangs, as on a server that does not answer
    workshop.put({"a": "words"})
    workshop.prepare()
    (ready,) = workshop.ready("embed")
    hanging, release = threading.Event(), threading.Event()

    def hang(_: str) -> None:
        hanging.set()
        release.wait(PATIENCE_SECONDS)

    embedder.between = hang
    outcomes: list[object] = []
    worker = threading.Thread(target=lambda: outcomes.append(workshop.perform(ready.id)))
    worker.start()
    assert hanging.wait(PATIENCE_SECONDS)

    # When its worker is told to stop
    told.set()
    deadline = time.monotonic() + PATIENCE_SECONDS / 2
    while batch(workshop, ready.id)["state"] == "running":
        assert time.monotonic() < deadline, "it hands back while it hangs"
        time.sleep(0.05)
    assert batch(workshop, ready.id)["due"]

    # Then another one has it, and what comes of the first changes nothing
    claim = workshop.claim(ready.id)
    release.set()
    worker.join()
    assert isinstance(outcomes[0], Skipped | Waiting)
    assert workshop.value("SELECT count(*) AS n FROM embeddings") == 0
    row = workshop.sql("SELECT state, epoch FROM batches WHERE id = %(id)s", id=ready.id)
    assert row == [{"state": "running", "epoch": claim.epoch}]


def test_a_text_that_fails_costs_no_embedding_of_the_others(workshop: Workshop, embedder: SlowEmbedder) -> None:
    workshop.put({name: f"about {name}" for name in "abcd"})
    workshop.prepare()
    (ready,) = workshop.ready("embed")
    seen: list[str] = []

    def fail(text: str) -> None:
        seen.append(text)
        if len(seen) == 4:
            raise RuntimeError("the fourth")

    embedder.between = fail
    workshop.perform(ready.id, alone=True)

    assert workshop.value("SELECT count(*) AS n FROM embeddings") == 3
    assert batch(workshop, ready.id)["attempts"] == 1
