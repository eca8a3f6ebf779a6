"""The bare stages: what must be done to a document, called one after the other, with no queue and no ledger.

Read, extract, split and count, constant vectors, BM25, COPY into Postgres, upsert into the vector server. Nothing is
claimed, compared, published or counted; a process that dies leaves half of its work behind, and nobody knows which.
"""

from __future__ import annotations

import multiprocessing
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import psutil
import psycopg

from benchmarks.constant import ConstantVectors
from pipeline.assembly import Services
from pipeline.chunking import Chunker
from pipeline.document import Chunk, Document
from pipeline.extract import extract
from pipeline.settings import Settings
from pipeline.sources import open_source
from pipeline.vectors.base import Point, VectorStore
from pipeline.vectors.sparse import SparseEncoder

# As many documents go through the stages together as a prepare batch has.
TOGETHER = 50
TABLE = "bare_chunks"
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    point_id uuid PRIMARY KEY, uri text NOT NULL, ordinal int NOT NULL, text text NOT NULL, tokens int NOT NULL,
    vector bytea NOT NULL)"""


class BareStages:
    """Processes that wait for directories."""

    def __init__(self, pipes: Sequence[Pipe], pids: Sequence[int]) -> None:
        self._pipes = pipes
        self._pids = pids

    def cpu_seconds(self) -> float:
        """Of all the processes so far."""
        times = [psutil.Process(pid).cpu_times() for pid in self._pids]
        return sum(each.user + each.system for each in times)

    def run(self, tree: Path, collection: str) -> int:
        """All files of the tree, divided among the processes. Returns how many chunks are in the index now."""
        files = sorted(path for path in tree.rglob("*") if path.is_file())
        for number, pipe in enumerate(self._pipes):
            pipe.send((files[number :: len(self._pipes)], collection))
        return sum(pipe.recv() for pipe in self._pipes)


@contextmanager
def bare_stages(settings: Settings, processes: int) -> Iterator[BareStages]:
    """Starts the processes; ends them afterwards."""
    with psycopg.connect(settings.postgres.url.get_secret_value(), autocommit=True) as connection:
        connection.execute(_SCHEMA)
    context = multiprocessing.get_context("spawn")
    started = []
    pipes = []
    for _ in range(processes):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(settings, theirs), daemon=True)
        process.start()
        theirs.close()
        started.append(process)
        pipes.append(ours)
    try:
        yield BareStages(pipes, [process.pid or 0 for process in started])
    finally:
        for pipe in pipes:
            pipe.close()
        for process in started:
            process.join(timeout=10)
            process.kill()


def _serve(settings: Settings, pipe: Pipe) -> None:
    services = Services(settings, embedder=ConstantVectors(settings.home / "models"))
    stages = _Stages(services)
    try:
        while True:
            files, collection = pipe.recv()
            pipe.send(stages.run(files, collection))
    except EOFError:
        services.close()


class _Stages:
    def __init__(self, services: Services) -> None:
        self._settings = services.settings
        self._embedder = services.embedder(services.spec.to_json())
        self._chunker: Chunker = services.chunker(services.settings.chunking, self._embedder)
        self._sparse: SparseEncoder = services.sparse({})
        self._vectors: VectorStore = services.vectors
        self._url = services.settings.postgres.url.get_secret_value()

    def run(self, files: Sequence[Path], collection: str) -> int:
        self._vectors.ensure_collection(collection, self._embedder.spec.dimensions)
        chunks = 0
        with psycopg.connect(self._url, autocommit=True) as connection:
            for start in range(0, len(files), TOGETHER):
                chunks += self._together(connection, files[start : start + TOGETHER], collection)
        return chunks

    def _together(self, connection: psycopg.Connection[Any], files: Sequence[Path], collection: str) -> int:
        documents = [
            item for path in files for item in open_source(path, self._settings.sources) if isinstance(item, Document)
        ]
        extracted = [extract(document.data, document.media_type, document.uri) for document in documents]
        found = self._chunker.chunk_many([(item.text, item.markup) for item in extracted])
        rows = [
            (uuid.uuid4(), document, item.title, chunk)
            for document, item, chunks in zip(documents, extracted, found, strict=True)
            for chunk in chunks
        ]
        texts = [chunk.text for *_, chunk in rows]
        vectors = self._embedder.embed(texts).vectors
        sparse = self._sparse.documents(texts)
        self._copy(connection, [(point, document.uri, chunk) for point, document, _, chunk in rows], vectors)
        self._vectors.upsert(
            collection,
            [
                Point(point, vector, terms, self._payload(document, title, chunk))
                for (point, document, title, chunk), vector, terms in zip(rows, vectors, sparse, strict=True)
            ],
        )
        return len(rows)

    def _copy(
        self, connection: psycopg.Connection[Any], rows: Sequence[tuple[uuid.UUID, str, Chunk]], vectors: Any
    ) -> None:
        with connection.cursor() as cursor, cursor.copy(f"COPY {TABLE} FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["uuid", "text", "int4", "text", "int4", "bytea"])
            for (point, uri, chunk), vector in zip(rows, vectors, strict=True):
                copy.write_row([point, uri, chunk.ordinal, chunk.text, chunk.tokens, vector.tobytes()])

    def _payload(self, document: Document, title: str, chunk: Chunk) -> dict[str, Any]:
        return {
            "tenant": self._settings.tenant,
            "uri": document.uri,
            "document": 1,
            "version": 1,
            "ordinal": chunk.ordinal,
            "title": title,
            "text": chunk.text,
            "metadata": dict(document.metadata),
        }
