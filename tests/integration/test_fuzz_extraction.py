"""Whatever bytes come: text, or an error that names the document. Nothing hangs, crashes, or passes for text.

MILLRACE_FUZZ_INPUTS says how many inputs each test tries, by default a hundred; with MILLRACE_FUZZ_RANDOM every
run tries others.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mutations import mutated
from office_files import seeds
from pdf_files import make_pdf

from pipeline import media
from pipeline.chunking import Chunker
from pipeline.errors import ExtractionFailed, ExtractionOverLimit, InvalidDocument
from pipeline.extract import Extracted, Raw
from pipeline.extract.isolation.extractor import Extractor
from pipeline.extract.text import clean
from pipeline.settings import ChunkingSettings, ExtractionSettings

INPUTS = int(os.environ.get("MILLRACE_FUZZ_INPUTS", "100"))
LIMITS = ExtractionSettings(cpu_seconds=5.0, memory_mb=800, max_text_bytes=8_000_000)
MAX_TOKENS = 64
pytestmark = pytest.mark.timeout(600 + INPUTS // 5)

HTML = b"""<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>A page</title>
<meta name="author" content="Ann"><script>var a = "<p>";</script></head><body><nav><ul><li><a href="/">Home</a></li>
</ul></nav><main><h1>Heading</h1><p>Some <b>bold</b> &amp; <code>x &lt; y</code> text.</p><table><tr><th>Name</th>
<td rowspan="2">Value</td></tr></table><ul><li>one<ol start="3"><li>two</li></ol></li></ul><pre>  a
    b</pre><blockquote>said</blockquote><a href="x"><img alt="picture" src="y"></a></main>
<footer>foot</footer></body></html>"""
MARKDOWN = b"""---\ntitle: Notes\ntags: [a, b]\n---\n\n# One\n\nText with a [link](http://x).\n\n- a\n  - b\n\n> quote

| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nprint(1)\n```\n\nTwo\n---\n\nlast words\n"""
TEXTS = {
    "seed.txt": "Grüße, words.\n\nMore words — 日本語 and 🍞.\n".encode() * 3,
    "utf16.txt": "Some words in sixteen bits.\n".encode("utf-16"),
    "seed.json": b'{"name": "a value", "list": [1, 2, {"deep": null}]}',
    "seed.xml": b'<?xml version="1.0" encoding="iso-8859-1"?><a b="c"><d>text</d><!-- comment --></a>',
    "seed.html": HTML,
    "seed.md": MARKDOWN,
    "seed.pdf": make_pdf([["Page one", "with two lines."], ["Page two"]], title="A title"),
    "locked.pdf": make_pdf([["Secret"]], password="word"),
}
SEEDS = {**seeds(), **TEXTS}
NAMES = [*SEEDS, "no-extension", "a.bin", "x.unknown"]
TYPES = [None, None, None, "text/plain", "text/html; charset=utf-16", *sorted(media.FORMATS)]

fuzzed = hypothesis_settings(
    max_examples=INPUTS,
    deadline=None,
    database=None,
    derandomize="MILLRACE_FUZZ_RANDOM" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


def count_tokens(texts: Sequence[str]) -> list[int]:
    return [len(re.findall(r"\w{1,4}|\S", text)) + 2 for text in texts]


CHUNKER = Chunker(ChunkingSettings(), count_tokens, MAX_TOKENS)


@pytest.fixture(scope="module")
def extractor() -> Iterator[Extractor]:
    made = Extractor(LIMITS)
    yield made
    made.close()


def check(extractor: Extractor, document: Raw) -> None:
    (outcome,) = extractor.extract_many([document], lambda: None)
    if isinstance(outcome, InvalidDocument):
        check_error(outcome, document)
    else:
        check_text(outcome)
        check_chunks(outcome)


def check_error(error: InvalidDocument, document: Raw) -> None:
    assert document.uri in str(error)
    assert len(str(error)) < 2000
    assert not isinstance(error, ExtractionOverLimit), f"{error}: {len(document.data)} bytes"
    assert not (isinstance(error, ExtractionFailed) and re.search("broke down|process that read it", str(error))), error


def check_text(found: Extracted) -> None:
    assert found.text.strip()
    assert found.text == clean(found.text)
    assert found.title == " ".join(clean(found.title).split())
    assert list(found.pages) == sorted(found.pages)
    assert all(0 <= page <= len(found.text) for page in found.pages)
    check_value(found.metadata)


def check_value(value: object) -> None:
    """Postgres takes it as JSON."""
    match value:
        case str():
            assert value == clean(value)
        case dict():
            for key, inner in value.items():
                assert key == clean(key)
                check_value(inner)
        case list():
            for inner in value:
                check_value(inner)
        case _:
            assert value is None or isinstance(value, bool | int | float)


def check_chunks(found: Extracted) -> None:
    (chunks,) = CHUNKER.chunk_many([(found.text, found.markup)])
    assert chunks
    assert all(chunk.text.strip() and chunk.tokens <= MAX_TOKENS for chunk in chunks)
    whole = "".join("".join(chunk.text.split()) for chunk in chunks)
    assert whole == "".join(found.text.split())


@fuzzed
@given(
    name=st.sampled_from(sorted(SEEDS)),
    seed=st.integers(0, 2**64 - 1),
    told=st.sampled_from(TYPES),
    honest=st.booleans(),
)
def test_a_damaged_file_is_read_or_refused_by_name(
    extractor: Extractor, name: str, seed: int, told: str | None, honest: bool
) -> None:
    chance = random.Random(seed)
    data = mutated(SEEDS[name], list(SEEDS.values()), chance)
    check(extractor, Raw(data, None if honest else told, f"damaged-{seed}-{name}"))


SIGNS = ["text", "&lt;", "&#0;", "<", ">", "\n", " ", "\t", "# ", "- ", "> ", "```", "|", "*", "\u2028", "\x85", "🍞"]
LINE_TAGS = ["a", "b", "br", "title", "script", "style", "svg", "select", "template", "!--"]
BLOCK_TAGS = ["div", "p", "ul", "ol", "li", "pre", "nav", "main", "h1", "blockquote", "dl", "dt", "dd"]
TABLE_TAGS = ["table", "tr", "td"]
MARKUP = st.recursive(
    st.sampled_from(SIGNS) | st.text(max_size=8),
    lambda inner: st.builds(
        lambda tag, parts, closed: f"<{tag}>" + "".join(parts) + (f"</{tag}>" if closed else ""),
        st.sampled_from([*LINE_TAGS, *BLOCK_TAGS, *TABLE_TAGS]),
        st.lists(inner, max_size=4),
        st.booleans(),
    ),
    max_leaves=30,
)
MADE_UP = (
    st.binary(max_size=2000)
    | st.text(max_size=500).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.text(st.characters(), max_size=300).map(lambda text: text.encode("utf-16", "surrogatepass"))
    | st.lists(MARKUP, max_size=10).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))
    | st.builds(lambda seed, rest: seed[:8] + rest, st.sampled_from(list(SEEDS.values())), st.binary(max_size=500))
)


@fuzzed
@given(data=MADE_UP, name=st.sampled_from(NAMES), told=st.sampled_from(TYPES))
def test_made_up_bytes_under_any_name_and_type_are_read_or_refused_by_name(
    extractor: Extractor, data: bytes, name: str, told: str | None
) -> None:
    check(extractor, Raw(data, told, f"made-up-{name}"))
