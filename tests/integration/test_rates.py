"""How fast a job is, as `reconcile` samples it; and which of them are saturated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from workshop import Workshop

from pipeline import Settings
from pipeline.ledger import fleet, rates
from pipeline.ledger.diagnosis import Waiting

OWNER = "general@here#1/7"


class Samples:
    """A job that embeds, with a clock of its own."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.job = workshop.put({"a": "text"}).job_id
        workshop.prepare()
        (embed,) = workshop.ready("embed")
        workshop.sql("UPDATE batches SET size = 8 WHERE id = %(id)s", id=embed.id)
        workshop.claim(embed.id, OWNER, lease_seconds=3600.0)
        workshop.sql("UPDATE jobs SET indexing_since = now() WHERE id = %(id)s", id=self.job)

    def after(self, seconds: float, chunks: int) -> int:
        """So much later, with so many chunks more; returns how many intervals counted."""
        self.workshop.sql(
            """UPDATE jobs SET sampled_at = sampled_at - make_interval(secs => %(s)s),
                               chunks_indexed = chunks_indexed + %(n)s WHERE id = %(id)s""",
            s=seconds,
            n=chunks,
            id=self.job,
        )
        with self.workshop.services.ledger.transaction() as connection:
            return rates.sample(connection, 10.0, 100)

    def after_an_hour(self, rate: float) -> int:
        """With so many chunks more as come at this rate: the moments that the test takes don't show in it."""
        return self.after(3600, round(3600 * rate))

    @property
    def told(self) -> Waiting | None:
        return self.workshop.client.job(self.job).waiting

    @property
    def state(self) -> str | None:
        return self.told.state if self.told else None

    @property
    def rates(self) -> tuple[float | None, float | None]:
        (row,) = self.workshop.sql("SELECT rate, best_rate FROM jobs WHERE id = %(id)s", id=self.job)
        rate, best = (None if value is None else round(value, 1) for value in (row["rate"], row["best_rate"]))
        return rate, best


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(settings)
    with made.services.ledger.transaction() as connection:
        fleet.report(connection, "general@here#1", "here", 1, "high,normal,low", 2)
        connection.execute("UPDATE workers SET seen_at = clock_timestamp() + interval '1 hour'")  # alive all the while
    yield made
    made.close()


@pytest.fixture
def samples(workshop: Workshop) -> Samples:
    made = Samples(workshop)
    assert made.after(0, 0) == 0
    return made


def test_a_job_is_saturated_at_less_than_half_of_its_best_rate(samples: Samples) -> None:
    for _ in range(3):
        assert samples.after_an_hour(10) == 1
    assert samples.rates == (10.0, 10.0)
    assert samples.told is None

    samples.after_an_hour(3.5)
    assert samples.rates[0] == 3.5
    found = samples.told
    assert found is not None
    assert found.state == "saturated"
    assert found.reason == "3.5 chunks/s, less than half of the 10 that it made before"

    samples.after_an_hour(9)
    assert samples.told is None


def test_one_burst_is_not_taken_for_what_a_job_can_do(samples: Samples) -> None:
    samples.after_an_hour(10)
    samples.after_an_hour(100)
    samples.after_an_hour(10)
    samples.after_an_hour(10)

    assert samples.rates[1] == 10.0


def test_a_job_whose_batches_take_longer_than_an_interval_is_not_called_slow_between_them(samples: Samples) -> None:
    # 8 chunks every 20 s: nothing comes in most intervals of 10 s
    for _ in range(20):
        samples.after(10, 0)
        samples.after(10, 8)

        assert samples.told is None
    assert samples.rates == (0.4, 0.4)


def test_a_job_that_stands_still_is_found_out_without_waiting_for_its_next_batch(samples: Samples) -> None:
    for _ in range(3):
        samples.after(10, 100)

    assert samples.after(12, 0) == 1, "even with the 8 chunks in flight it would be slow"

    assert samples.state == "saturated"


@pytest.mark.parametrize(
    "what",
    [
        "UPDATE jobs SET state = 'paused'",
        "INSERT INTO pauses (collection_id) VALUES (NULL)",
        "UPDATE circuits SET opened_at = now() WHERE dependency = 'qdrant'",
        "UPDATE batches SET state = 'ready' WHERE state = 'running'",
        "UPDATE batches SET kind = 'prepare' WHERE state = 'running'",
        "UPDATE batches SET wedged_at = now() WHERE state = 'running'",
    ],
    ids=["paused", "all paused", "away", "waiting for its turn", "preparing", "wedged"],
)
def test_time_in_which_a_job_cannot_embed_does_not_count(samples: Samples, what: str) -> None:
    for _ in range(3):
        samples.after_an_hour(10)

    samples.workshop.sql(what)
    samples.after(60, 5)

    assert samples.rates == (10.0, 10.0)
