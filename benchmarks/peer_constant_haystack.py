"""Haystack with an embedding that costs nothing; runs in the peers' environment: `python FILE JOB ANSWER`.

TextFileToDocument, DocumentSplitter, an embedder that gives every document the same vector, InMemoryDocumentStore.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from haystack import Document, Pipeline, component  # type: ignore[import-not-found, unused-ignore]
from haystack.components.converters import TextFileToDocument  # type: ignore[import-not-found, unused-ignore]
from haystack.components.preprocessors import DocumentSplitter  # type: ignore[import-not-found, unused-ignore]
from haystack.components.writers import DocumentWriter  # type: ignore[import-not-found, unused-ignore]
from haystack.document_stores.in_memory import InMemoryDocumentStore  # type: ignore[import-not-found, unused-ignore]

VECTOR = [384**-0.5] * 384


@component  # type: ignore[untyped-decorator, unused-ignore]
class ConstantEmbedder:
    """Every document gets the same vector."""

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator, unused-ignore]
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        for document in documents:
            document.embedding = VECTOR
        return {"documents": documents}


def main(job: dict[str, Any]) -> dict[str, Any]:
    DocumentSplitter().run([Document(content="a few words to warm everything with. " * 20)])
    store = InMemoryDocumentStore()
    stages = [
        ("converter", TextFileToDocument()),
        ("splitter", DocumentSplitter()),
        ("embedder", ConstantEmbedder()),
        ("writer", DocumentWriter(store)),
    ]
    pipeline = Pipeline()
    for name, stage in stages:
        pipeline.add_component(name, stage)
    for (name, _), (following, _) in pairwise(stages):
        pipeline.connect(name, following)
    files = sorted(path for path in Path(job["pages"]).rglob("*") if path.is_file())
    started, cpu = time.perf_counter(), sum(os.times()[:4])
    pipeline.run({"converter": {"sources": files}})
    seconds, cpu = time.perf_counter() - started, sum(os.times()[:4]) - cpu
    written = store.filter_documents()
    return {"seconds": seconds, "cpu_seconds": cpu, "texts": [("", document.content) for document in written]}


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text("utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(answer), "utf-8")
