"""What is believed of an answer, and what is not."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from pipeline.embedding.openai.answers import Answer, ErrorBody, read
from pipeline.errors import InvalidVectors

ONE, OTHER = [0.6, 0.8, 0.0], [0.0, 0.6, -0.8]


def body(*embeddings: Any, indexes: list[Any] | None = None, **more: Any) -> bytes:
    places = range(len(embeddings)) if indexes is None else indexes
    data = [
        {"object": "embedding", "index": index, "embedding": e} for index, e in zip(places, embeddings, strict=True)
    ]
    return json.dumps({"object": "list", "data": data, "model": "m", **more}).encode()


def packed(vector: list[float], dtype: str = "<f4") -> str:
    return base64.b64encode(np.asarray(vector, dtype).tobytes()).decode()


def answer(content: bytes, texts: int = 2, *, doubt: bool = False) -> Answer:
    return read(content, texts, 3, "m", doubt_base64=doubt)


def test_numbers_and_base64_are_read_alike() -> None:
    numbers = answer(body(ONE, OTHER, usage={"prompt_tokens": 7, "total_tokens": 7}))
    packs = answer(body(packed(ONE), packed(OTHER)))

    np.testing.assert_allclose(numbers.vectors, [ONE, OTHER], atol=1e-7)
    np.testing.assert_array_equal(numbers.vectors, packs.vectors)
    assert numbers.vectors.dtype == np.float32
    assert (numbers.tokens, packs.tokens) == (7, None)
    assert (numbers.as_base64, packs.as_base64) == (False, True)


def test_vectors_are_put_in_the_order_of_the_texts() -> None:
    np.testing.assert_allclose(answer(body(OTHER, ONE, indexes=[1, 0])).vectors, [ONE, OTHER], atol=1e-7)


def test_vectors_without_indexes_are_in_the_order_in_which_they_came() -> None:
    np.testing.assert_allclose(answer(body(ONE, OTHER, indexes=[None, None])).vectors, [ONE, OTHER], atol=1e-7)


def test_vectors_of_another_length_are_normalised() -> None:
    np.testing.assert_allclose(answer(body([3.0, 4.0, 0.0], OTHER)).vectors, [ONE, OTHER], atol=1e-6)


@pytest.mark.parametrize("indexes", [[0, 0], [0, 2], [1, 2], [0, None], [0, "1"], [0, -1]])
def test_indexes_that_are_not_those_of_the_texts_are_refused(indexes: list[Any]) -> None:
    with pytest.raises(InvalidVectors, match="indexes"):
        answer(body(ONE, OTHER, indexes=indexes))


def test_a_wrong_number_of_vectors_is_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidVectors, match="1 vectors for 2 texts"):
        answer(body(ONE))


@pytest.mark.parametrize("wrong", [[1.0, 0.0], packed([1.0, 0.0]), [[1.0, 0.0, 0.0]], 7])
def test_a_wrong_number_of_dimensions_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidVectors, match="text 1"):
        answer(body(ONE, wrong))


@pytest.mark.parametrize("wrong", ["not base64!", packed(ONE)[:-2] + "A", ["a", "b", "c"], {"a": 1}])
def test_what_is_no_vector_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidVectors):
        answer(body(ONE, wrong))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ([float("nan"), 0.0, 0.0], "NaN"),
        ([1e39, 0.0, 0.0], "infinity"),
        ([0.0, 0.0, 0.0], "zeros"),
        (None, "no vector"),
    ],
)
def test_a_text_whose_vector_is_none_is_named_and_the_others_are_kept(wrong: Any, why: str) -> None:
    found = answer(body(wrong, OTHER))

    assert list(found.bad) == [0]
    assert why in found.bad[0]
    np.testing.assert_allclose(found.vectors[1], OTHER, atol=1e-7)


def test_base64_of_other_numbers_is_not_believed_at_first() -> None:
    # Six half-precision numbers are as long as three of float32
    halves = packed([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "<f2")

    with pytest.raises(InvalidVectors, match="base64"):
        answer(body(halves, halves), doubt=True)
    assert answer(body(packed(ONE), packed(OTHER)), doubt=True).as_base64


@pytest.mark.parametrize("error", [{"message": "no", "code": "x"}, "no"])
def test_an_error_with_status_200_is_an_error(error: Any) -> None:
    with pytest.raises(ErrorBody) as told:
        answer(json.dumps({"error": error}).encode())

    assert told.value.error["message"] == "no"


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"{}", b'{"data": 7}', b'{"data": [7]}', b"\xff\xfe"])
def test_what_is_no_answer_at_all_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever its words
        answer(content)
