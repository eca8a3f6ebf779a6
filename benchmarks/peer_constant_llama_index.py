"""LlamaIndex with an embedding that costs nothing; runs in the peers' environment: `python FILE JOB ANSWER`.

SimpleDirectoryReader, IngestionPipeline with SentenceSplitter and LlamaIndex's own MockEmbedding, SimpleVectorStore.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from llama_index.core import Document, SimpleDirectoryReader  # type: ignore[import-not-found, unused-ignore]
from llama_index.core.embeddings import MockEmbedding  # type: ignore[import-not-found, unused-ignore]
from llama_index.core.ingestion import IngestionPipeline  # type: ignore[import-not-found, unused-ignore]
from llama_index.core.node_parser import SentenceSplitter  # type: ignore[import-not-found, unused-ignore]
from llama_index.core.vector_stores import SimpleVectorStore  # type: ignore[import-not-found, unused-ignore]

DIMENSIONS = 384


def main(job: dict[str, Any]) -> dict[str, Any]:
    stages = [SentenceSplitter(), MockEmbedding(embed_dim=DIMENSIONS)]
    IngestionPipeline(transformations=stages).run(
        documents=[Document(text="a few words to warm everything with. " * 20)]
    )
    store = SimpleVectorStore()
    started, cpu = time.perf_counter(), sum(os.times()[:4])
    documents = SimpleDirectoryReader(job["pages"], recursive=True).load_data()
    nodes = IngestionPipeline(transformations=stages, vector_store=store).run(documents=documents)
    seconds, cpu = time.perf_counter() - started, sum(os.times()[:4]) - cpu
    assert len(store.data.embedding_dict) == len(nodes)
    return {"seconds": seconds, "cpu_seconds": cpu, "texts": [("", node.text) for node in nodes]}


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text("utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(answer), "utf-8")
