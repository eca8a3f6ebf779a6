"""What the files of a batch may hold, through the real service: nothing is lost, nothing wrong is stored, and what was
paid for twice is what the ledger shows."""

from __future__ import annotations

import pytest
from remote_scene import RemoteScene

TEXTS = [f"text number {number:02}" for number in range(12)]


@pytest.mark.parametrize("lost", [0.0, 0.5])
def test_an_expired_batch_keeps_what_it_finished_and_the_rest_is_ordered_anew(scene: RemoteScene, lost: float) -> None:
    scene.server.control.fault("batch", "expired", done=0.5, lost=lost)
    batch = scene.order(TEXTS)

    scene.finish()

    assert scene.billed(TEXTS) == {1: 12}
    scene.assert_whole(TEXTS)
    assert [row.done for row in scene.rows()] == [6, 6]
    assert [row.missing for row in scene.rows()] == [round(6 * lost), 0]
    assert scene.states(batch) == ["ready"]


@pytest.mark.parametrize("status", [429, 500, 0])
def test_lines_that_failed_for_now_are_ordered_anew(scene: RemoteScene, status: int) -> None:
    scene.server.control.fault("batch", "line_error", status=status, every=3)
    scene.order(TEXTS)

    scene.finish()

    scene.assert_bought_once(TEXTS)
    assert [row.inputs for row in scene.rows()] == [12, 4]
    assert scene.rows()[0].failed == 4


def test_a_line_that_is_refused_is_given_up_and_the_others_are_not(scene: RemoteScene) -> None:
    scene.server.control.fault("batch", "line_error", status=400, match=TEXTS[3])
    alone, others = scene.order([TEXTS[3]]), scene.order([text for text in TEXTS if text != TEXTS[3]])

    scene.finish()

    assert scene.states(alone, others) == ["ready", "ready"]
    assert scene.vectors(TEXTS) == 11
    (given_up,) = scene.sql("SELECT text, attempts, error, remote_batch_id FROM purchases")
    assert (given_up["text"], given_up["attempts"], given_up["remote_batch_id"]) == (TEXTS[3], 3, None)
    assert "refused: status 400" in given_up["error"]
    assert len(scene.rows()) == 1


def test_a_validation_that_names_a_line_gives_that_text_up_and_the_rest_goes_again(scene: RemoteScene) -> None:
    scene.server.control.fault("batch", "invalid", code="invalid_value", message="no such text", line=5)
    batch = scene.order(TEXTS)

    scene.finish()

    assert scene.states(batch) == ["ready"]
    assert scene.vectors(TEXTS) == 11
    (given_up,) = scene.sql("SELECT key, error FROM purchases")
    assert bytes(given_up["key"]) == sorted(scene.key(text) for text in TEXTS)[4]
    assert "no such text" in given_up["error"]


def test_a_batch_of_nothing_but_errors_and_empty_file_ids_is_read(scene: RemoteScene) -> None:
    scene.server.control.fault("batch", "only_errors", status=500)
    scene.server.control.fault("batch", "empty_ids")
    scene.order(TEXTS)

    scene.finish()

    scene.assert_bought_once(TEXTS)


@pytest.mark.parametrize("damage", ["wrong_dimension", "nan", "null"])
def test_nothing_wrong_is_stored_and_what_it_cost_is_shown(scene: RemoteScene, damage: str) -> None:
    scene.server.control.fault("batch", damage, every=4)
    scene.order(TEXTS)

    scene.finish()

    assert scene.billed(TEXTS) == {1: 9, 2: 3}
    assert scene.usage()["doubtful"] == 3
    scene.assert_whole(TEXTS)


def test_answers_in_any_order_twice_and_among_others_are_each_stored_once(scene: RemoteScene) -> None:
    for kind in ("shuffled", "duplicated", "unknown_ids", "garbage_lines", "u2028", "no_usage"):
        scene.server.control.fault("batch", kind)
    scene.order(TEXTS)

    scene.finish()

    scene.assert_bought_once(TEXTS)
    assert scene.value("SELECT count(*) FROM embeddings") == 12
    # Without a word of the server's, what was counted before is taken for what was billed
    assert scene.usage()["tokens"] == 12 * 7


@pytest.mark.parametrize("kind", ["lost", "null_ids", "torn"])
def test_lines_that_are_lost_are_bought_again_and_shown_as_doubtful(scene: RemoteScene, kind: str) -> None:
    scene.server.control.fault("batch", kind, **({} if kind == "torn" else {"every": 6}))
    scene.order(TEXTS)

    scene.finish()

    again = 1 if kind == "torn" else 2
    assert scene.billed(TEXTS) == {1: 12 - again, 2: again}
    assert scene.usage()["doubtful"] == again
    assert scene.rows()[0].missing == again
    scene.assert_whole(TEXTS)


@pytest.mark.parametrize(
    ("kind", "given", "ranges"),
    [
        ("status", {"code": 404, "times": 3}, True),
        ("status", {"code": 500, "times": 3}, True),
        ("truncated", {"share": 0.4, "times": 2}, True),
        ("truncated", {"share": 0.4, "times": 2}, False),
        ("cut", {"share": 0.4, "times": 2}, True),
        ("cut", {"share": 0.4, "times": 2}, False),
    ],
)
def test_a_file_that_comes_in_parts_is_read_to_its_end(
    scene: RemoteScene, kind: str, given: dict[str, object], ranges: bool
) -> None:
    scene.server.control.set(ranges=ranges)
    scene.server.control.fault("files.content", kind, **given)  # type: ignore[arg-type]
    scene.order(TEXTS)

    scene.finish()

    scene.assert_bought_once(TEXTS)
    assert len(scene.rows()) == 1


def test_files_that_cannot_be_deleted_are_left_to_the_server_in_the_end(scene: RemoteScene) -> None:
    scene.server.control.fault("files.delete", "status", code=500, times=None)
    scene.order(TEXTS)

    scene.finish()

    assert scene.vectors(TEXTS) == 12
    assert [row.state for row in scene.rows()] == ["closed"]
