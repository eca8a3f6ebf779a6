"""Haystack's side of a measurement; runs in the peers' environment: `python peer_haystack.py JOB ANSWER`.

A Pipeline of TextFileToDocument, DocumentSplitter, its FastEmbed integration and a writer into InMemoryDocumentStore,
each at its defaults: chunks of 200 words, embedded by 256.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from haystack import Document, Pipeline  # type: ignore[import-not-found, unused-ignore]
from haystack.components.converters import TextFileToDocument  # type: ignore[import-not-found, unused-ignore]
from haystack.components.preprocessors import DocumentSplitter  # type: ignore[import-not-found, unused-ignore]
from haystack.components.writers import DocumentWriter  # type: ignore[import-not-found, unused-ignore]
from haystack.document_stores.in_memory import InMemoryDocumentStore  # type: ignore[import-not-found, unused-ignore]
from haystack_integrations.components.embedders.fastembed import (  # type: ignore[import-not-found, unused-ignore]
    FastembedDocumentEmbedder,
)

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
WARMING = 8


def main(job: dict[str, Any]) -> dict[str, Any]:
    embedder = FastembedDocumentEmbedder(model=MODEL, progress_bar=False, parallel=job["workers"] or None)
    warming = [Document(content="a few words to warm everything with. " * 20)] * WARMING
    embedder.run(DocumentSplitter().run(warming)["documents"])
    chunks = json.loads(Path(job["chunks"]).read_text("utf-8"))
    store = InMemoryDocumentStore()
    pipeline = Pipeline()
    stages = [("embedder", embedder), ("writer", DocumentWriter(store))]
    if job["mode"] == "defaults":
        stages = [("converter", TextFileToDocument()), ("splitter", DocumentSplitter()), *stages]
    for name, stage in stages:
        pipeline.add_component(name, stage)
    for (name, _), (following, _) in pairwise(stages):
        pipeline.connect(name, following)
    started, cpu = time.perf_counter(), sum(os.times()[:4])
    if job["mode"] == "defaults":
        pipeline.run({"converter": {"sources": sorted(Path(job["pages"]).iterdir())}})
    else:
        pipeline.run({"embedder": {"documents": [Document(content=text) for text in chunks]}})
    seconds, cpu = time.perf_counter() - started, sum(os.times()[:4]) - cpu
    written = store.filter_documents()
    assert all(document.embedding for document in written)
    return {"seconds": seconds, "cpu_seconds": cpu, "texts": [("", document.content) for document in written]}


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text("utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(answer), "utf-8")
