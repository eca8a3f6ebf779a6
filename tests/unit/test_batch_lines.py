"""The file that a remote batch is made of, and the lines of what comes back."""

from __future__ import annotations

import base64
import hashlib
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.document import digest
from pipeline.embedding.base import ModelSpec
from pipeline.errors import InvalidRequest
from pipeline.openai_batch.lines import LONGEST_LINE, Line, Splitter, parse_line, placed
from pipeline.openai_batch.rendering import (
    Size,
    Written,
    encoding_for,
    file_name,
    fitting,
    is_file_of,
    key_of,
    metadata_of,
    render_line,
)

SPEC = ModelSpec("small", "openai", 4, 8191, "remote", True, "float32", "https://api.openai.com/v1")
KEY = digest(b"a text")
VECTOR = [0.5, -0.5, 0.5, 0.5]

# What Postgres can hold as text.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
keys = st.binary(min_size=32, max_size=32)


def line(body: object = None, *, key: object = KEY.hex(), status: object = 200, **more: object) -> bytes:
    response = {"status_code": status, "request_id": "r", "body": body}
    return json.dumps({"id": "x", "custom_id": key, "response": response, "error": None, **more}).encode()


def body(embedding: object = VECTOR, **more: object) -> dict[str, Any]:
    data = [{"object": "embedding", "index": 0, "embedding": embedding}]
    return {"object": "list", "data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}, **more}


def coded(values: Any) -> str:
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()


# -- rendering -------------------------------------------------------------------------------------------------------


@given(st.dictionaries(keys, texts, max_size=6), st.sampled_from([None, 256]), st.sampled_from(["float", "base64"]))
def test_every_line_says_its_text_and_no_reader_sees_two_lines_in_one(
    items: dict[bytes, str], dimensions: int | None, encoding: Any
) -> None:
    rendered = b"".join(render_line(*item, "small", dimensions, encoding) for item in sorted(items.items()))

    # Python's own idea of a line is the widest there is.
    found = [json.loads(raw) for raw in rendered.decode("utf-8").splitlines()]
    assert rendered.count(b"\n") == len(items) == len(found)
    for (key, text), one in zip(sorted(items.items()), found, strict=True):
        assert (one["custom_id"], one["method"], one["url"]) == (key.hex(), "POST", "/v1/embeddings")
        wanted = {"model": "small", "input": text, "encoding_format": encoding}
        assert one["body"] == wanted | ({"dimensions": dimensions} if dimensions else {})


@given(st.dictionaries(keys, texts, min_size=1, max_size=6))
def test_the_same_rows_are_the_same_bytes_and_are_counted_as_they_are_written(items: dict[bytes, str]) -> None:
    written = Written()
    file = b"".join(written.add(render_line(*item, "small", None, "base64")) for item in sorted(items.items()))
    again = b"".join(render_line(*item, "small", None, "base64") for item in sorted(items.items()))

    assert file == again
    assert (written.lines, written.bytes) == (len(items), len(file))
    assert written.sha256 == hashlib.sha256(file).digest()


def test_letters_of_other_scripts_take_no_more_room_than_they_need() -> None:
    assert (
        len(render_line(KEY, "\u6587" * 100, "small", None, "float"))
        - len(render_line(KEY, "a", "small", None, "float"))
        == 299
    )


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="is empty"):
        render_line(KEY, "", "small", None, "float")


def test_base64_is_asked_for_where_it_is_known_to_come() -> None:
    assert encoding_for("https://api.openai.com/v1") == "base64"
    assert encoding_for("http://127.0.0.1:8000/v1") == "float"
    assert encoding_for("https://api.openai.com.example.net/v1") == "float"


def test_a_file_and_a_batch_are_known_by_their_key_and_attempt() -> None:
    assert file_name("abc", 2) == "abc-2.jsonl"
    assert is_file_of("abc", "abc-12.jsonl")
    for name in ("abc-.jsonl", "abc-x.jsonl", "abcd-1.jsonl", "abc-1.jsonl.bak", "abc-1", "1.jsonl", "x-abc-1.jsonl"):
        assert not is_file_of("abc", name)
    metadata = metadata_of("abc", 2, b"\1" * 32)
    assert all(len(name) <= 64 and len(value) <= 512 for name, value in metadata.items())
    assert key_of(metadata) == "abc"
    assert key_of({"key": "abc"}) is key_of(None) is key_of({"millrace_key": 1}) is None


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), max_size=20), st.integers(1, 8), st.integers(1, 200))
def test_a_batch_takes_as_many_texts_as_no_limit_forbids(sizes: list[tuple[int, int]], inputs: int, most: int) -> None:
    limit = Size(inputs, most, most)
    items = [Size(1, *one) for one in sizes]

    count, total = fitting(items, limit)

    assert total == sum(items[:count], Size())
    assert total.within(limit)
    assert count == len(items) or not (total + items[count]).within(limit)


# -- splitting -------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_a_file_is_cut_at_line_feeds_and_nothing_else_however_it_arrives(data: bytes, cuts: list[int]) -> None:
    splitter, found, offsets = Splitter(), [], [0]
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        found += splitter.feed(data[start:end])
        offsets.append(splitter.offset)

    assert [*found, splitter.end()] == data.split(b"\n")
    for offset in offsets:  # whoever goes on from there reads the rest
        assert data[:offset].endswith(b"\n") or offset == 0
    assert data[splitter.offset :] == splitter.end()


def test_whoever_goes_on_reads_each_line_once() -> None:
    data = b"one\ntwo\nthree"
    first = Splitter()
    assert first.feed(data[:6]) == [b"one"]

    second = Splitter(first.offset)

    assert second.feed(data[first.offset :]) == [b"two"]
    assert (second.offset, second.end()) == (8, b"three")


def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    splitter = Splitter()
    piece = b"x" * (1 << 20)
    for _ in range(20):
        assert splitter.feed(piece) == []
        assert len(splitter.end()) <= LONGEST_LINE

    assert splitter.feed(b"\ngood\n") == [b"?", b"good"]
    assert splitter.offset == 20 * len(piece) + 1 + 5


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embedding", [VECTOR, coded(VECTOR), [1, -1, 1, 1]])
def test_a_vector_is_read_from_numbers_and_from_base64_whatever_was_asked_for(embedding: object) -> None:
    found = parse_line(line(body(embedding)), SPEC)

    assert (found.outcome, found.key, found.tokens, found.message) == ("embedded", KEY, 7, "")
    assert found.vector is not None
    assert found.vector.dtype == np.float32
    np.testing.assert_allclose(found.vector, VECTOR, atol=1e-6)


def test_a_vector_survives_its_way_bit_by_bit() -> None:
    vector = np.random.default_rng(1).normal(size=4)
    vector = (vector / np.linalg.norm(vector)).astype(np.float32)

    found = [parse_line(line(body(one)), SPEC).vector for one in (coded(vector), [float(x) for x in vector])]

    assert all(one is not None and one.tobytes() == vector.tobytes() for one in found)


NAN, INFINITE = float("nan"), float("inf")
NO_BODIES: list[object] = [None, [], "text", {}, {"data": None}, {"data": {"0": 1}}, {"data": ["x"]}]
NO_VECTORS: list[object] = [None, {}, "no base64!", 3, ["0.5"] * 4, [0.5, 0.5, 0.5, None], [True, 0, 0, 0], [[0.5] * 4]]
ENDLESS: list[object] = [
    [NAN, 0, 0, 1],
    [INFINITE, 0, 0, 1],
    [1e39, 0, 0, 0],
    [10**400, 0, 0, 0],
    coded([NAN, 0, 0, 1]),
]
WRONG: dict[str, list[object]] = {
    "unreadable": [*NO_BODIES, *map(body, NO_VECTORS)],
    "wrong_count": [{"data": []}, {"data": body()["data"] * 2}],
    "wrong_index": [{"data": [{"index": one, "embedding": VECTOR}]} for one in (1, -1, None, "0", False, 0.5)],
    "wrong_dimensions": [body(one) for one in ([], [0.5] * 3, [0.5] * 5, coded([0.5] * 3), "AAAA", "")],
    "not_finite": [*map(body, ENDLESS), body([3e38] * 4)],
    "zeros": [body(one) for one in ([0.0] * 4, [0] * 4, coded([0.0] * 4), [1e-30] * 4)],
}


@pytest.mark.parametrize(("outcome", "wrong"), [(outcome, one) for outcome, all_of in WRONG.items() for one in all_of])
def test_what_is_no_vector_of_the_text_has_a_name_and_what_it_cost(outcome: str, wrong: object) -> None:
    found = parse_line(line(wrong), SPEC)

    assert (found.outcome, found.vector, found.key) == (outcome, None, KEY)
    assert found.message
    billed = isinstance(wrong, dict) and "usage" in wrong
    assert found.tokens == (7 if billed else None), "it was answered, so it was billed"


STATUSES: dict[str, list[object]] = {
    "failed": [0, 201, 302, 408, 409, 425, 500, 503, 599],
    "limited": [429],
    "denied": [401, 403],
    "refused": [400, 404, 413, 422],
    "garbled": [None, "200", True, 200.0],
}


@pytest.mark.parametrize(
    ("outcome", "status"), [(outcome, one) for outcome, all_of in STATUSES.items() for one in all_of]
)
def test_a_status_says_what_becomes_of_the_text(outcome: str, status: object) -> None:
    found = parse_line(line({"error": {"code": "c", "message": "because"}}, status=status), SPEC)

    assert (found.outcome, found.vector, found.tokens, found.key) == (outcome, None, 0, KEY)
    assert outcome == "garbled" or "because" in found.message


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        ({"code": "batch_expired", "message": "not in time"}, "expired"),
        ({"code": "batch_cancelled"}, "cancelled"),
        ({"code": "server_error", "message": "lost"}, "failed"),
        ({}, "failed"),
        (None, "garbled"),
        ("text", "garbled"),
    ],
)
def test_a_line_without_a_response_says_why(error: object, outcome: str) -> None:
    raw = json.dumps({"custom_id": KEY.hex(), "response": None, "error": error}).encode()

    assert parse_line(raw, SPEC).outcome == outcome


@pytest.mark.parametrize("custom_id", [None, 5, "", "x", KEY.hex()[:-1], KEY.hex().upper(), KEY.hex() + "\n", "g" * 64])
def test_a_line_that_names_no_text_of_ours_is_nobodys(custom_id: object) -> None:
    found = parse_line(line(body(), key=custom_id), SPEC)

    assert (found.outcome, found.key, found.vector) == ("unnamed", None, None)


def test_the_end_of_a_file_is_torn_or_whole() -> None:
    whole = line(body())

    assert parse_line(whole, SPEC, last=True).outcome == "embedded"
    assert {parse_line(whole[:n], SPEC, last=True).outcome for n in range(1, len(whole))} == {"torn"}
    assert parse_line(whole[:-9], SPEC).outcome == "garbled"
    assert parse_line(b" \r", SPEC, last=True).outcome == "blank"


@pytest.mark.parametrize("raw", [b"[1]", b"null", b'"x"', b"5", b"[" * 100_000, b"\xff\xfe", b"{", b"\x80" * 9, b"?"])
def test_a_line_that_is_none_is_garbled(raw: bytes) -> None:
    assert parse_line(raw, SPEC).outcome == "garbled"


def test_what_only_looks_like_the_end_of_a_line_ends_none() -> None:
    raw = line(body(), note="a\u2028b\u0085c").decode("unicode_escape").encode("utf-8")
    splitter = Splitter()

    assert [parse_line(one, SPEC).outcome for one in splitter.feed(raw + b"\r\n")] == ["embedded"]


def test_what_a_line_says_can_be_stored_and_holds_no_key() -> None:
    told = {"error": {"message": "bad \0 \ud800 key sk-proj-abcdefgh12345 " + "x" * 9999}}

    message = parse_line(line(told, status=400), SPEC).message

    assert "\0" not in message
    assert "abcdefgh" not in message
    assert len(message.encode("utf-8")) <= 500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(VECTOR),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    list(json.loads(line())) + list(body()) + ["status_code", "body", "index", "embedding", "total_tokens"]
)


@given(st.recursive(json_values, lambda inner: st.dictionaries(names, inner, max_size=5), max_leaves=20))
def test_no_json_makes_the_reader_fail_or_becomes_a_vector_that_is_none(value: object) -> None:
    found = parse_line(json.dumps(value).encode(), SPEC)

    assert (found.outcome == "embedded") == (found.vector is not None)
    assert found.tokens is None or found.tokens >= 0


@given(st.data())
def test_no_damage_makes_another_vector(data: st.DataObject) -> None:
    """Whatever is wrong in the line is found, unless it is in the numbers themselves."""
    value = json.loads(line(body(coded(VECTOR))))
    parts: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        for name in part if isinstance(part, dict) else range(len(part)):
            parts.append((part, name))
            if isinstance(part[name], dict | list):
                walk(part[name])

    walk(value)
    part, name = data.draw(st.sampled_from(range(len(parts))).map(parts.__getitem__))
    part[name] = data.draw(json_values)

    found = parse_line(json.dumps(value).encode(), SPEC)

    assert found.vector is None or found.vector.tolist() == VECTOR


@given(st.none() | st.integers() | st.booleans() | st.floats() | st.text(max_size=3))
def test_billed_tokens_are_a_number_or_are_not_known(usage: object) -> None:
    for given_so in ({"total_tokens": usage}, {"prompt_tokens": usage}, usage):
        tokens = parse_line(line(body(usage=given_so)), SPEC).tokens
        whole = isinstance(usage, int) and not isinstance(usage, bool) and usage >= 0
        assert tokens == (usage if whole and isinstance(given_so, dict) else None)


# -- in its batch ----------------------------------------------------------------------------------------------------


def test_a_line_is_placed_by_what_its_batch_still_waits_for() -> None:
    vector = parse_line(line(body()), SPEC)

    assert placed(vector, wanted=True, stored=False) is vector
    assert placed(vector, wanted=False, stored=True) == Line("duplicate", KEY, None, 7)
    assert placed(vector, wanted=False, stored=False) == Line("unknown", KEY, None, 7)
    nobodys = parse_line(line(body(), key=None), SPEC)
    assert placed(nobodys, wanted=False, stored=False) is nobodys
