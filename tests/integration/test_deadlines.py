"""When documents are needed: what is past already is refused, and what passes later is not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from services import enter
from workshop import Workshop

from pipeline import Document, Settings, submission
from pipeline.errors import InvalidRequest
from workers.cli import main

PAST = datetime(2026, 1, 1, 17, tzinfo=UTC)


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(settings)
    yield made
    made.close()


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose clock is an hour ahead of UTC."""
    monkeypatch.setenv("TZ", "XYZ-1")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2026-01-01T18:00", "2026-01-01 18:00:00 UTC+0100"),
        ("2026-01-01", "2026-01-01 00:00:00 UTC+0100"),
        ("2026-01-01T18:00+03:00", "2026-01-01 16:00:00 UTC+0100"),
        (PAST, "2026-01-01 18:00:00 UTC+0100"),
    ],
)
def test_a_time_that_is_past_is_refused_with_what_it_was_taken_for(
    workshop: Workshop, given: str | datetime, meant: str
) -> None:
    for ask in (workshop.client.ingest, workshop.client.estimate):
        with pytest.raises(InvalidRequest) as raised:
            ask([Document("a", "words")], collection="new", need_by=given)
        told = str(raised.value)
        assert told.startswith(f"need_by {given} is past: it means {meant}, and now it is 20")
        assert "UTC+0100. Give a time that is to come" in told
        assert "how long from now: 2h" in told
    assert workshop.value("SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM collections)") == 0


@pytest.mark.parametrize("given", ["0001-01-01", "-2h", "0s", -5.0])
def test_what_is_no_time_to_come_is_named(workshop: Workshop, given: str | float) -> None:
    with pytest.raises(InvalidRequest, match=f"need_by.*{given}"):
        workshop.put({"a": "words"}, need_by=given)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_the_command_refuses_it_as_wrong_use(
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
) -> None:
    enter(workshop.settings, monkeypatch)
    (tmp_path / "a.txt").write_text("words")

    for command in ("ingest", "sync"):
        assert main.run([command, str(tmp_path), "--need-by", "2026-01-01T18:00", *more]) == 2
        assert "need_by 2026-01-01T18:00 is past: it means 2026-01-01 18:00:00 UTC" in capsys.readouterr().err
    assert workshop.value("SELECT count(*) FROM jobs") == 0


def test_times_are_those_of_utc_whatever_zone_the_database_is_set_to(workshop: Workshop, settings: Settings) -> None:
    job = workshop.put({"a": "words"})
    database = workshop.value("SELECT current_database()")
    workshop.sql(f"ALTER DATABASE \"{database}\" SET timezone = 'Asia/Tokyo'")

    elsewhere = Workshop(settings)
    status = elsewhere.client.job(job.job_id)
    elsewhere.close()

    assert status.created_at == job.created_at
    assert status.created_at.endswith("+00:00")


def test_a_time_that_passes_later_is_no_error_and_the_same_request_is_the_same_job(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job that was asked for in time, under a key
    asked = {"idempotency_key": "k", "need_by": "2099-01-01T00:00:00+00:00"}
    job = workshop.put({"a": "words"}, **asked)

    # When that time has passed
    workshop.sql("UPDATE jobs SET need_by = now() - interval '1 s'")
    monkeypatch.setattr(submission, "clock", lambda _: datetime(2099, 1, 2, tzinfo=UTC))

    # Then the same request is answered with the same job, a new one is refused, and the job is done
    assert workshop.put({"a": "words"}, **asked).job_id == job.job_id
    with pytest.raises(InvalidRequest, match="is past"):
        workshop.put({"a": "words"}, **{**asked, "idempotency_key": "another"})
    workshop.work()
    assert workshop.client.job(job.job_id).state == "succeeded"
