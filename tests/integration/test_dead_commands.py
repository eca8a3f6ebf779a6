"""`millrace dead`, `retry` and `discard` as a person types them, on a ledger in which documents have failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from services import enter
from workshop import COLLECTION, PoisonedEmbedder, Workshop, with_work

from pipeline import Settings
from workers.cli.main import run

pytestmark = pytest.mark.usefixtures("command")


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(with_work(settings, backoff_seconds=0.01), PoisonedEmbedder("poison"))
    yield made
    made.close()


@pytest.fixture
def command(settings: Settings, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line on the workshop's servers, with its embedder."""
    enter(settings, monkeypatch)
    # A retry reads the recipe of the collection's model, which is known to nobody but the workshop.
    monkeypatch.setattr("pipeline.assembly.Services.embedder", lambda *_: workshop.embedder)


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_a_failure_is_found_from_its_job_explained_and_tried_again(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a job that failed in part
    job = workshop.index({"good": "good words", "bad": "some poison"})
    assert run(["job", str(job.job_id)]) == 3
    shown = capsys.readouterr().out
    assert f"`millrace dead --job {job.job_id}` says why" in shown
    assert f"`millrace retry --job {job.job_id}` tries again" in shown

    # Then the list has its letter in one line, and the letter itself all there is to say
    assert run(["dead", "--job", str(job.job_id)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    cells = line.split("\t")
    assert cells[2:] == ["bad", "embed", "3", "RuntimeError: cannot embed poison"]
    assert run(["dead", cells[0]]) == 0
    shown = capsys.readouterr().out
    assert f"document   bad (collection {COLLECTION}, tenant default)" in shown
    assert "in embed: 3 attempts" in shown
    assert f"`millrace retry {cells[0]}` tries them again" in shown
    assert "chunk 0\nsome poison" in shown
    assert "Traceback (most recent call last):" in shown
    assert as_json(capsys, "dead", cells[0])["chunk"] == "some poison"

    # And a retry makes a job of its own, which says whose it is
    assert isinstance(workshop.embedder, PoisonedEmbedder)
    workshop.embedder.word = "nothing"
    made = as_json(capsys, "retry", cells[0], "--priority", "high")
    assert (made["retried"], made["superseded"]) == (1, 0)
    (retried,) = made["jobs"]
    assert (retried["retry_of"], retried["priority"]) == (str(job.job_id), "high")
    workshop.work()
    assert run(["job", retried["job_id"]]) == 0
    assert f"retry of   {job.job_id}" in capsys.readouterr().out
    assert as_json(capsys, "dead")["dead_letters"] == []
    (letter,) = as_json(capsys, "dead", "--resolved")["dead_letters"]
    assert (letter["resolution"], letter["retried_by"]) == ("retried", retried["job_id"])
    assert run(["job", str(job.job_id)]) == 3
    assert "millrace dead" not in capsys.readouterr().out
    assert run(["dead", cells[0]]) == 0
    assert f"retried by job {retried['job_id']}" in capsys.readouterr().out


def test_a_retry_without_waiting_names_its_job_and_one_of_nothing_says_so(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop.index({"bad": "poison"})

    assert run(["retry", "--document", "bad", "--collection", COLLECTION]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "retried    1"
    assert shown[1].startswith("job        ")
    assert run(["retry", "--all"]) == 0
    assert "there is no open dead letter" in capsys.readouterr().out


def test_what_is_newer_is_left_as_it_is_and_said_so(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.index({"bad": "poison"})
    workshop.index({"bad": "newer"})

    assert run(["retry", "--all"]) == 0

    assert "1 left as they are: their documents have newer versions" in capsys.readouterr().err


def test_letters_are_listed_page_by_page_and_discarded(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.index({f"bad{number}": f"poison {number}" for number in range(3)})

    page = as_json(capsys, "dead", "--limit", "2")["dead_letters"]
    rest = as_json(capsys, "dead", "--after", str(page[-1]["id"]))["dead_letters"]
    assert {letter["uri"] for letter in page + rest} == {"bad0", "bad1", "bad2"}
    assert run(["discard", str(page[0]["id"]), str(page[1]["id"])]) == 0
    assert capsys.readouterr().out == "discarded  2\n"
    assert as_json(capsys, "discard", "--all") == {"discarded": 1}
    assert run(["dead", "--resolved"]) == 0
    assert capsys.readouterr().out.count("discarded") == 3


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["retry"], 2, "name dead letters by ID, --job, --document or --collection, or say --all"),
        (["discard", "7", "--all"], 2, "--all means all that there are"),
        (["retry", "7"], 2, "there is no dead letter 7"),
        (["dead", "7"], 2, "there is no dead letter 7"),
        (["dead", "--job", "nonsense"], 2, "nonsense"),
        (["dead", "seven"], 2, "seven"),
    ],
)
def test_wrong_use_is_told(arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == status
    assert said in capsys.readouterr().err
