"""A model's description: what makes two embeddings of one text different ones."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.embedding.base import ModelSpec, checked
from pipeline.embedding.bundled import BUILD, FLOAT32, INT8, WEIGHTS_SHA256, spec_of
from pipeline.errors import InvalidRequest, InvalidVectors


def test_the_bundled_model_is_described_by_its_published_weights() -> None:
    assert (FLOAT32.dimensions, FLOAT32.max_tokens, FLOAT32.pooling, FLOAT32.normalize) == (384, 256, "mean", True)
    assert FLOAT32.revision == WEIGHTS_SHA256
    assert INT8.revision == f"{WEIGHTS_SHA256}/{BUILD}"
    assert spec_of("int8") == INT8 != spec_of("float32") == FLOAT32


def test_the_fingerprint_never_changes_by_itself() -> None:
    # Given the address that every embedding of the default model is stored under
    expected = "88e405f090505d92bffbcd816fb9382342d569f398a62d02ce441761358a60b8"

    # Then a new version of Millrace computes it too; else it would pay for every embedding again
    assert FLOAT32.fingerprint("passage").hex() == expected


def test_a_model_without_prefixes_has_one_fingerprint_for_both_roles() -> None:
    assert FLOAT32.fingerprint("query") == FLOAT32.fingerprint("passage")


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "other"},
        {"provider": "other"},
        {"dimensions": 128},
        {"max_tokens": 512},
        {"pooling": "cls"},
        {"normalize": False},
        {"precision": "int8"},
        {"revision": "other"},
        {"query_prefix": "q: ", "passage_prefix": "q: "},
        {"asymmetric": True},
    ],
)
def test_whatever_decides_the_vector_changes_the_fingerprint(changed: dict[str, object]) -> None:
    other = replace(FLOAT32, **changed)  # type: ignore[arg-type]

    assert other.fingerprint("passage") != FLOAT32.fingerprint("passage")


def test_the_other_roles_prefix_does_not_change_a_roles_fingerprint() -> None:
    one, two = replace(FLOAT32, query_prefix="query: "), replace(FLOAT32, query_prefix="search: ")

    assert one.fingerprint("query") != one.fingerprint("passage")
    assert one.fingerprint("query") != two.fingerprint("query")
    assert one.fingerprint("passage") == two.fingerprint("passage")


def test_an_asymmetric_model_has_two_fingerprints_without_any_prefix() -> None:
    jina = replace(FLOAT32, asymmetric=True)

    assert jina.fingerprint("query") != jina.fingerprint("passage")


def test_a_spec_survives_storage() -> None:
    assert ModelSpec.from_json(json.loads(json.dumps(INT8.to_json()))) == INT8


def test_a_spec_of_a_newer_version_is_refused_by_what_is_unknown() -> None:
    with pytest.raises(InvalidRequest, match=r"holds matryoshka, which this version of Millrace does not know"):
        ModelSpec.from_json({**FLOAT32.to_json(), "matryoshka": 64})


def test_a_spec_without_a_name_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"incomplete: .*'name'"):
        ModelSpec.from_json({"provider": "local"})


def vectors_of(*rows: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    spread = np.zeros((len(rows), FLOAT32.dimensions))
    spread[:, 0] = rows
    return spread


@pytest.mark.parametrize(
    ("rows", "texts", "message"),
    [
        ((1.0, 1.0), 3, r"shape \(2, 384\) for 3 texts of 384 dimensions"),
        ((1.0, float("nan")), 2, "NaN or infinity for text 1"),
        ((float("inf"), 1.0), 2, "NaN or infinity for text 0"),
        ((1.0, 0.0), 2, "zeros for text 1"),
    ],
)
def test_what_is_no_vector_is_refused_by_its_number(rows: tuple[float, ...], texts: int, message: str) -> None:
    with pytest.raises(InvalidVectors, match=message):
        checked(vectors_of(*rows), texts, FLOAT32)


def test_vectors_that_were_not_normalised_are() -> None:
    found = checked(vectors_of(2.0, 1.0, 1.0 + 1e-7), 3, FLOAT32)

    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)
