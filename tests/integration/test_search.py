"""What a search sees: one generation of each document, whole, whatever is under way; and what it says if it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from workshop import Workshop, chunked, paragraph, paragraphs

from pipeline import Document, Settings
from pipeline.errors import InvalidFilter, InvalidRequest, LedgerUnavailable, UnknownCollection
from pipeline.ledger.engine import Ledger
from pipeline.search import Searcher
from pipeline.settings import PostgresSettings, load_settings
from workers.embedded.ports import free_port


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    single = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"embed_chunks": 2})})
    made = Workshop(chunked(single))
    yield made
    made.close()


def _letters(number: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[number]


def test_a_page_is_filled_although_the_best_hits_are_not_visible(workshop: Workshop) -> None:
    # Given thirty chunks about a word that were removed and are still in the index, and five that stay
    removed = [f"mill{_letters(number % 26)}{_letters(number // 26)}" for number in range(30)]
    stay = ["one", "two", "three", "four", "five"]
    workshop.index({"a": paragraphs(*removed), "b": paragraphs(*stay)})
    workshop.index({"a": paragraphs("other")})

    found = workshop.client.search("millaa millba millca what is this", collection="notes", limit=6)

    assert found.degraded == ()
    assert sorted(result.text for result in found.results) == sorted(paragraph(name) for name in [*stay, "other"])


def test_a_search_that_runs_out_of_rounds_says_so(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs(*(f"mill{_letters(number)}" for number in range(20))), "b": paragraphs("other")})
    workshop.index({"a": paragraphs("else")})
    query = " ".join(f"mill{_letters(number)}" for number in range(20))

    searcher = workshop.services.searcher
    single = replace(searcher, settings=searcher.settings.model_copy(update={"max_rounds": 1}))
    found = single.search(query, "notes", limit=1, filters={}, tenant="default")
    more = searcher.search(query, "notes", limit=5, filters={}, tenant="default")

    assert (found.results, found.degraded) == ((), ("incomplete",))
    assert ({result.uri for result in more.results}, more.degraded) == ({"a", "b"}, ())


def test_filters_have_the_types_of_the_fields_and_take_what_a_command_line_says(workshop: Workshop) -> None:
    workshop.index(
        [
            Document(
                "a", "words", metadata={"lang": "en", "year": 2024, "rate": 0.5, "done": True, "tags": ["x", "y"]}
            ),
            Document("b", "other", metadata={"lang": "de", "year": 2025, "rate": 2, "done": False, "tags": ["y"]}),
        ]
    )

    def found(**filters: object) -> list[str]:
        return list(workshop.texts(filters=filters))

    assert found() == ["a", "b"]
    assert found(lang="en") == found(year=2024) == found(year="2024") == found(rate="0.5") == found(tags="x") == ["a"]
    assert found(done="true") == found(done=True) == ["a"]
    assert found(done="false") == found(rate=2) == found(rate="2") == ["b"]
    assert found(lang=["en", "de"]) == found(tags="y") == found(year=[2024, "2025"]) == ["a", "b"]
    assert found(lang="en", year=2025) == []
    assert found(uri="b") == ["b"]
    assert found(uri=["a", "b"], lang="de") == ["b"]


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({"colour": "red"}, "'notes' has no field 'colour' to filter on; it has lang, uri, year"),
        ({"year": "soon"}, "field 'year' is of type integer; 'soon' is not"),
        ({"year": True}, "field 'year' is of type integer; True is not"),
        ({"year": [2024, "soon"]}, "'soon' is not"),
        ({"lang": 7}, "field 'lang' is of type keyword; 7 is not"),
        ({"lang": {"not": "en"}}, "field 'lang' is of type keyword"),
        ({"uri": 7}, "'uri'"),
        ({"tenant": "other"}, "no field 'tenant'"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(workshop: Workshop, filters: dict[str, object], told: str) -> None:
    workshop.put([Document("a", "words", metadata={"lang": "en", "year": 2024})])

    with pytest.raises(InvalidFilter, match=told):
        workshop.client.search("words", collection="notes", filters=filters)
    with pytest.raises(InvalidFilter, match=told):
        workshop.client.delete(collection="notes", filters=filters)


def test_a_field_that_is_declared_and_of_which_no_point_is_there_yet_finds_nothing(workshop: Workshop) -> None:
    workshop.index([Document("a", "words")])
    workshop.put([Document("b", "other", metadata={"lang": "en"})])

    assert workshop.texts(filters={"lang": "en"}) == {}
    workshop.work()
    assert workshop.texts(filters={"lang": "en"}) == {"b": ["other"]}


def test_a_collection_without_points_is_searched_and_audited(workshop: Workshop) -> None:
    workshop.put([Document("a", "words", metadata={"lang": "en"})])

    assert workshop.texts() == workshop.texts(filters={"lang": "en"}) == {}
    assert workshop.audit() == {}


def test_what_cannot_be_searched_is_refused_in_words(workshop: Workshop) -> None:
    workshop.put({"a": "words"})

    with pytest.raises(UnknownCollection, match="'nowhere'"):
        workshop.client.search("words", collection="nowhere")
    with pytest.raises(InvalidRequest, match="empty"):
        workshop.client.search(" \n", collection="notes")
    for limit in (0, 1001):
        with pytest.raises(InvalidRequest, match=f"limit {limit}"):
            workshop.client.search("words", collection="notes", limit=limit)


def _without_postgres(workshop: Workshop) -> Searcher:
    url = f"postgresql://nobody:secret@127.0.0.1:{free_port()}/none"
    away: PostgresSettings = load_settings(postgres={"url": url, "connect_timeout": 0.3}).postgres
    return replace(workshop.services.searcher, ledger=Ledger(away))


def test_while_postgres_is_away_results_come_unverified(workshop: Workshop) -> None:
    workshop.index([Document("a", "words", metadata={"lang": "en"})])
    workshop.texts()
    away = _without_postgres(workshop)

    found = away.search("words", "notes", limit=3, filters={"lang": "en"}, tenant="default")

    assert found.degraded == ("unverified",)
    assert [(result.uri, result.text, result.metadata) for result in found.results] == [("a", "words", {"lang": "en"})]
    with pytest.raises(LedgerUnavailable):
        away.search("words", "never seen", limit=3, filters={}, tenant="default")
    away.ledger.close()
