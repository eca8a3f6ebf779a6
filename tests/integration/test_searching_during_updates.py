"""A searcher that runs while documents are updated: each answer is one edition of each, whole, never none."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from command_line import eventually
from workshop import Workshop, chunked, paragraph, paragraphs

from pipeline import Settings

UPDATES = 12


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    pairs = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"embed_chunks": 2})})
    made = Workshop(chunked(pairs))
    yield made
    made.close()


def _letters(number: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[number]


def _edition(number: int) -> str:
    """Six paragraphs: two that stay, two of this edition, one of this and the next, one of this and the last."""
    letter = _letters(number)
    shared = [f"even{_letters(number // 2)}", f"odd{_letters((number + 1) // 2)}"]
    return paragraphs("first", f"new{letter}", shared[0], f"more{letter}", shared[1], "last")


def test_a_searcher_never_sees_a_document_half_old_half_new_or_absent(workshop: Workshop) -> None:
    """It runs all the while, with connections of its own, and each answer is exactly one edition."""
    editions = [frozenset(_edition(number).split("\n\n")) for number in range(UPDATES + 1)]
    assert len(set(editions)) == len(editions)
    workshop.index({"a": _edition(0), "beside": paragraphs("beside")})
    searcher = Workshop(workshop.settings)
    seen: list[tuple[int, frozenset[str], int]] = []
    stop = threading.Event()
    failures: list[BaseException] = []

    def search() -> None:
        try:
            while not stop.is_set():
                found = searcher.client.search("what is this paragraph about", collection="notes", limit=20)
                assert found.degraded == ()
                texts = [result.text for result in found.results if result.uri == "a"]
                seen.append((found.generation, frozenset(texts), len(texts)))
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    def look_again() -> None:
        before = len(seen)
        eventually(lambda: len(seen) > before or failures)

    thread = threading.Thread(target=search)
    thread.start()
    try:
        for number in range(1, UPDATES + 1):
            job = workshop.put({"a": _edition(number)})
            if number % 5 == 0:  # some are cancelled half way, and come again
                workshop.prepare()
                workshop.perform(workshop.ready("embed")[0].id, alone=True)
                workshop.client.cancel(job.job_id)
                workshop.put({"a": _edition(number)})
            workshop.work()
            look_again()  # it looks at each edition
    finally:
        stop.set()
        thread.join(60)

    assert not failures
    assert {edition for _, edition, _ in seen} <= set(editions), "half old, half new"
    assert all(count == len(edition) for _, edition, count in seen), "a chunk twice"
    assert [generation for generation, _, _ in seen] == sorted(generation for generation, _, _ in seen)
    assert len({edition for _, edition, _ in seen}) > 2, "the searcher was too slow to see anything"
    workshop.contract()
    assert workshop.audit() == {"expected": 7, "present": 7}
    searcher.close()


def test_a_generation_that_passes_while_a_search_is_under_way_changes_nothing_for_it(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs("one", "two"), "b": paragraphs("three")})
    embedder = workshop.embedder.embed
    updated: list[int] = []

    def update_first(texts: list[str], role: str = "passage", on_progress: object = None) -> object:
        if role == "query" and not updated:
            updated.append(1)
            workshop.index({"a": paragraphs("new")})
            workshop.remove(["b"])
        return embedder(texts, role, on_progress)  # type: ignore[arg-type]

    workshop.embedder.embed = update_first  # type: ignore[method-assign, assignment]
    assert workshop.texts() == {"a": [paragraph("one"), paragraph("two")], "b": [paragraph("three")]}
    assert workshop.texts() == {"a": [paragraph("new")]}
