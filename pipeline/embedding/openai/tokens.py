"""How many tokens a text has, counted here: exactly where the tokenizer is known, else never too few."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline import resident
from pipeline.document import encodable
from pipeline.embedding.openai.spec import NATIVE_DIMENSIONS
from pipeline.errors import InvalidSettings
from pipeline.settings import OpenAISettings

# Of all embedding models of OpenAI.
_ENCODING = "cl100k_base"
_ENCODING_BYTES = 100 * resident.MIB
# A tokenizer that works on bytes never makes more tokens than there are; most models add one before and one after.
_SPECIAL_TOKENS = 2
# Texts tokenised in one call.
_COUNT_BATCH = 512

_loading = threading.Lock()


def counts_exactly(settings: OpenAISettings, model: str) -> bool:
    """Whether counts are those that the server will find; else they are an upper bound."""
    return settings.tokenizer is not None or model in NATIVE_DIMENSIONS


def count_tokens(texts: Sequence[str], settings: OpenAISettings, model: str) -> list[int]:
    """The tokens of each text, special ones included; nothing is truncated.

    By `openai.tokenizer` where it is set; by OpenAI's own table for its models; else UTF-8 bytes (and two), which are
    never fewer than the tokens. Raises InvalidSettings where the tokenizer cannot be read.
    """
    prepared = [encodable(text) for text in texts]
    if settings.tokenizer is not None:
        return _by_file(prepared, settings.tokenizer)
    if model in NATIVE_DIMENSIONS:
        if not prepared:
            return []
        encoding = _openai_encoding()
        return [len(encoding.encode_ordinary(text)) for text in prepared]
    return [len(text.encode()) + _SPECIAL_TOKENS for text in prepared]


def _by_file(texts: Sequence[str], path: Path) -> list[int]:
    counts: list[int] = []
    for start in range(0, len(texts), _COUNT_BATCH):
        encodings = _tokenizer(path).encode_batch_fast(list(texts[start : start + _COUNT_BATCH]))
        counts += [len(encoding) for encoding in encodings]
    return counts


def _openai_encoding() -> Any:
    with _loading:
        return _load_encoding()


@lru_cache(maxsize=1)
def _load_encoding() -> Any:
    with warnings.catch_warnings():
        # It reads its table by a function that Python means to drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        encoding = import_module("bpe_openai").get_encoding(_ENCODING)
    resident.hold(_ENCODING, _ENCODING_BYTES)
    return encoding


def _tokenizer(path: Path) -> Any:
    with _loading:
        return _load_tokenizer(path)


@lru_cache(maxsize=4)
def _load_tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises nothing more exact
        raise InvalidSettings(f"MILLRACE_OPENAI__TOKENIZER: {path} is no tokenizer.json: {error}") from None
    # The file carries truncation and padding of its own; both would make every count wrong.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
