"""Jobs that the Batch API would make late: the rest goes online, and nothing is paid for that a remote batch holds."""

from __future__ import annotations

import pytest
from bought_rows import BATCH, COST, OPENAI, Bought, ended, ordered, packed, shared, workshop
from workshop import Workshop

from pipeline.ledger import remote_items, routes
from pipeline.routing import Means, reroute_late

__all__ = ["shared", "workshop"]

MEANS = Means(OPENAI, BATCH, COST)
NOTHING = {"moved_online": 0, "late": 0, "batches_cancelled": 0, "released": 0, "restored": 0}


def needed_in(workshop: Workshop, job: Bought, seconds: float, max_cost: float | None = None) -> None:
    workshop.sql(
        """UPDATE jobs SET need_by = clock_timestamp() + make_interval(secs => %(seconds)s), max_cost = %(cost)s
            WHERE id = %(job)s""",
        job=job.job_id,
        seconds=seconds,
        cost=max_cost,
    )


def look(workshop: Workshop, means: Means = MEANS) -> dict[str, int]:
    """What one look has done."""
    return {name: n for name, n in reroute_late(workshop.services.ledger, means, 100).items() if n}


def batch_states(workshop: Workshop, job: Bought) -> list[tuple[str, str]]:
    rows = workshop.sql(
        "SELECT state, provider FROM batches WHERE job_id = %(job)s AND kind = 'embed' ORDER BY id", job=job.job_id
    )
    return [(row["state"], row["provider"]) for row in rows]


def routed(workshop: Workshop, job: Bought) -> tuple[str | None, str]:
    (row,) = workshop.sql("SELECT routed, route_reason FROM jobs WHERE id = %(job)s", job=job.job_id)
    return row["routed"], row["route_reason"] or ""


def cancelled(workshop: Workshop, remote: int) -> str | None:
    reason: str | None = workshop.value("SELECT cancel_reason FROM remote_batches WHERE id = %(id)s", id=remote)
    return reason


def buyable(workshop: Workshop) -> set[bytes]:
    """Keys that packing would take."""
    rows = workshop.sql(f"SELECT key FROM purchases p WHERE {remote_items.BUYABLE}")
    return {bytes(row["key"]) for row in rows}


def test_a_job_with_time_left_is_left_alone(workshop: Workshop) -> None:
    job = ordered(workshop, "one", "two")
    remote = packed(workshop, job)
    needed_in(workshop, job, BATCH.margin_seconds + 60)
    no_hurry = ordered(workshop, "three")

    assert look(workshop) == {}

    assert cancelled(workshop, remote) is None
    assert batch_states(workshop, job) == [("waiting", "openai_batch")]
    assert batch_states(workshop, no_hurry) == [("waiting", "openai_batch")]


def test_an_order_that_is_not_packed_yet_simply_goes_online(workshop: Workshop) -> None:
    job = ordered(workshop, "one", "two")
    needed_in(workshop, job, BATCH.margin_seconds - 60)

    assert look(workshop) == {"moved_online": 1, "released": 1}

    # Then its batch can be claimed, whoever buys takes its orders over, and packing leaves them alone meanwhile
    assert batch_states(workshop, job) == [("ready", "openai")]
    assert buyable(workshop) == set()
    provider, reason = routed(workshop, job)
    assert provider == "openai"
    assert reason.startswith("online: the Batch API had not delivered it 29 min before it is needed; the rest (")
    # And it is done once
    assert look(workshop) == {}


def test_what_comes_of_the_job_later_is_online_too(workshop: Workshop) -> None:
    job = ordered(workshop, "one")
    needed_in(workshop, job, 60)
    look(workshop)

    with workshop.services.ledger.transaction() as connection:
        assert routes.job_to_route(connection, job.job_id).routed == "openai"


def test_a_shared_batch_is_cancelled_its_finished_part_used_and_the_rest_bought_only_when_it_has_ended(
    workshop: Workshop,
) -> None:
    # Given a remote batch with two jobs' texts, of which one is needed soon
    late, other = ordered(workshop, "one", "two"), ordered(workshop, "three", "four")
    remote = packed(workshop, late, other)
    needed_in(workshop, late, 60)

    # When it is looked at, then the batch is cancelled, and says for whom; nothing is bought while it is not ended
    assert look(workshop) == {"moved_online": 1, "batches_cancelled": 1}
    assert str(late.job_id) in (cancelled(workshop, remote) or "")
    assert batch_states(workshop, late) == [("waiting", "openai")]
    assert look(workshop) == {}

    # When it has ended, with one text of each finished
    ended(workshop, remote, late.keys[0], other.keys[0])
    assert look(workshop) == {"released": 1}

    # Then the late job's other text is bought online, and the other job's is packed anew
    assert batch_states(workshop, late) == [("ready", "openai")]
    assert batch_states(workshop, other) == [("waiting", "openai_batch")]
    assert buyable(workshop) == {other.keys[1]}


def test_a_text_that_both_lack_is_bought_online_once_and_not_packed_for_the_other(workshop: Workshop) -> None:
    other = ordered(workshop, "one", "two")
    late = ordered(workshop, "two", "three")  # "two" is on order by the other job
    remote = packed(workshop, other)
    needed_in(workshop, late, 60)

    assert look(workshop) == {"moved_online": 1, "batches_cancelled": 1}
    ended(workshop, remote)
    assert look(workshop) == {"released": 1}

    assert buyable(workshop) == {other.keys[0]}


def test_where_online_is_too_dear_it_stays_and_the_job_says_that_it_will_be_late(workshop: Workshop) -> None:
    job = ordered(workshop, "one", "two")
    tokens = workshop.value("SELECT sum(tokens) FROM purchases")
    remote = packed(workshop, job)
    needed_in(workshop, job, 60, max_cost=float(tokens) - 1)

    assert look(workshop) == {"late": 1}

    assert cancelled(workshop, remote) is None
    assert batch_states(workshop, job) == [("waiting", "openai_batch")]
    provider, reason = routed(workshop, job)
    assert provider == "openai_batch"
    assert (
        reason
        == f"it will be late: online the rest would cost ${tokens:,.2f}, and ${tokens - 1:,.2f} may still be spent"
    )
    status = workshop.client.job(job.job_id)
    assert status.route is not None
    assert status.to_json()["route"]["reason"] == reason
    # It is not counted again by every look; and when more may be spent, it goes
    needed_in(workshop, job, 60, max_cost=float(tokens))
    assert look(workshop) == {"late": 1}
    workshop.sql("UPDATE jobs SET routed_at = routed_at - interval '10 minutes'")
    assert look(workshop) == {"moved_online": 1, "batches_cancelled": 1}


def test_what_is_held_back_for_the_orders_themselves_may_be_spent_on_them(workshop: Workshop) -> None:
    job = ordered(workshop, "one", "two")
    tokens = float(workshop.value("SELECT sum(tokens) FROM purchases"))
    workshop.sql(
        """INSERT INTO reservations (batch_id, job_id, tenant, cost)
           VALUES (%(batch)s, %(job)s, 'default', %(half)s)""",
        batch=job.batch_ids[0],
        job=job.job_id,
        half=tokens / 2,
    )
    workshop.sql("UPDATE jobs SET cost_reserved = %(half)s WHERE id = %(job)s", half=tokens / 2, job=job.job_id)
    needed_in(workshop, job, 60, max_cost=tokens)

    assert look(workshop) == {"moved_online": 1, "released": 1}


def test_a_month_without_money_makes_late_too(workshop: Workshop) -> None:
    job = ordered(workshop, "one")
    needed_in(workshop, job, 60)

    assert look(workshop, Means(OPENAI, BATCH, COST.model_copy(update={"month_usd": 1.0}))) == {"late": 1}


def test_a_job_that_was_late_when_it_was_enqueued_goes_online_at_once(workshop: Workshop) -> None:
    job = ordered(workshop, "one")
    needed_in(workshop, job, -3600)

    assert look(workshop) == {"moved_online": 1, "released": 1}
    assert "60 min after it is needed" in routed(workshop, job)[1]


@pytest.mark.parametrize("state", ["paused", "cancelled"])
def test_a_job_that_is_not_at_work_is_left_alone(workshop: Workshop, state: str) -> None:
    job = ordered(workshop, "one")
    needed_in(workshop, job, 60)
    workshop.sql("UPDATE jobs SET state = %(state)s", state=state)

    assert look(workshop) == {}


def test_orders_of_a_late_job_that_is_paused_or_cancelled_are_packed_for_the_others_that_lack_them(
    workshop: Workshop,
) -> None:
    # Given a text that two jobs lack, and that was withdrawn for one of them
    other = ordered(workshop, "one")
    late = ordered(workshop, "one", "two")
    needed_in(workshop, late, 60)
    assert look(workshop) == {"moved_online": 1, "released": 1}
    assert buyable(workshop) == set()

    # When that job is paused, then it goes to the Batch API for the other
    workshop.sql("UPDATE jobs SET state = 'paused' WHERE id = %(job)s", job=late.job_id)
    assert look(workshop) == {"restored": 2}
    assert other.keys[0] in buyable(workshop)


def test_a_step_that_was_cut_off_is_done_by_the_next_look(workshop: Workshop) -> None:
    # Given a look that died after each of its transactions
    job = ordered(workshop, "one", "two")
    remote = packed(workshop, job)
    needed_in(workshop, job, 60)
    with workshop.services.ledger.transaction() as connection:
        routes.move_online(connection, job.job_id, "online: it would be late")

    # When the next one comes, then it goes on from there
    assert look(workshop) == {"batches_cancelled": 1}
    ended(workshop, remote)
    with workshop.services.ledger.transaction() as connection:
        assert routes.withdraw(connection, job.batch_ids) == []
    assert look(workshop) == {"released": 1}


def test_a_look_where_nothing_is_late_finds_nothing(workshop: Workshop) -> None:
    ordered(workshop, "one")

    assert reroute_late(workshop.services.ledger, MEANS, 100) == NOTHING
