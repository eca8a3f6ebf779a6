"""BM25: the same words meet the same indices, in documents and queries, as the configuration says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidSettings
from pipeline.vectors import sparse
from pipeline.vectors.sparse import SparseEncoder, SparseVector


def terms(text: str, config: Mapping[str, Any] | None = None) -> set[int]:
    return set(SparseEncoder(config).query(text).indices)


def test_a_query_meets_the_documents_that_hold_its_words_in_any_form() -> None:
    encoder = SparseEncoder()

    mill, fox = encoder.documents(["The mills are turning.", "A quick brown fox."])

    assert set(encoder.query("turned mill").indices) == set(mill.indices)
    assert not set(encoder.query("turned mill").indices) & set(fox.indices)


def test_weights_are_those_of_bm25_without_the_inverse_document_frequency() -> None:
    encoder = SparseEncoder()
    k, b, average, length = 1.2, 0.75, 256.0, 3

    (vector,) = encoder.documents(["wheel wheel water"])

    weights = dict(zip(vector.indices, vector.values, strict=True))
    for word, frequency in (("wheel", 2), ("water", 1)):
        expected = frequency * (k + 1) / (frequency + k * (1 - b + b * length / average))
        assert weights[encoder.query(word).indices[0]] == pytest.approx(expected, rel=1e-5)


def test_every_term_of_a_query_weighs_one() -> None:
    assert SparseEncoder().query("wheel wheel water").values == [1.0, 1.0]


@given(text=st.text(max_size=300))
def test_indices_are_unique_and_ascending_and_weights_positive(text: str) -> None:
    encoder = SparseEncoder({"language": "none", "tokenizer": "multilingual"})

    for vector in (*encoder.documents([text]), encoder.query(text)):
        assert all(low < high for low, high in pairwise(vector.indices))
        assert len(vector.values) == len(vector.indices)
        assert all(value > 0 for value in vector.values)
        assert all(0 <= index < 2**32 for index in vector.indices)


def test_two_terms_with_one_index_become_one_with_both_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = SparseEncoder()
    found = SimpleNamespace(indices=[7, 3, 7], values=[0.5, 1.0, 0.25])
    monkeypatch.setattr(encoder, "_model", SimpleNamespace(embed_query=lambda text: found))

    assert encoder.query("anything") == SparseVector([3, 7], [1.0, 0.75])


def test_a_text_without_terms_has_an_empty_vector() -> None:
    encoder = SparseEncoder()

    assert encoder.documents(["", "the of and", "?!"]) == [SparseVector([], [])] * 3
    assert encoder.query("the") == SparseVector([], [])


def test_the_stored_configuration_makes_the_same_encoder() -> None:
    encoder = SparseEncoder({"language": "german", "k": 1.5, "ascii_folding": True})

    again = SparseEncoder(json.loads(json.dumps(encoder.config)))

    text = "Die Mühlen mahlen langsam, aber sie mahlen."
    assert again.config == encoder.config
    assert again.documents([text]) == encoder.documents([text]) != SparseEncoder().documents([text])


def test_the_configuration_is_complete_and_a_copy() -> None:
    encoder = SparseEncoder()

    encoder.config["k"] = 9.0

    assert encoder.config == sparse.DEFAULTS
    assert encoder.config["language"] == "english"


def test_language_none_neither_stems_nor_drops_words() -> None:
    assert len(terms("the mills", {"language": "none"})) == 2
    assert not terms("mills", {"language": "none"}) & terms("mill", {"language": "none"})


def test_a_language_without_spaces_is_cut_into_words() -> None:
    encoder = SparseEncoder({"language": "chinese"})

    (vector,) = encoder.documents(["今天天气很好，我们去公园"])

    assert encoder.config["tokenizer"] == "multilingual"
    assert set(encoder.query("公园").indices) & set(vector.indices)


def test_lone_surrogates_are_no_error() -> None:
    assert SparseEncoder().query("wheel \ud800").indices == SparseEncoder().query("wheel").indices


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"langauge": "english"}, "BM25 has no setting langauge"),
        ({"tokenizer": "best"}, "BM25 has no tokenizer 'best'; it has word, whitespace"),
        ({"language": "klingon"}, "klingon"),
        ({"b": 2.0}, r"b must be finite and in \[0.0, 1.0\]"),
        ({"k": "much"}, "cannot be configured"),
        ({"avg_len": 0.0}, "avg_doc_len"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        SparseEncoder(config)
