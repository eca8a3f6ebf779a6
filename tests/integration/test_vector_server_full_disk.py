"""The vector server on a disk without room: it says so, serves what it has, and takes more when there is room."""

from __future__ import annotations

import shutil
from pathlib import Path

import grpc
import pytest
from command_line import eventually
from qdrant_client import models
from vector_server import KEY, make_collection, points, refusal, running, stored_ids

from pipeline.errors import VectorsFull
from pipeline.settings import QdrantSettings
from pipeline.vectors.qdrant import QdrantStore


def _more_than_is_free(directory: Path) -> str:
    """A reserve that this disk cannot have, in MB."""
    return str((shutil.disk_usage(directory).total >> 20) + 1)


def test_without_room_writes_are_refused_in_words_and_reading_and_deleting_go_on(tmp_path: Path) -> None:
    # Given a collection with points, on a disk that is full from then on
    with running(tmp_path) as server, server.client() as client:
        make_collection(client, "notes")
        client.upsert("notes", points(range(100)), wait=True)
        assert server.stop() == 0
    with running(tmp_path, "--reserve-mb", _more_than_is_free(tmp_path)) as server, server.client() as client:
        # When more is written, then it is refused, and nothing of it is there
        status, words = refusal(lambda: client.upsert("notes", points(range(100, 120)), wait=True))
        assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert words.startswith("Service internal error: No space left on device:")
        assert refusal(lambda: make_collection(client, "more"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stored_ids(client, "notes") == set(range(100))
        client.delete("notes", models.PointIdsList(points=[1, 2, 3]), wait=True)
        assert len(stored_ids(client, "notes")) == 97
        assert server.stop() == 0
    # And with room everything is as it was, and goes on
    with running(tmp_path) as server, server.client() as client:
        client.upsert("notes", points(range(100, 120)), wait=True)
        assert len(stored_ids(client, "notes")) == 117


def test_a_full_disk_of_qdrant_has_an_error_of_its_own(tmp_path: Path) -> None:
    with running(tmp_path, "--reserve-mb", _more_than_is_free(tmp_path)) as server:
        url = f"grpc://:{KEY.replace(' ', '%20')}@127.0.0.1:{server.port}"
        store = QdrantStore(QdrantSettings.model_validate({"url": url}))

        with pytest.raises(VectorsFull, match=r"has no room on its disk: .*No space left on device"):
            store.ensure_collection("notes", 8)

        eventually(store.alive)  # it answers: searching goes on
        assert store.count("notes") == 0
        store.close()
