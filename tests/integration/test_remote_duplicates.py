"""A batch that was created twice: it is found before its row is closed, whoever dies when."""

from __future__ import annotations

import openai
from remote_scene import CrashAt, RemoteScene

TEXTS = [f"text number {number:02}" for number in range(12)]


def test_a_duplicate_is_told_also_where_the_worker_dies_as_it_closes_the_row(scene: RemoteScene) -> None:
    # Given a creation without an answer, whose worker died, and which arrives a second time when it has been adopted
    scene.server.control.timing(in_progress=None)
    scene.order(TEXTS)
    (remote_id,) = scene.pack()
    scene.visit(remote_id, CrashAt("create: asked"))
    scene.bury()
    scene.until(remote_id, "submitted")
    (made,) = scene.server.control.batches()
    with openai.OpenAI(base_url=scene.server.url, api_key=scene.server.key, max_retries=0) as client:
        client.batches.create(
            completion_window="24h",
            endpoint="/v1/embeddings",
            input_file_id=made["input_file_id"],
            metadata=made["metadata"],
        )
    scene.server.control.finish()
    scene.server.control.timing(in_progress=0.0)

    # When the worker dies in the moment in which it has closed the row
    at = CrashAt("clean: told")
    for _ in range(6):
        if at.seen["clean: told"]:
            break
        scene.visit(remote_id, at)
    assert at.seen["clean: told"] == 1
    scene.bury()
    scene.finish()

    # Then what was paid for twice is told
    assert sum(entry.times for entry in scene.server.control.billing()) == 2 * len(TEXTS)
    row = scene.row(remote_id)
    assert (row.state, row.doubtful, len(row.others)) == ("closed", True, 1)
    assert scene.usage()["doubtful"] == len(TEXTS)
