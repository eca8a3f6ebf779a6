"""What a drill writes and which faults it plans: by its seed alone. And that what it stops goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from command_line import eventually

from pipeline.errors import NotDrillable
from workers.cli import drill as command
from workers.drill.corpus import Content, Corpus, Record, Write
from workers.drill.faults import KINDS, plan
from workers.drill.judge import Verdict
from workers.drill.report import Recovery, Report
from workers.drill.searcher import Searches
from workers.drill.stack import DrilledStack, Pauser
from workers.embedded.home import Home


def test_the_same_seed_writes_the_same_documents_and_another_seed_others() -> None:
    one, same, other = Corpus("c", 1, 50), Corpus("c", 1, 50), Corpus("c", 2, 50)

    writes = [one.next() for _ in range(30)]

    assert writes == [same.next() for _ in range(30)]
    assert writes != [other.next() for _ in range(30)]
    assert min(one.counts.values()) > 0, one.counts


def test_a_corpus_brings_earlier_texts_back_and_writes_again_what_is_under_way() -> None:
    corpus = Corpus("c", 5, 150)
    history: dict[str, list[Content | None]] = {}
    overlapping = 0
    last: set[str] = set()
    for _ in range(120):
        write = corpus.next()
        overlapping += bool(last & write.contents.keys())
        last = set(write.contents)
        for uri, content in write.contents.items():
            history.setdefault(uri, []).append(content)

    def returns(contents: list[Content | None]) -> bool:
        """A, then B, then A."""
        return any(
            a == c and a is not None and b not in (a, None)
            for a, b, c in zip(contents, contents[1:], contents[2:], strict=False)
        )

    assert overlapping > 20
    assert any(map(returns, history.values()))
    newest = [contents[-1].text for contents in history.values() if contents[-1] is not None]
    assert len(set(newest)) < len(newest), "some documents have the same text"
    assert max(map(len, newest)) > 10_000
    assert min(map(len, newest)) < 400


def test_the_record_says_what_a_document_may_hold_after_a_write_that_is_published() -> None:
    record = Record()
    a, b = Content("a", 0), Content("b", 0)
    for key, content in (("1", a), ("2", b), ("3", None), ("4", a)):
        record.begin(Write(key, {"d": content}))
        record.acknowledge(Write(key, {"d": content}))

    assert record.since("d", None) == [None, a, b, None, a]
    assert record.since("d", "2") == [b, None, a]
    assert record.since("d", "4") == [a]
    assert record.since("d", "5") is None
    assert record.newest() == {"d": a}


def test_a_record_with_a_write_that_nobody_acknowledged_has_no_newest() -> None:
    record = Record()
    record.begin(Write("1", {"d": None}))

    with pytest.raises(AssertionError, match="never acknowledged"):
        record.newest()


def test_the_plan_of_a_seed_is_fixed_and_begins_with_every_kind() -> None:
    faults = list(islice(plan(7, KINDS, 9.0), 200))

    assert faults == list(islice(plan(7, KINDS, 9.0), 200))
    assert faults != list(islice(plan(8, KINDS, 9.0), 200))
    assert {fault.kind for fault in faults[: len(KINDS)]} == set(KINDS)
    counts = Counter(fault.kind for fault in faults)
    assert min(counts.values()) >= 15
    stops = [fault for fault in faults if fault.kind == "stop"]
    assert {fault.target for fault in stops} == {"worker", "child", "redis", "qdrant", "postgres"}
    assert any(fault.seconds > 9.0 for fault in stops), "beyond the lease"
    assert any(fault.seconds < 6.0 for fault in stops), "within it"
    assert all(fault.seconds == 0.0 for fault in faults if fault.kind != "stop")


def test_a_drill_passes_only_where_nothing_is_counted() -> None:
    def passed(verdict: Verdict, *, seconds: float | None = 1.0, anomalies: tuple[str, ...] = ()) -> bool:
        counts = {"created": 1, "updated": 1, "deleted": 0, "same": 0}
        searches = Searches(made=3, anomalies=list(anomalies))
        report = Report("c", 1, 9.0, [Recovery("flush", seconds, alone=True)], 0, counts, 2, searches)
        assert report.to_json(verdict)["passed"] == report.passed(verdict)
        return report.passed(verdict)

    assert passed(Verdict(documents=3, points=5, leaving=2))
    assert not any(
        passed(replace(Verdict(), **{name: 1}))  # type: ignore[arg-type]
        for name in (
            *("lost", "duplicate", "stale", "half_documents", "wrong_vectors", "wrong_metadata"),
            *("embedded_twice", "failed"),
        )
    )
    assert not passed(Verdict(), seconds=None)
    assert not passed(Verdict(), anomalies=("half a document",))


@pytest.fixture
def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def _is_still(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def test_what_is_held_still_goes_on_by_the_word_by_the_clock_and_at_the_end(sleeper: subprocess.Popen[bytes]) -> None:
    pid = sleeper.pid
    try:
        with Pauser() as pauser:
            pauser.stop([pid], 600.0)
            assert eventually(lambda: _is_still(pid))
            pauser.go([pid])
            assert eventually(lambda: not _is_still(pid))

            pauser.stop([pid], 0.2)
            assert eventually(lambda: not _is_still(pid))

            pauser.stop([pid], 600.0)
            assert eventually(lambda: _is_still(pid))
        assert not _is_still(pid)
    finally:
        sleeper.kill()
        sleeper.wait()


def test_what_is_held_still_goes_on_when_who_asked_is_killed(sleeper: subprocess.Popen[bytes]) -> None:
    drill = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys, time\nfrom workers.drill.stack import Pauser\nwith Pauser() as pauser:\n"
            "    pauser.stop([int(sys.argv[1])], 600.0)\n    print('still', flush=True)\n    time.sleep(600)",
            str(sleeper.pid),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert drill.stdout is not None
        assert drill.stdout.readline() == b"still\n"
        assert eventually(lambda: _is_still(sleeper.pid))

        drill.kill()

        assert eventually(lambda: not _is_still(sleeper.pid))
    finally:
        drill.kill()
        drill.communicate()
        sleeper.kill()
        sleeper.wait()


def _run_file(home: Home, **more: object) -> None:
    addresses = {
        "postgres": {"url": "postgresql://u:secret@127.0.0.1:1/m"},
        "redis": {"url": "redis://:secret@127.0.0.1:2/0"},
        "qdrant": {"url": "grpc://:secret@127.0.0.1:3"},
    }
    (home.path / "run.json").write_text(json.dumps({"pid": 1, "settings": addresses, "parts": [], **more}))


def test_only_a_stack_that_runs_here_and_is_marked_is_drilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home.at(tmp_path / "home")
    home.create()
    with pytest.raises(NotDrillable, match=r"no stack runs on .*home, and .* only reached by its addresses"):
        DrilledStack(home.path)

    _run_file(home, drillable=True)  # of a stack that was killed whole
    with pytest.raises(NotDrillable, match="no stack runs"):
        DrilledStack(home.path)

    with home.locked():
        DrilledStack(home.path)
        monkeypatch.setenv("MILLRACE_QDRANT__URL", "grpc://:hidden@qdrant.example:6334")
        with pytest.raises(NotDrillable, match=r"MILLRACE_QDRANT__URL is set to grpc://:\*\*\*@qdrant.example:6334"):
            DrilledStack(home.path)
        monkeypatch.delenv("MILLRACE_QDRANT__URL")
        _run_file(home, drillable=False)
        with pytest.raises(NotDrillable, match="not marked as drillable"):
            DrilledStack(home.path)
        _run_file(home)
        with pytest.raises(NotDrillable, match="millrace up --drillable"):
            DrilledStack(home.path)


def test_a_kind_that_there_is_not_is_refused_by_name() -> None:
    done = CliRunner().invoke(command.drill, ["--kinds", "worker,meteor"])

    assert done.exit_code == 2
    assert "meteor is no kind of fault; there are worker, redis" in done.output
    assert command.KINDS == KINDS
