"""Chunks are whole, within the model's limit, under their headings, and the same every time."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline import chunking
from pipeline.chunking import LONG_TEXT, Chunker
from pipeline.document import Chunk
from pipeline.embedding import bundled
from pipeline.errors import InvalidSettings
from pipeline.settings import ChunkingSettings

MODEL_LIMIT = 256
SPECIAL_TOKENS = 2

PROSE = (
    "The mill turns as long as there is water in the race. A gate decides how much of it reaches the wheel, and the "
    "miller opens it in the morning, when the first carts come down from the farms. Whoever comes late waits. "
)


class _Counter:
    """The real tokenizer, and how often it was asked."""

    def __init__(self) -> None:
        directory = bundled.weights_directory()
        assert directory is not None
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.calls = 0

    def __call__(self, texts: Sequence[str]) -> list[int]:
        self.calls += 1
        return [len(encoding) for encoding in self.tokenizer.encode_batch_fast(list(texts))]


@pytest.fixture(scope="module")
def count() -> _Counter:
    return _Counter()


def chunker(count: _Counter, max_tokens: int | None = None, overlap_tokens: int = 0) -> Chunker:
    return Chunker(ChunkingSettings(max_tokens=max_tokens, overlap_tokens=overlap_tokens), count, MODEL_LIMIT)


def dense(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())


def covered(source: str, chunks: Sequence[Chunk]) -> bool:
    """Whether chunks that may overlap, laid end to end over the source, leave nothing but white space uncovered."""
    wanted, position = dense(source), 0
    for chunk in chunks:
        text = dense(chunk.text)
        start = wanted.rfind(text, 0, position + len(text))
        if start < 0:
            return False
        position = max(position, start + len(text))
    return position == len(wanted)


FRAGMENTS = st.one_of(
    st.sampled_from(
        [
            "# Guide\n\n",
            "## Install\n",
            "Setext\n======\n\n",
            "```python\n",
            "```\n",
            "- item\n",
            "    indented\n",
            "| a | b |\n|---|---|\n",
            "> quoted ",
            "\n",
            "\n\n\n",
            "\r\n",
            " ",
            "\t",
            "你好，世界。",
            "👨\u200d👩\u200d👧",
            "e\u0301",
            "\x1c",
            "\u200b",
            "\ud800",
            "x" * 300,
            "supercalifragilistic ",
            "[link](http://a.b/c_d) ",
            "`code` ",
        ]
    ),
    st.text(max_size=40),
    st.text(alphabet="abc de.\n", max_size=200),
)


TEXTS = st.lists(st.tuples(FRAGMENTS, st.integers(1, 12)), max_size=12).map(
    lambda parts: "".join(fragment * times for fragment, times in parts)
)
MARKUP = st.sampled_from(["markdown", "plain"])
LIMITS = st.sampled_from([8, 13, 32, 256])
OVERLAPS = st.sampled_from([0, 0, 3, 7])


def check_chunks(count: _Counter, text: str, markup: str, max_tokens: int, overlap: int) -> None:
    cut = chunker(count, max_tokens, overlap)

    chunks = cut.chunk_many([(text, markup)])[0]

    seen = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert covered(seen, chunks)
    assert overlap or "".join(dense(chunk.text) for chunk in chunks) == dense(seen)
    assert [chunk.tokens for chunk in chunks] == (count([chunk.text for chunk in chunks]) if chunks else [])
    assert all(chunk.text.strip() and chunk.tokens <= max_tokens for chunk in chunks)
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
    assert cut.chunk_many([("elsewhere", "plain"), (text, markup)])[1] == chunks


@hypothesis_settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, markup=MARKUP, max_tokens=LIMITS, overlap=OVERLAPS)
def test_no_character_is_lost_and_no_chunk_is_empty_or_over_the_limit(
    count: _Counter, text: str, markup: str, max_tokens: int, overlap: int
) -> None:
    check_chunks(count, text, markup, max_tokens, overlap)


@hypothesis_settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, markup=MARKUP, overlap=OVERLAPS)
def test_long_texts_and_lines_lose_nothing_where_they_are_cut_in_steps(
    count: _Counter, text: str, markup: str, overlap: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:  # what is long is made short, so that a small example has many steps
        patch.setattr(chunking, "LONG_TEXT", 100)
        patch.setattr(chunking, "LONG_LINE", 50)
        patch.setattr(chunking, "_LONG_LINES", re.compile(r"[^\r\n]{51,}"))

        check_chunks(count, text, markup, 8, overlap)


def test_documents_are_chunked_alike_alone_and_together_and_counted_together(count: _Counter) -> None:
    texts = [(PROSE * n, "markdown") for n in range(1, 40)]
    alone = [chunker(count).chunk_many([text])[0] for text in texts]
    count.calls = 0

    together = chunker(count).chunk_many(texts)

    assert together == alone
    assert count.calls <= 6


def test_prose_is_cut_at_sentences_and_fills_most_of_the_limit(count: _Counter) -> None:
    chunks = chunker(count).chunk_many([(PROSE * 30, "plain")])[0]

    assert all(chunk.text.endswith(".") for chunk in chunks)
    assert sum(chunk.tokens for chunk in chunks[:-1]) / len(chunks[:-1]) > 0.6 * MODEL_LIMIT


def test_a_chunk_knows_the_headings_that_it_stands_under(count: _Counter) -> None:
    text = (
        f"# Guide\n\n{PROSE * 5}\n\n## Install ##\n\n{PROSE * 5}\n\n### On **Linux** with [uv](https://x.y)\n\n"
        f"{PROSE * 5}\n\n```sh\n# no heading, a comment\n{'run this ' * 150}\n```\n\nUse\n---\n\n{PROSE * 5}\n\n"
        f"Appendix\n===\n\n{PROSE * 5}"
    )

    chunks = chunker(count).chunk_many([(text, "markdown")])[0]

    sections = [section for section, _ in itertools.groupby(chunk.section for chunk in chunks)]
    assert sections == [
        "Guide",
        "Guide > Install",
        "Guide > Install > On Linux with uv",
        "Guide > Use",
        "Appendix",
    ]


def test_text_before_the_first_heading_and_plain_text_have_no_section(count: _Counter) -> None:
    text = f"{PROSE * 8}\n\n# Later\n\n{PROSE * 8}"

    markdown, plain = chunker(count).chunk_many([(text, "markdown"), (text, "plain")])

    assert markdown[0].section == ""
    assert markdown[-1].section == "Later"
    assert {chunk.section for chunk in plain} == {""}


def test_a_heading_is_not_left_alone(count: _Counter) -> None:
    text = "".join(f"## Part {n}\n\n{PROSE * 3}{'word ' * n}\n\n" for n in range(0, 60, 3))

    chunks = chunker(count).chunk_many([(text, "markdown")])[0]

    assert all(PROSE[:20] in chunk.text or len(chunk.text) > 100 for chunk in chunks)


def test_a_heading_takes_half_of_a_text_that_fills_the_limit(count: _Counter) -> None:
    heading = "## " + " ".join(f"{n}" for n in range(10, 32))
    text = " ".join([*(f"{n % 90 + 10}" for n in range(225)), *["internationalization"] * 9])
    assert count([text])[0] <= MODEL_LIMIT < count([heading + text])[0]

    chunks = chunker(count).chunk_many([(f"{heading}\n\n{text}", "markdown")])[0]

    assert chunks[0].text.startswith(f"{heading}\n\n10 11 12")
    assert len(chunks) == 2
    assert {chunk.section for chunk in chunks} == {heading.removeprefix("## ")}


def test_a_rest_takes_half_of_the_chunk_before_it(count: _Counter) -> None:
    full = " ".join(f"{n % 90 + 10}" for n in range(250))
    rest = "internationalization " * 8
    assert count([full, rest, full + rest])[2] > MODEL_LIMIT

    chunks = chunker(count).chunk_many([(f"{full}\n\n{rest}", "plain")])[0]

    assert len(chunks) == 2
    assert min(chunk.tokens for chunk in chunks) > MODEL_LIMIT // 4
    assert "".join(dense(chunk.text) for chunk in chunks) == dense(full + rest)


def test_a_change_in_one_place_leaves_most_chunks_as_they_are(count: _Counter) -> None:
    parts = [f"## Part {n}\n\n{PROSE * (n % 5 + 1)}The number is {n}.\n\n" for n in range(60)]
    before = chunker(count).chunk_many([("".join(parts), "markdown")])[0]
    parts[10] += "Something new was written here, between two old parts.\n\n"

    after = chunker(count).chunk_many([("".join(parts), "markdown")])[0]

    new = {chunk.text for chunk in after} - {chunk.text for chunk in before}
    assert 1 <= len(new) <= len(after) // 10


def test_neighbours_share_at_most_the_overlap_and_begin_at_a_word(count: _Counter) -> None:
    overlap = 24
    text = " ".join(f"Wheel {n} turns in the mill of village {n}." for n in range(300))

    without = chunker(count).chunk_many([(text, "plain")])[0]
    chunks = chunker(count, overlap_tokens=overlap).chunk_many([(text, "plain")])[0]

    assert len(chunks) > len(without)
    words = text.split()
    for before, after in itertools.pairwise(chunks):
        shared = next(n for n in range(len(after.text), -1, -1) if before.text.endswith(after.text[:n]) and n != 1)
        assert overlap // 2 < count([after.text[:shared]])[0] - SPECIAL_TOKENS <= overlap
        assert after.text.split()[0] in words
        assert before.text.split()[-1] in words


@pytest.mark.parametrize("text", ["", " \n\t ", "\x1c\x1d", "\u3000"])
def test_white_space_has_no_chunks(count: _Counter, text: str) -> None:
    assert chunker(count).chunk_many([(text, "markdown"), (text, "plain")]) == [[], []]


@pytest.mark.parametrize("line", ["a bc def ", "x", "你好世界", "1f8a9c0+/"])
def test_a_line_of_megabytes_is_cut_in_seconds(count: _Counter, line: str) -> None:
    text = line * (1_000_000 // len(line))
    started = time.process_time()

    chunks = chunker(count).chunk_many([(text, "markdown")])[0]

    assert time.process_time() - started < 30  # the splitter alone needs minutes: its time grows with the square
    assert "".join(dense(chunk.text) for chunk in chunks) == dense(text)
    assert max(chunk.tokens for chunk in chunks) <= MODEL_LIMIT


def test_a_long_text_is_cut_in_steps_that_do_not_show(count: _Counter) -> None:
    parts = [f"## Part {n}\n\n{PROSE * 4}The number is {n}.\n\n" for n in range(400)]
    text = f"{''.join(parts)}{'0123456789' * 2_000}\n\n{''.join(parts)}"
    (alone,) = chunker(count).chunk_many([("".join(parts[:20]), "markdown")])

    (chunks,) = chunker(count).chunk_many([(text, "markdown")])

    assert len(text) > LONG_TEXT
    assert "".join(dense(chunk.text) for chunk in chunks) == dense(text)
    assert chunks[: len(alone)] == alone
    assert {n for _, n in Counter(chunk.text for chunk in chunks if "number is" in chunk.text).items()} == {2}


def test_ten_megabytes_in_one_line_are_cut() -> None:
    text = "".join(f"{n:08x}" for n in range(1_250_000))

    chunks = Chunker(ChunkingSettings(), lambda texts: [len(text) // 4 + 2 for text in texts], 256).chunk_many(
        [(text, "plain")]
    )[0]

    assert len(text) == 10_000_000
    assert "".join(chunk.text for chunk in chunks) == text


def test_a_limit_over_the_models_is_refused_with_both_named(count: _Counter) -> None:
    with pytest.raises(InvalidSettings, match=r"MAX_TOKENS is 300, but the embedding model takes 256"):
        chunker(count, max_tokens=300)


def test_an_overlap_as_large_as_the_chunk_is_refused(count: _Counter) -> None:
    with pytest.raises(InvalidSettings, match=r"OVERLAP_TOKENS is 64 and must be smaller than the 64 tokens"):
        chunker(count, max_tokens=64, overlap_tokens=64)


def test_an_overlap_just_under_the_limit_still_moves_on(count: _Counter) -> None:
    chunks = chunker(count, max_tokens=64, overlap_tokens=63).chunk_many([(PROSE * 10, "plain")])[0]

    assert covered(PROSE * 10, chunks)
    assert max(chunk.tokens for chunk in chunks) <= 64


def test_a_limit_that_the_models_own_tokens_fill_is_refused() -> None:
    cut = Chunker(ChunkingSettings(max_tokens=8), lambda texts: [len(text) + 7 for text in texts], 256)

    with pytest.raises(InvalidSettings, match="the model itself adds 7"):
        cut.chunk_many([("some text", "plain")])


def test_a_character_over_the_limit_is_refused_and_not_cut_for_ever() -> None:
    cut = Chunker(ChunkingSettings(max_tokens=8), lambda texts: [9 * len(text) for text in texts], 256)

    with pytest.raises(InvalidSettings, match="one character takes 9"):
        cut.chunk_many([("some text", "plain")])


def test_the_recipe_names_what_decides_the_chunks(count: _Counter) -> None:
    recipe = chunker(count, overlap_tokens=10).recipe()

    assert recipe["max_tokens"] == MODEL_LIMIT
    assert recipe["overlap_tokens"] == 10
    assert recipe["chunker"].startswith("semantic-text-splitter ")
    assert recipe != chunker(count).recipe()
