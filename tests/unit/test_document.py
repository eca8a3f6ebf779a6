"""Documents and what is computed from them: hashes that tell change from no change, ids that are never used twice."""

from __future__ import annotations

import hashlib
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Document
from pipeline.document import canonical, digest, embedding_key, encodable, point_id

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_the_content_hash_changes_with_content_and_media_type_and_nothing_else() -> None:
    document = Document("a", "text", "text/plain", {"lang": "en"})

    assert document.content_hash() == Document("b", "text", "text/plain", {"lang": "de"}).content_hash()
    assert document.content_hash() == Document("a", b"text", "text/plain").content_hash()
    assert document.content_hash() == Document("a", "text").content_hash(), "text is text/plain"
    others = [Document("a", "text."), Document("a", "text", "text/markdown"), Document("a", b"text")]
    assert len({document.content_hash(), *(other.content_hash() for other in others)}) == 4


def test_the_metadata_hash_does_not_depend_on_the_order_of_keys() -> None:
    one = Document("a", "text", metadata={"x": 1, "y": {"b": 1, "a": [1, 2]}})
    same = Document("b", "other", metadata={"y": {"a": [1, 2], "b": 1}, "x": 1})

    assert one.meta_hash() == same.meta_hash()
    for other in ({"x": 1}, {"x": 1, "y": {"b": 1, "a": [2, 1]}}, {"x": "1", "y": {"b": 1, "a": [1, 2]}}):
        assert Document("a", "text", metadata=other).meta_hash() != one.meta_hash()


@given(st.lists(st.binary(max_size=9), max_size=5), st.lists(st.binary(max_size=9), max_size=5))
def test_two_lists_of_parts_share_a_digest_only_where_they_are_the_same(one: list[bytes], other: list[bytes]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


def test_a_digest_is_sha256_of_each_length_and_part() -> None:
    expected = hashlib.sha256(b"\x02\0\0\0\0\0\0\0ab" + b"\0" * 8 + b"\x02\0\0\0\0\0\0\0" + "é".encode()).digest()

    assert digest("ab", b"", "é") == expected


@given(JSON)
def test_the_canonical_form_is_the_same_for_the_same_value(value: object) -> None:
    def turned(inner: object) -> object:
        if isinstance(inner, dict):
            return {key: turned(inner[key]) for key in reversed(list(inner))}
        return [turned(item) for item in inner] if isinstance(inner, list) else inner

    assert canonical(value) == canonical(turned(value))


def test_what_is_no_json_has_no_canonical_form() -> None:
    for value in (float("nan"), float("inf"), object(), {1, 2}):
        with pytest.raises((TypeError, ValueError)):
            canonical(value)


@given(st.text(st.characters(exclude_categories=()), max_size=20))
def test_what_is_encodable_can_be_written_as_utf8_and_keeps_its_length(text: str) -> None:
    clean = encodable(text)

    assert len(clean) == len(text)
    assert clean.encode("utf-8").decode("utf-8") == clean
    assert clean == "".join("\ufffd" if 0xD800 <= ord(character) <= 0xDFFF else character for character in text)
    Document("a", text).content_hash()


def test_a_point_has_one_id_for_ever_and_no_other_point_has_it() -> None:
    places = [(d, v, o) for d in (1, 11, 111) for v in (1, 11, 111) for o in (0, 1, 11, 111)]

    assert len({point_id(*place) for place in places}) == len(places)
    assert point_id(1, 2, 3) == uuid.UUID("d0704db3-1e25-5b7b-9155-d5d57dd9e132")
    assert point_id(1, 2, 3).version == 5


def test_an_embedding_is_addressed_by_model_and_text() -> None:
    assert embedding_key(b"model", "text") == digest(b"model", "text")
    assert len({embedding_key(model, text) for model in (b"a", b"ab") for text in ("b", "bb", "")}) == 6
