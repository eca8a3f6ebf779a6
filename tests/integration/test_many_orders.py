"""What is asked about orders with the Batch API takes moments, also where there are thousands of them."""

from __future__ import annotations

from remote_scene import RemoteScene

from pipeline.embedding.openai.spec import spec_hash
from pipeline.ledger import purchases, remote_items

TEXTS = [f"text {number} of many" for number in range(6000)]
MOMENT = "SET LOCAL statement_timeout = '20s'"


def test_of_thousands_of_orders_each_is_asked_about_once_before_it_is_packed(scene: RemoteScene) -> None:
    # Given as many texts on order, and a planner that knows it
    batch = scene.order(TEXTS)
    scene.sql("ANALYZE purchases, chunks, batches")
    shared = spec_hash(scene.spec, scene.settings.openai)

    # When they are looked through, then all are needed; and none of them when their job was cancelled
    for ended, dropped in ((False, 0), (True, len(TEXTS))):
        if ended:
            scene.end(batch)
        with scene.services.ledger.transaction() as connection:
            connection.execute(MOMENT)
            assert remote_items.drop_unneeded(connection, shared, 50_000) == dropped


def test_a_waiting_batch_is_found_by_what_was_given_up_among_thousands_of_orders(scene: RemoteScene) -> None:
    # Given many batches that wait, of which one has a text that was given up
    waiting = [scene.order(TEXTS[start : start + 100]) for start in range(0, len(TEXTS), 100)]
    scene.sql("UPDATE purchases SET attempts = 3 WHERE key = %(key)s", key=scene.key(TEXTS[150]))
    scene.sql("ANALYZE purchases, chunks, batches")

    # When those that wait for nothing are looked for, then it is that one
    with scene.services.ledger.transaction() as connection:
        connection.execute(MOMENT)
        assert purchases.wake_forgotten(connection, 0, 500) == (1, None)
    assert scene.states(*waiting).index("ready") == 1
