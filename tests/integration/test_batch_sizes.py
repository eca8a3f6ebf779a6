"""How many chunks an embed batch holds: the setting, or what a fast model embeds in a second."""

from __future__ import annotations

import pytest
from workshop import Workshop, chunked, paragraphs

from pipeline import Settings
from pipeline.testing import ConstantEmbedder

EIGHT = paragraphs("one", "two", "three", "four", "five", "six", "seven", "eight")


class FastEmbedder(ConstantEmbedder):
    """Embeds so many tokens a second, it says."""

    def __init__(self, tokens_per_second: float | None) -> None:
        super().__init__()
        self.speed = tokens_per_second

    @property
    def tokens_per_second(self) -> float | None:
        return self.speed


@pytest.mark.parametrize(
    ("speed", "sizes"),
    [(None, [3, 3, 2]), (10.0, [3, 3, 2]), (40.0, [5, 3]), (1e6, [8])],
    ids=["not measured", "slow", "five chunks a second", "fast"],
)
def test_an_embed_batch_grows_with_the_speed_of_the_model(
    settings: Settings, speed: float | None, sizes: list[int]
) -> None:
    ingest = settings.ingest.model_copy(update={"embed_chunks": 3})
    workshop = Workshop(chunked(settings).model_copy(update={"ingest": ingest}), FastEmbedder(speed))
    try:
        workshop.put({"a": EIGHT})
        workshop.prepare()

        found = workshop.sql("SELECT size FROM batches WHERE kind = 'embed' ORDER BY id")

        assert [row["size"] for row in found] == sizes
        workshop.work()
        assert len(workshop.texts()["a"]) == 8
    finally:
        workshop.close()
