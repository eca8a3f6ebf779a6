"""Whatever happens in whichever phase of a re-embedding: searches find whole documents, and in the end all is there."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
from command_line import eventually
from two_models import PHASES, TwoModels
from workshop import COLLECTION, chunked, paragraph, paragraphs

from pipeline import Settings
from pipeline.errors import InvalidRequest
from tasks import base


@pytest.fixture
def workshop(settings: Settings) -> Iterator[TwoModels]:
    made = TwoModels(
        chunked(settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"embed_chunks": 2})}))
    )
    yield made
    made.close()


def texts(documents: dict[str, str]) -> dict[str, list[str]]:
    return {uri: sorted(text.split("\n\n")) for uri, text in sorted(documents.items())}


def clean(workshop: TwoModels, documents: dict[str, str]) -> None:
    workshop.contract()
    chunks = sum(len(found) for found in texts(documents).values())
    assert workshop.texts() == texts(documents)
    assert workshop.audit() == {"expected": chunks, "present": chunks}


def test_documents_come_change_and_go_in_every_phase(workshop: TwoModels) -> None:
    """Back and forth between two models, so that each phase is met in a collection that was re-embedded before."""
    documents = {f"n/{name}": paragraphs(f"a{name}", f"b{name}") for name in "abcde"}
    workshop.index(documents)
    models = ["new", "old"]
    for number, phase in enumerate(PHASES):
        letter = "ghijklmnop"[number]
        workshop.begin(models[number % 2])
        workshop.reach(phase)
        assert workshop.texts() == texts(documents), phase

        changes = {f"n/{letter}": paragraphs(f"a{letter}"), "n/a": paragraphs("aa", f"c{letter}")}
        workshop.put(changes)
        gone = f"n/{'bcde'[number // 2]}" if number % 2 else f"n/{'fghijklmno'[number]}"
        workshop.client.delete([gone], collection=COLLECTION)
        workshop.prepare()
        if phase != "held":  # it would be handed back until the hold is over
            workshop.work()
            documents = {uri: text for uri, text in {**documents, **changes}.items() if uri != gone}
            assert workshop.texts() == texts(documents), phase
            workshop.contract()  # what is replaced leaves both
        ended = workshop.finish()

        documents = {uri: text for uri, text in {**documents, **changes}.items() if uri != gone}
        assert (ended.state, workshop.model()) == ("done", models[number % 2]), phase
        clean(workshop, documents)
        embedded = len(workshop.passages())
        assert workshop.index(documents).documents["unchanged"] == len(documents), phase
        assert len(workshop.passages()) == embedded, phase


def test_cancelled_in_any_phase_the_collection_is_as_it_was(workshop: TwoModels) -> None:
    documents = {f"n/{name}": paragraphs(f"a{name}", f"b{name}") for name in "abcde"}
    workshop.index(documents)
    before = workshop.physical()
    for number, phase in enumerate(PHASES[:-1]):
        workshop.begin()
        workshop.reach(phase)
        built = workshop.row()["physical"]
        if number % 2:
            workshop.client.cancel_reembedding(COLLECTION)
        else:  # the job's own end is the same
            workshop.client.cancel(workshop.status().job_id)
            workshop.step()
        workshop.index({"n/f": paragraphs(f"c{'abcdefghi'[number]}")})
        while workshop.status().ended_at is None:
            workshop.step()

        assert (workshop.status().state, workshop.model(), workshop.physical()) == ("cancelled", "old", before), phase
        assert built not in workshop.services.vectors.names()
        assert workshop.sql("SELECT 1 FROM reembed_chunks") == []
        assert workshop.sql("SELECT 1 FROM batches WHERE reembedding_id IS NOT NULL AND ended_at IS NULL") == []
        clean(workshop, {**documents, "n/f": paragraphs(f"c{'abcdefghi'[number]}")})

    workshop.begin()
    workshop.reach("switched")
    with pytest.raises(InvalidRequest, match="has the vectors of new already"):
        workshop.client.cancel_reembedding(COLLECTION)
    workshop.finish()
    # What was embedded for those that were cancelled was not embedded again.
    assert len(workshop.new.texts) == len(set(workshop.new.texts))


def test_work_that_is_cut_off_by_the_switch_is_done_again_with_the_new_vectors(workshop: TwoModels) -> None:
    documents = {"n/a": paragraphs("aa", "ba")}
    workshop.index(documents)
    workshop.begin()
    workshop.reach("switching")
    # Given a batch that is prepared, and one that is being embedded, when the collection is switched
    workshop.put({"n/b": paragraph("ab"), "n/c": paragraph("ac")})
    workshop.put({"n/d": paragraphs("ad", "bd")})
    first = workshop.ready("prepare")[0]
    workshop.perform(first.id)
    workshop.old.during = workshop.switch

    outcome = workshop.perform(workshop.ready("embed")[0].id)

    assert isinstance(outcome, base.Waiting)
    assert "got the vectors of another model meanwhile" in outcome.reason
    assert workshop.value("SELECT max(attempts) FROM batches") == 0, "nobody is to blame"
    assert workshop.model() == "new"
    workshop.finish()
    documents |= {"n/b": paragraph("ab"), "n/c": paragraph("ac"), "n/d": paragraphs("ad", "bd")}
    clean(workshop, documents)
    assert paragraph("ad") not in workshop.old.texts


@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again_it_ends_well_all_the_same(workshop: TwoModels, seed: int) -> None:
    chance = random.Random(seed)
    documents = {f"n/{name}": paragraphs(f"a{name}", f"b{name}") for name in "abcd"}
    workshop.index(documents)
    workshop.begin()
    deaths = 0
    for turn in range(400):
        if workshop.status().ended_at is not None:
            break
        if turn % 7 == 3 and turn < 60:
            uri, text = (
                f"n/{chance.choice('abcdef')}",
                paragraphs(f"c{chance.choice('abc')}", f"d{chance.choice('abc')}"),
            )
            workshop.put({uri: text})
            documents[uri] = text
        deaths += not workshop.die(lambda: workshop.step(chance.randint(1, 6)), chance)
        for batch in workshop.ready()[: chance.randint(0, 4)]:
            deaths += not workshop.die(lambda id_=batch.id: workshop.perform(id_), chance)  # type: ignore[misc]
        workshop.bury()
        workshop.sql("UPDATE reembeddings SET rest_until = NULL WHERE ended_at IS NULL")
    workshop.bury()
    workshop.work()

    assert (workshop.status().state, workshop.model()) == ("done", "new")
    assert deaths > 20
    clean(workshop, documents)


def test_a_searcher_never_finds_less_than_a_whole_document(workshop: TwoModels) -> None:
    documents = {f"n/{name}": paragraphs(f"a{name}", f"b{name}") for name in "abc"}
    workshop.index(documents)
    searcher = TwoModels(workshop.settings)
    stop = threading.Event()
    seen: list[tuple[int, dict[str, list[str]]]] = []
    failures: list[BaseException] = []

    def search() -> None:
        try:
            while not stop.is_set():
                found = searcher.client.search("what is this paragraph about", collection=COLLECTION, limit=20)
                assert found.degraded == ()
                told: dict[str, list[str]] = {}
                for result in found.results:
                    told.setdefault(result.uri, []).append(result.text)
                seen.append((found.generation, {uri: sorted(chunks) for uri, chunks in sorted(told.items())}))
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    def look_again() -> None:
        before = len(seen)
        eventually(lambda: len(seen) > before or failures)

    thread = threading.Thread(target=search)
    thread.start()
    try:
        for model in ("new", "old"):
            workshop.begin(model)
            workshop.finish()
            workshop.sql("UPDATE reembeddings SET doomed_at = doomed_at - interval '31 s'")
            look_again()  # it looks at each generation
    finally:
        stop.set()
        thread.join(60)

    assert not failures, failures
    assert all(found == texts(documents) for _, found in seen)
    assert len({generation for generation, _ in seen}) > 1
    assert [generation for generation, _ in seen] == sorted(generation for generation, _ in seen)
    searcher.close()
