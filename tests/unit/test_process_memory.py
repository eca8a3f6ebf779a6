"""What a process measures of itself, and when it gives memory back."""

from __future__ import annotations

import gc
import inspect
import json
import os
import subprocess
import sys
import time
import weakref

import psutil
import pytest
from billiard import pool

from pipeline import resident
from pipeline.monitoring.process import ProcessMemory, sample
from pipeline.observe import recorder
from pipeline.resident import MIB
from pipeline.settings import MemorySettings
from tasks import collector, memory
from tasks.memory import Keeper
from workers import recycling


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Why this process collected; instead of collecting."""
    made: list[str] = []

    def collect(why: str) -> resident.Collection:
        made.append(why)
        return resident.Collection(time.time(), 0, resident.resident_bytes(), 0.0, why)

    monkeypatch.setattr(resident, "collect", collect)
    monkeypatch.setattr(memory, "_asked", bytearray(8))
    return made


def resident_is(monkeypatch: pytest.MonkeyPatch, megabytes: int) -> None:
    monkeypatch.setattr(resident, "resident_bytes", lambda: megabytes * MIB)


def test_a_process_measures_itself_as_the_system_sees_it_and_in_json() -> None:
    # Given 60 MB that are really there
    ballast = b"x" * (60 * MIB)

    # When the process measures itself
    found = sample()

    # Then the system says the same
    process = psutil.Process()
    assert found.pid == os.getpid()
    assert found.rss == pytest.approx(process.memory_info().rss, rel=0.05)
    assert found.peak >= found.rss > len(ballast)
    assert found.cpu_seconds == pytest.approx(sum(process.cpu_times()[:2]), abs=1.0)
    assert found.threads >= 1
    if sys.platform == "linux":
        assert found.uss is not None
        assert 60 * MIB < found.uss <= found.peak
        assert found.c_heap is not None
        assert found.c_heap > 60 * MIB
        assert found.files == pytest.approx(process.num_fds(), abs=2)
    # And it can be sent
    assert ProcessMemory.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_forked_child_measures_itself_and_not_its_parent() -> None:
    # Given a process that has measured itself, and a child of it that takes 80 MB more; in a program of its own, since
    # this one has threads
    program = """
import os
from pipeline import resident
before = resident.resident_bytes()
reading, writing = os.pipe()
if os.fork() == 0:
    ballast = b"x" * (80 << 20)
    os.write(writing, str(resident.resident_bytes()).encode())
    os._exit(0)
os.wait()
print(before, int(os.read(reading, 99)), resident.resident_bytes())
"""
    # When both are asked
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)

    # Then each tells its own
    before, child, after = (int(word) for word in done.stdout.split())
    assert child - before > 60 * MIB
    assert abs(after - before) < 20 * MIB


def test_a_sample_never_fails_where_the_system_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given no /proc, and a C library without what glibc has
    def missing(path: str) -> list[bytes]:
        raise FileNotFoundError(path)

    monkeypatch.setattr("pipeline.monitoring.process._lines", missing)
    monkeypatch.setattr("pipeline.monitoring.process._unique._pid", -1)
    monkeypatch.setattr(resident, "_statm", None)
    monkeypatch.setattr(resident, "_libc", lambda _: None)

    # When the process measures itself, and collects
    found = sample()
    done = resident.collect("asked")

    # Then what is known is told
    assert found.rss > 10 * MIB
    assert found.c_heap is None
    assert done.after > 10 * MIB


def test_a_collection_gives_back_cycles_caches_and_free_memory_and_says_how_much() -> None:
    # Given 80 MB in a cycle, and a cache of 60 MB that can be had again
    class Cache:
        def __init__(self) -> None:
            self.kept: bytes | None = b"x" * (60 * MIB)

        def release(self) -> None:
            self.kept = None

    cache = Cache()
    resident.on_pressure(cache.release)
    cycle: list[object] = [b"x" * (80 * MIB)]
    cycle.append(cycle)
    del cycle
    recorder.drain()

    # When this process collects
    done = resident.collect("soft")

    # Then both are gone, and told of
    assert cache.kept is None
    assert done.before - done.after > 120 * MIB
    assert (done.why, done) == ("soft", resident.last_collection())
    assert sample().collected == done
    measured = recorder.drain()
    assert measured.counts[resident.COLLECTIONS, ("soft",)] == 1
    assert measured.counts[resident.COLLECTED_BYTES, ()] == done.before - done.after
    # And a cache that is gone is not kept alive by having been asked for
    watched = weakref.ref(cache)
    del cache
    gc.collect()
    assert watched() is None


def test_a_cache_that_fails_to_let_go_does_not_hold_up_the_others(caplog: pytest.LogCaptureFixture) -> None:
    # Given two caches, of which the first fails
    let_go: list[str] = []

    class Broken:
        def release(self) -> None:
            raise RuntimeError("no")

    class Sound:
        def release(self) -> None:
            let_go.append("sound")

    broken, sound = Broken(), Sound()
    resident.on_pressure(broken.release)
    resident.on_pressure(sound.release)

    # When this process collects, then the other one is asked too
    resident.collect("asked")
    assert let_go == ["sound"]
    assert "a cache could not let go" in caplog.text


def test_an_idle_process_above_the_soft_limit_collects_once_in_so_many_seconds(
    collections: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper(MemorySettings(soft_mb=100, hard_mb=500, collect_seconds=1000))

    # Below the soft limit it does nothing
    resident_is(monkeypatch, 99)
    keeper.look()
    assert collections == []
    # Above it it collects, once
    resident_is(monkeypatch, 101)
    keeper.look()
    keeper.look()
    assert keeper.after_task() == 101 * MIB
    assert collections == ["soft"]
    # Asked for, it collects again, whatever its size
    resident_is(monkeypatch, 50)
    memory.ask()
    keeper.look()
    keeper.look()
    assert collections == ["soft", "asked"]


def test_a_process_that_was_started_after_the_request_is_not_meant(
    collections: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.ask()
    Keeper(MemorySettings()).look()
    assert collections == []


def test_a_child_above_the_hard_limit_collects_and_tells_the_pool_what_is_left(
    collections: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a child above the hard limit, lately collected
    keeper = Keeper(MemorySettings(soft_mb=100, hard_mb=500, collect_seconds=1000))
    resident_is(monkeypatch, 400)
    keeper.after_task()

    # When a task has taken it above the hard one, and a collection leaves little of that
    resident_is(monkeypatch, 600)
    left_by = {"hard": 300 * MIB}

    def collect(why: str) -> resident.Collection:
        collections.append(why)
        return resident.Collection(0.0, 600 * MIB, left_by[why], 0.0, why)

    monkeypatch.setattr(resident, "collect", collect)
    left = keeper.after_task()

    # Then it stays
    assert (left, collections) == (300 * MIB, ["soft", "hard"])
    assert "is replaced" not in caplog.text
    # And where all of it is left, it goes
    left_by["hard"] = 600 * MIB
    assert keeper.after_task() == 600 * MIB
    assert "this pool child is replaced: 600 MB are resident after a collection" in caplog.text


def test_billiard_judges_a_child_by_what_is_resident_after_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given what billiard calls between two tasks; were it called otherwise, nothing would be replaced, or too much
    source = inspect.getsource(pool.Worker.workloop)
    assert "used_kb = mem_rss()" in source
    assert source.index("put((READY") < source.index("mem_rss()")
    before = pool.mem_rss
    monkeypatch.setattr(pool, "mem_rss", before)

    # When it is mended
    recycling.install()

    # Then it is ours, in KiB
    assert pool.mem_rss is memory.resident_after_task
    assert pool.Worker.workloop.__globals__["mem_rss"]() == pytest.approx(resident.resident_bytes() / 1024, rel=0.1)


def test_what_is_loaded_before_the_fork_and_by_the_first_task_is_no_work_for_the_collector() -> None:
    # Given a worker's beginning: imports, the fork, a model, a task; in a program of its own, which is forked here
    program = """
import gc, os
from pipeline import resident
from tasks import collector
loaded = [[number] for number in range(100_000)]
collector.before_fork()
if os.fork() == 0:
    collector.enter_child()
    before = gc.get_freeze_count()
    collector.after_task()
    without_model = gc.get_freeze_count()
    resident.hold("model", 1)
    model = [[number] for number in range(50_000)]
    collector.after_task()
    warm = gc.get_freeze_count()
    later = [[number] for number in range(50_000)]
    collector.after_task()
    print(before, without_model, warm, gc.get_freeze_count(), *gc.get_threshold(), flush=True)
    os._exit(0)
os.wait()
"""
    # When it has done its first tasks
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)

    # Then what was there at the fork is frozen, what the first task with a model left too, and what comes later is not
    before, without_model, warm, after, *thresholds = (int(word) for word in done.stdout.split())
    assert before == without_model > 100_000
    assert warm - before > 49_000
    assert after == warm
    assert tuple(thresholds) == collector.THRESHOLDS
