"""Documents whose extraction never ends, crashes or eats memory: each costs only itself. Real processes, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hostile_extraction import PROGRAM, hostile
from pdf_files import make_pdf
from workshop import COLLECTION, Workshop

from pipeline import Document, Settings
from pipeline.errors import ExtractionFailed, ExtractionOverLimit, ExtractorUnavailable, InvalidDocument, LeaseLost
from pipeline.extract import Extracted, Raw
from pipeline.extract.isolation.child_process import AHEAD
from pipeline.extract.isolation.extractor import Extractor
from pipeline.settings import ExtractionSettings

# Of a document that is no hostile one, a machine that stands still for seconds must not break the limits.
LIMITS = ExtractionSettings(cpu_seconds=1.0, memory_mb=150, max_text_bytes=100_000)
PATIENCE_SECONDS = 60.0


@pytest.fixture
def extractor() -> Iterator[Extractor]:
    made = Extractor(LIMITS, PROGRAM)
    yield made
    made.close()


def no_progress() -> None:
    """For an extraction that nobody waits for."""


def bad(name: str, data: bytes = b"x") -> Raw:
    return Raw(data, hostile(name), f"docs/{name}")


def good(name: str) -> Raw:
    return Raw(f"The text of {name}.".encode(), None, f"docs/{name}.txt")


def read(extractor: Extractor, *documents: Raw) -> list[str]:
    """The text of each document, or what its error says."""
    outcomes = extractor.extract_many(documents, no_progress)
    return [outcome.text if isinstance(outcome, Extracted) else str(outcome) for outcome in outcomes]


def outcome_of(extractor: Extractor, document: Raw) -> Extracted | InvalidDocument:
    (outcome,) = extractor.extract_many([document], no_progress)
    return outcome


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_documents_are_read_in_order_by_one_child_that_stays(extractor: Extractor) -> None:
    many = [good(str(number)) for number in range(5 * AHEAD)]

    assert read(extractor, *many) == [f"The text of {number}." for number in range(5 * AHEAD)]
    assert len(set(read(extractor, bad("process"), bad("process")) + read(extractor, bad("process")))) == 1


def test_everything_that_extraction_finds_comes_back(extractor: Extractor) -> None:
    page = b"---\ntitle: A title\ntags: [a, b]\n---\n\n# Heading\n\nSm\xc3\xb8rrebr\xc3\xb8d \xf0\x9f\x8d\x9e"
    found = outcome_of(extractor, Raw(page, "text/markdown", "notes/\udc80.md"))

    assert isinstance(found, Extracted)
    assert (found.text, found.markup, found.title) == ("# Heading\n\nSmørrebrød 🍞", "markdown", "A title")
    assert found.metadata == {"tags": ["a", "b"]}
    assert "Hello" in read(extractor, Raw(make_pdf([["Hello"]]), None, "a.pdf"))[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("endless", "MILLRACE_EXTRACTION__CPU_SECONDS"),
        ("endless_in_c", "MILLRACE_EXTRACTION__CPU_SECONDS"),
        ("eats_memory", "MILLRACE_EXTRACTION__MEMORY_MB"),
        ("eats_memory_at_once", "MILLRACE_EXTRACTION__MEMORY_MB"),
    ],
)
def test_a_document_over_a_limit_fails_alone_and_its_error_names_it_and_the_setting(
    extractor: Extractor, name: str, said: str
) -> None:
    first, failed, last = extractor.extract_many([good("before"), bad(name), good("after")], no_progress)

    assert isinstance(failed, ExtractionOverLimit)
    assert f"docs/{name}" in str(failed)
    assert said in str(failed)
    assert isinstance(first, Extracted)
    assert isinstance(last, Extracted)


def test_a_document_that_waits_for_ever_and_computes_nothing_fails_too() -> None:
    extractor = Extractor(LIMITS.model_copy(update={"cpu_seconds": 0.5}), PROGRAM)
    failed, after = read(extractor, bad("asleep"), good("after"))
    extractor.close()

    assert "docs/asleep was given up after 5 s" in failed
    assert "10 times MILLRACE_EXTRACTION__CPU_SECONDS" in failed
    assert after == "The text of after."


def test_a_text_over_the_limit_is_refused_and_one_at_the_limit_is_not(extractor: Extractor) -> None:
    assert read(extractor, bad("long", b"100000")) == ["x" * 100_000]
    failed = outcome_of(extractor, bad("long", b"100001"))
    assert isinstance(failed, ExtractionOverLimit)
    assert "docs/long has more than 100000 bytes of text" in str(failed)
    assert "MILLRACE_EXTRACTION__MAX_TEXT_BYTES" in str(failed)


@pytest.mark.parametrize(
    ("name", "said"), [("segfault", "SIGSEGV"), ("abort", "SIGABRT"), ("leaves", "ended with status 3")]
)
def test_a_document_on_which_the_child_dies_fails_alone_and_says_of_what(
    extractor: Extractor, name: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, failed, last = extractor.extract_many([good("before"), bad(name), good("after")], no_progress)

    assert isinstance(failed, ExtractionFailed)
    assert f"docs/{name} cannot be read" in str(failed)
    assert said in str(failed)
    assert isinstance(first, Extracted)
    assert isinstance(last, Extracted)
    assert name == "leaves" or "Current thread" in caplog.text  # where it died is in the worker's log


def test_a_child_that_was_killed_from_outside_costs_no_document(extractor: Extractor, tmp_path: Path) -> None:
    documents = [good("before"), bad("killed_at_first", str(tmp_path / "once").encode()), good("after")]

    assert read(extractor, *documents) == ["The text of before.", "read at the second time", "The text of after."]


def test_an_idle_child_that_was_killed_is_replaced(extractor: Extractor) -> None:
    (pid,) = read(extractor, bad("process"))
    os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE)

    (other,) = read(extractor, bad("process"))
    assert other != pid


@pytest.mark.parametrize(
    ("name", "said"), [("panics", "Panic: a panic"), ("breaks", "a bug"), ("recursion", "RecursionError")]
)
def test_a_reader_that_raises_what_it_should_not_fails_its_document_and_keeps_the_child(
    extractor: Extractor, name: str, said: str
) -> None:
    before, failed, after = read(extractor, bad("process"), bad(name), bad("process"))

    assert before == after
    assert f"docs/{name} cannot be read: its reader broke down on it" in failed
    assert said in failed


def test_a_reader_that_prints_disturbs_nobody(extractor: Extractor, caplog: pytest.LogCaptureFixture) -> None:
    assert read(extractor, bad("chatters"), good("next")) == ["said enough", "The text of next."]
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("while it read docs/chatters: ")
    assert sum(map(len, said)) < 10_000


def test_a_child_knows_no_secret_and_ends_by_nothing_that_is_meant_for_the_worker(
    extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_POSTGRES__URL", "postgresql://user:secret@host/db")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    found, pid = read(extractor, bad("environment"), bad("process"))

    assert "secret" not in found
    assert "PATH" in json.loads(found)
    os.kill(int(pid), signal.SIGTERM)
    os.kill(int(pid), signal.SIGINT)
    assert read(extractor, bad("process")) == [pid]
    assert os.getpgid(int(pid)) != os.getpgid(0)


def test_a_child_that_has_grown_fat_is_replaced_when_it_has_nothing_to_do(extractor: Extractor) -> None:
    pid, _, same = read(extractor, bad("process"), bad("hoards", b"45000000"), bad("process"))
    other, again = read(extractor, bad("process")) + read(extractor, bad("process"))

    assert pid == same
    assert other != pid
    assert other == again
    assert not psutil.pid_exists(int(pid))


def test_a_document_is_not_blamed_for_the_memory_that_others_left_behind(extractor: Extractor) -> None:
    documents = [bad("hoards", b"60000000"), bad("hoards", b"60000000"), bad("hoards", b"60000000")]
    before, *kept, after = read(extractor, bad("process"), *documents, bad("process"))

    assert kept == ["kept", "kept", "kept"]
    assert before != after


def test_who_waits_is_asked_whether_to_go_on_and_a_lost_lease_ends_the_child(extractor: Extractor) -> None:
    (pid,) = read(extractor, bad("process"))
    asked = 0

    def lose_the_lease() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise LeaseLost

    with pytest.raises(LeaseLost):
        list(extractor.extract_many([bad("asleep"), good("after")], lose_the_lease))
    assert not psutil.pid_exists(int(pid))
    assert read(extractor, good("next")) == ["The text of next."]


def test_an_extraction_that_nobody_follows_to_its_end_leaves_no_child(extractor: Extractor) -> None:
    outcomes = extractor.extract_many([bad("process"), bad("asleep")], no_progress)
    first = next(outcomes)
    assert isinstance(first, Extracted)
    del outcomes

    assert not psutil.pid_exists(int(first.text))


def test_a_child_that_cannot_start_is_nobodys_fault() -> None:
    for program, said in (
        ((sys.executable, "-c", "raise SystemExit('no such module')"), "no such module"),
        (("/nowhere/python",), "/nowhere/python"),
        ((sys.executable, "-c", "print('x' * 100)"), "does not start"),
    ):
        with pytest.raises(ExtractorUnavailable, match=said):
            list(Extractor(LIMITS, program).extract_many([good("any")], no_progress))


PARENT = """
import sys
from hostile_extraction import PROGRAM, hostile
from pipeline.extract import Raw
from pipeline.extract.isolation.extractor import Extractor
from pipeline.settings import ExtractionSettings

documents = [Raw(b"x", hostile("process"), "a"), Raw(b"x", hostile(sys.argv[1]), "b")]
for outcome in Extractor(ExtractionSettings(), PROGRAM).extract_many(documents, lambda: None):
    print(outcome.text, flush=True)
"""


@pytest.mark.parametrize("name", ["endless", "endless_in_c", "asleep"])
def test_the_child_of_a_killed_parent_is_gone_whatever_it_was_doing(name: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, name], stdout=subprocess.PIPE, env=environment, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()

        parent.kill()

        assert psutil.wait_procs([child], timeout=PATIENCE_SECONDS)[1] == []


def test_of_fifty_documents_with_a_bad_one_forty_nine_are_indexed(settings: Settings) -> None:
    extractor = Extractor(LIMITS, PROGRAM)
    workshop = Workshop(settings, extractor=extractor)
    documents = [Document(f"notes/{number}", f"Note number {number}.") for number in range(49)]
    documents.insert(20, Document("notes/bad", b"x", media_type=hostile("endless_in_c")))

    job = workshop.index(documents)

    assert job.state == "partial"
    assert (job.documents["total"], job.documents["indexed"], job.documents["failed"]) == (50, 49, 1)
    (error,) = job.errors
    assert error["uri"] == "notes/bad"
    assert "MILLRACE_EXTRACTION__CPU_SECONDS" in error["error"]
    assert len(workshop.texts(collection=COLLECTION)) == 49
    workshop.close()


def test_who_only_enqueues_starts_no_child(settings: Settings) -> None:
    extractor = Extractor(LIMITS, ("/nowhere/python",))
    workshop = Workshop(settings, extractor=extractor)

    assert workshop.put({"a": "text"}).documents["total"] == 1
    workshop.close()
