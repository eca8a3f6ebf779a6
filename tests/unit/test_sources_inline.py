from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.document import Document
from pipeline.errors import InvalidRequest
from pipeline.settings import SourceSettings
from pipeline.sources import InlineSource, Rejected, check_metadata, check_uri, to_document

SETTINGS = SourceSettings(max_bytes=100)


def test_documents_may_be_given_in_three_ways() -> None:
    given: list[Any] = [
        Document("a", "text"),
        ("b", b"bytes"),
        {"uri": "c", "text": "mapped", "media_type": "text/markdown", "metadata": {"lang": "de"}},
    ]

    assert list(InlineSource(given, SETTINGS)) == [
        Document("a", "text"),
        Document("b", b"bytes"),
        Document("c", "mapped", "text/markdown", {"lang": "de"}),
    ]


def test_a_bad_document_is_rejected_under_its_uri_or_its_position() -> None:
    given: list[Any] = [
        ("a", "fine"),
        ("", "no name"),
        ("big", "x" * 101),
        {"uri": "d", "body": "x"},
        {"uri": "e"},
        Document("f", 7),  # type: ignore[arg-type]
        Document("g", "x", "markdown"),
        17,
    ]

    found = list(InlineSource(given, SETTINGS))

    rejected = {item.uri: item.error for item in found if isinstance(item, Rejected)}
    assert list(rejected) == ["inline:1", "big", "d", "e", "f", "g", "inline:7"]
    assert "is empty" in rejected["inline:1"]
    assert "101 bytes; the limit is 100" in rejected["big"]
    assert "'body'" in rejected["d"]
    assert "content is missing" in rejected["e"]
    assert "must be str or bytes, not int" in rejected["f"]
    assert "text/markdown, not 'markdown'" in rejected["g"]
    assert "not int" in rejected["inline:7"]


def test_documents_are_taken_one_at_a_time_from_a_generator() -> None:
    taken: list[int] = []

    def generate() -> Iterator[Document]:
        for number in range(1000):
            taken.append(number)
            yield Document(f"n:{number}", "text")

    iterator = iter(InlineSource(generate(), SETTINGS))
    next(iterator)
    next(iterator)

    assert taken == [0, 1]


@pytest.mark.parametrize("uri", ["", "   ", "a\0b", "\ud800", "x" * 2049, "ü" * 1025, 7, None])
def test_a_uri_that_the_ledger_cannot_hold_is_refused(uri: object) -> None:
    with pytest.raises(InvalidRequest, match="uri"):
        check_uri(uri)


@pytest.mark.parametrize("uri", ["a", "x" * 2048, "ü" * 1024, "https://example.org/ä?b#c", "with space"])
def test_other_uris_are_fine(uri: str) -> None:
    check_uri(uri)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"when": datetime.date(2024, 1, 2)}, r"'when' is date.*isoformat"),
        ({"tags": {"a", "b"}}, "'tags' is set"),
        ({"score": float("nan")}, "'score' is nan"),
        ({"score": float("inf")}, "'score' is inf"),
        ({"a": {"b": [1, b"x"]}}, r"'a\.b\[1\]' is bytes"),
        ({"a": {1: "x"}}, "a 1 is int; a key is text"),
        ({1: "x"}, "key 1 is int"),
        ({"a": "x\0y"}, "'a' holds a NUL"),
        ({"a\0": "x"}, "NUL"),
        ({"a": ["\udfff"]}, "surrogate"),
        ({"a": "x" * 70_000}, "70,0.* bytes of JSON; the limit is 65,536"),
        ("text", "must be a mapping, not str"),
        (None, "must be a mapping, not NoneType"),
    ],
)
def test_metadata_that_is_not_json_is_refused_naming_document_and_key(metadata: object, said: str) -> None:
    with pytest.raises(InvalidRequest, match=f"document d.*{said}"):
        check_metadata(metadata, "document d")


def test_metadata_that_contains_itself_is_refused() -> None:
    metadata: dict[str, Any] = {}
    metadata["a"] = metadata

    with pytest.raises(InvalidRequest, match="nested more than 16 deep"):
        check_metadata(metadata, "document d")


def test_json_metadata_is_fine() -> None:
    check_metadata({"a": [1, 2.5, True, None, "x", {"b": ("t", "u")}], "ünï": "日本"}, "document d")


def test_what_is_no_document_at_all_says_what_one_is() -> None:
    with pytest.raises(InvalidRequest, match="a document is a Document, \\(uri, content\\) or a mapping, not list"):
        to_document(["a", "b"])
