"""A model in a directory of one's own: what its files say about it."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.document import digest
from pipeline.embedding.base import ModelSpec
from pipeline.embedding.catalogue import Loaded, load_from, prefixes_of
from pipeline.errors import ModelUnavailable

MODEL_FILES = ("model.onnx", "onnx/model.onnx", "model_optimized.onnx", "onnx/model_optimized.onnx")
POOLING_FILE = "1_Pooling/config.json"
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last_token"}

_registering = threading.Lock()


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A directory that was read: where it is, which of its files is the model, what it describes."""

    path: Path
    model_file: str
    spec: ModelSpec


def read(path: Path, name: str) -> ModelDirectory:
    """What a directory in the layout of sentence-transformers holds.

    An ONNX file (`model.onnx`, `onnx/model.onnx`, or the only one there is), `tokenizer.json`, `tokenizer_config.json`,
    `config.json`, `1_Pooling/config.json`, and `sentence_bert_config.json` where the usable length is under the
    tokenizer's. Revision: sha256 over the model and the tokenizer, computed again only when one of them changed.
    Raises ModelUnavailable, naming the file, where something is missing.
    """
    model_file = _model_file(path)
    tokenizer_config = _json(path / "tokenizer_config.json")
    limits = [
        _json(path / "sentence_bert_config.json", optional=True).get("max_seq_length"),
        tokenizer_config.get("model_max_length"),
        tokenizer_config.get("max_length"),
    ]
    usable = [limit for limit in limits if isinstance(limit, int) and 0 < limit < sys.maxsize]
    if not usable:
        raise ModelUnavailable(f"{path / 'tokenizer_config.json'} names no model_max_length; add it")
    pooling_config = _json(path / POOLING_FILE)
    poolings = [pooling for key, pooling in POOLINGS.items() if pooling_config.get(key)]
    if len(poolings) != 1:
        raise ModelUnavailable(f"{path / POOLING_FILE} must set exactly one of {', '.join(POOLINGS)}")
    dimensions = pooling_config.get("word_embedding_dimension") or _json(path / "config.json").get("hidden_size")
    if not isinstance(dimensions, int):
        raise ModelUnavailable(f"{path / POOLING_FILE} names no word_embedding_dimension; add it")
    query, passage = prefixes_of(name)
    spec = ModelSpec(
        name=name,
        provider="local",
        dimensions=dimensions,
        max_tokens=min(usable),
        pooling=poolings[0],
        normalize=True,
        precision="native",
        revision=_revision(path, model_file),
        query_prefix=query,
        passage_prefix=passage,
    )
    return ModelDirectory(path, model_file, spec)


def load(model: ModelDirectory, cache_dir: Path, threads: int) -> Loaded:
    """Loads the model; FastEmbed knows it from then on by what it is, so that no name stands for two models."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    spec = model.spec
    registered = f"millrace/{digest(spec.revision, spec.pooling, str(spec.dimensions), model.model_file).hex()}"
    with _registering:
        if registered.lower() not in {known["model"].lower() for known in TextEmbedding.list_supported_models()}:
            TextEmbedding.add_custom_model(
                registered,
                pooling=PoolingType(spec.pooling.upper()),
                normalization=True,
                sources=ModelSource(hf=registered),  # never asked: the path is given
                dim=spec.dimensions,
                model_file=model.model_file,
            )
    return load_from(registered, model.path, spec, cache_dir, threads)


def _model_file(path: Path) -> str:
    for name in MODEL_FILES:
        if (path / name).is_file():
            return name
    found = sorted(str(file.relative_to(path)) for file in path.glob("**/*.onnx"))
    if len(found) == 1:
        return found[0]
    what = f"several ({', '.join(found)}), none of them called model.onnx" if found else "none"
    raise ModelUnavailable(f"{path} must hold one ONNX file and has {what}; see MILLRACE_EMBEDDING__PATH")


def _json(file: Path, *, optional: bool = False) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise ModelUnavailable(f"{file} is missing; see MILLRACE_EMBEDDING__PATH") from None
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{file} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ModelUnavailable(f"{file} is not a JSON object")
    return content


def _revision(path: Path, model_file: str) -> str:
    """sha256 over what decides the vectors: the model with its external data, and the tokenizer."""
    model = path / model_file
    files = [*sorted(model.parent.glob(f"{model.name}*")), path / "tokenizer.json"]
    sha = hashlib.sha256()
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:
            raise ModelUnavailable(f"{file} is missing or cannot be read: {error}") from None
        sha.update(_file_digest(file, stat.st_size, stat.st_mtime_ns))
    return sha.hexdigest()


@lru_cache(maxsize=64)
def _file_digest(file: Path, _size: int, _mtime_ns: int) -> bytes:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()
