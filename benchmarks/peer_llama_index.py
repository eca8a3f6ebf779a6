"""LlamaIndex's side of a measurement; runs in the peers' environment: `python peer_llama_index.py JOB ANSWER`.

SimpleDirectoryReader, then IngestionPipeline with SentenceSplitter, its FastEmbed integration and SimpleVectorStore,
each at its defaults: chunks of 1,024 tokens, embedded by tens.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from llama_index.core import Document, SimpleDirectoryReader  # type: ignore[import-not-found, unused-ignore]
from llama_index.core.ingestion import IngestionPipeline  # type: ignore[import-not-found, unused-ignore]
from llama_index.core.node_parser import SentenceSplitter  # type: ignore[import-not-found, unused-ignore]
from llama_index.core.schema import MetadataMode, TextNode  # type: ignore[import-not-found, unused-ignore]
from llama_index.core.vector_stores import SimpleVectorStore  # type: ignore[import-not-found, unused-ignore]
from llama_index.embeddings.fastembed import FastEmbedEmbedding  # type: ignore[import-not-found, unused-ignore]

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
WARMING = 8


def main(job: dict[str, Any]) -> dict[str, Any]:
    embedding = FastEmbedEmbedding(model_name=MODEL)
    warming = [Document(text="a few words to warm everything with, the splitter's tokenizer too. " * 20)] * WARMING
    IngestionPipeline(transformations=[SentenceSplitter(), embedding]).run(documents=warming)
    chunks = json.loads(Path(job["chunks"]).read_text("utf-8"))
    workers = {"num_workers": job["workers"]} if job["workers"] else {}
    store = SimpleVectorStore()
    started, cpu = time.perf_counter(), sum(os.times()[:4])
    if job["mode"] == "defaults":
        pipeline = IngestionPipeline(transformations=[SentenceSplitter(), embedding], vector_store=store)
        nodes = pipeline.run(documents=SimpleDirectoryReader(job["pages"]).load_data(), **workers)
    else:
        pipeline = IngestionPipeline(transformations=[embedding], vector_store=store)
        nodes = pipeline.run(nodes=[TextNode(text=text) for text in chunks], **workers)
    seconds, cpu = time.perf_counter() - started, sum(os.times()[:4]) - cpu
    assert len(store.data.embedding_dict) == len(nodes)
    texts = [(node.get_metadata_str(mode=MetadataMode.EMBED), node.text) for node in nodes]
    return {"seconds": seconds, "cpu_seconds": cpu, "texts": texts}


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text("utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(answer), "utf-8")
