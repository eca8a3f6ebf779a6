"""BM25 as sparse vectors: the weights of Qdrant's own `qdrant/bm25`, computed here, without a download.

The inverse document frequency is not in the weights: the collection applies it (`modifier=idf`), because only it knows
every document. Documents and queries must be encoded with the same configuration, so it is stored with the collection.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import qdrant_edge

from pipeline.document import encodable
from pipeline.errors import InvalidSettings

# Written out in full: a later release of the engine may change its own defaults, a stored collection may not.
DEFAULTS: dict[str, Any] = {
    "language": "english",  # its stop words and its stemmer; "none" for neither
    "tokenizer": "word",
    "k": 1.2,  # saturation of the term frequency
    "b": 0.75,  # share of the document's length in the weight
    "avg_len": 256.0,  # words of an average document; the value of the server's qdrant/bm25
    "lowercase": True,
    "ascii_folding": False,
    "min_token_len": None,
    "max_token_len": None,
}
TOKENIZERS = {
    "word": qdrant_edge.TokenizerType.Word,
    "whitespace": qdrant_edge.TokenizerType.Whitespace,
    "prefix": qdrant_edge.TokenizerType.Prefix,
    "multilingual": qdrant_edge.TokenizerType.Multilingual,
}
# Written without spaces between words: the word tokenizer would take whole sentences for one word.
UNSPACED = frozenset({"chinese", "zh", "japanese", "ja"})


@dataclass(frozen=True, slots=True)
class SparseVector:
    """indices: term ids (unsigned 32-bit), each once, ascending. values: the weight of each, positive."""

    indices: list[int]
    values: list[float]


class SparseEncoder:
    """Encodes documents and queries alike, as the configuration says.

    config: any of the keys of DEFAULTS; what is left out has its default (for a language that is written without
    spaces the multilingual tokenizer). Raises InvalidSettings for unknown keys and values that cannot be.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        given = dict(config or {})
        unknown = sorted(set(given) - set(DEFAULTS))
        if unknown:
            raise InvalidSettings(f"BM25 has no setting {', '.join(unknown)}; it has {', '.join(DEFAULTS)}")
        if given.get("language") in UNSPACED:
            given.setdefault("tokenizer", "multilingual")
        self._config = {**DEFAULTS, **given}
        self._model = _model(self._config)

    @property
    def config(self) -> dict[str, Any]:
        """The whole configuration as JSON values; an encoder made from it gives the same vectors."""
        return dict(self._config)

    def documents(self, texts: Sequence[str]) -> list[SparseVector]:
        """One vector a text, weighted by term frequency and length; without indices where a text has no terms."""
        return [_vector(self._model.embed_document(encodable(text))) for text in texts]

    def query(self, text: str) -> SparseVector:
        """Every term once, weight 1; without indices where the query has no terms but stop words."""
        return _vector(self._model.embed_query(encodable(text)))


def _model(config: dict[str, Any]) -> Any:
    tokenizer = TOKENIZERS.get(config["tokenizer"])
    if tokenizer is None:
        raise InvalidSettings(f"BM25 has no tokenizer {config['tokenizer']!r}; it has {', '.join(TOKENIZERS)}")
    options = {key: value for key, value in config.items() if value is not None} | {"tokenizer": tokenizer}
    if config["language"] == "none":  # the engine has no such language: it is the absence of both
        options.pop("language")
        options |= {"stemmer": qdrant_edge.DisabledStemmer(), "stopwords": qdrant_edge.StopwordsSet()}
    try:
        return qdrant_edge.Bm25(qdrant_edge.Bm25Config(**options))
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidSettings(f"BM25 cannot be configured with {config}: {error}") from None


def _vector(found: Any) -> SparseVector:
    """Sorted, each index once: two terms with the same 32-bit hash are one term with the sum of their weights."""
    weights: defaultdict[int, float] = defaultdict(float)
    for index, value in zip(found.indices, found.values, strict=True):
        weights[int(index)] += float(value)
    indices = sorted(weights)
    return SparseVector(indices, [weights[index] for index in indices])
