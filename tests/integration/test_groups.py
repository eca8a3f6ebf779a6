"""Who enqueues and has much in memory stages less at once, down to a floor, and more again when it has less."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from workshop import COLLECTION, Workshop

from pipeline import Document, Settings
from pipeline.groups import HALVED, Sizes, groups
from pipeline.observe import recorder
from pipeline.resident import MIB, resident_bytes
from pipeline.settings import IngestSettings, MemorySettings
from pipeline.status import JobStatus

# Of a process that has run a thousand tests before, and grows and shrinks by tens of MB besides.
BALLAST_BYTES, ROOM_MB = 300 * MIB, 150
GROUP = 32


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    budget = resident_bytes() // MIB + ROOM_MB
    made = Workshop(
        settings.model_copy(
            update={
                "ingest": settings.ingest.model_copy(update={"group_documents": GROUP}),
                "memory": settings.memory.model_copy(update={"ingest_mb": budget}),
            }
        )
    )
    yield made
    made.close()


def test_an_enqueuer_above_its_budget_stages_smaller_groups_until_it_is_below_again(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a source that holds a ballast while it yields its documents from the 64th to the 128th
    def documents() -> Iterator[Document]:
        for number in range(64):
            yield Document(f"before/{number}", f"text {number}")
        ballast = b"x" * BALLAST_BYTES
        for number in range(64):
            yield Document(f"with/{number}", f"text {number}")
        del ballast
        for number in range(128):
            yield Document(f"after/{number}", f"text {number}")

    totals = [0]
    recorder.drain()

    def on_staged(status: JobStatus) -> None:
        totals.append(status.documents["total"])

    # When they are ingested
    job = workshop.client.ingest(documents(), collection=COLLECTION, on_staged=on_staged)

    # Then groups became smaller with it, and grew back without it
    sizes = [after - before for before, after in pairwise(totals)]
    assert sizes[:2] == [GROUP, GROUP]
    assert min(sizes) <= GROUP // 8
    assert GROUP in sizes[-3:]
    # And nothing is missing, it is counted, and told once
    assert job.documents["total"] == sum(sizes) == 256
    assert recorder.drain().counts[HALVED, ()] >= 3
    assert [record.message for record in caplog.records if "groups of documents are made smaller" in record.message]


def test_groups_have_a_floor_and_a_large_document_is_looked_at_as_it_comes() -> None:
    # Given a process that is always above its budget
    looks: list[int] = []

    def resident_now() -> int:
        looks.append(1)
        return 900 * MIB

    sizes = Sizes(IngestSettings(group_documents=160, group_bytes=16 * MIB), MemorySettings(), resident_now)
    documents = [Document(f"uri/{number}", b"x" * MIB) for number in range(12)]

    # When large documents come
    found = [len(group.documents) for group in groups(documents, {}, sizes)]

    # Then already the first group is cut short, and none is smaller than a sixteenth
    assert found == [3, *[1] * 9]
    assert (sizes.documents, sizes.size) == (10, MIB)
    assert len(looks) >= len(documents)
