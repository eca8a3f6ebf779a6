"""The four state machines: which steps they have, and that nothing ends where it cannot."""

from __future__ import annotations

import pytest

from pipeline.errors import IllegalTransition
from pipeline.lifecycle import BATCH, FINISHED_JOBS, JOB, MACHINES, UNFINISHED_VERSIONS, VERSION, check, sources

EVERY_STEP = [(machine, state, target) for machine, table in MACHINES.items() for state in table for target in table]


@pytest.mark.parametrize("machine", MACHINES)
def test_every_target_is_a_state_and_none_leads_to_itself(machine: str) -> None:
    for state, targets in MACHINES[machine].items():
        assert targets <= MACHINES[machine].keys()
        assert state not in targets


@pytest.mark.parametrize(
    ("machine", "start"), [("job", "queued"), ("version", "staged"), ("batch", "ready"), ("remote", "planned")]
)
def test_every_state_can_be_reached_from_the_first(machine: str, start: str) -> None:
    reached, to_visit = {start}, [start]
    while to_visit:
        found = MACHINES[machine][to_visit.pop()] - reached
        reached |= found
        to_visit += sorted(found)

    assert reached == MACHINES[machine].keys()


@pytest.mark.parametrize(("machine", "state", "target"), EVERY_STEP)
def test_check_lets_the_steps_of_the_table_pass_and_no_other(machine: str, state: str, target: str) -> None:
    if target in MACHINES[machine][state]:
        check(machine, state, target)
        assert state in sources(machine, target)
    else:
        with pytest.raises(IllegalTransition, match=f"a {machine} cannot go from '{state}' to '{target}'"):
            check(machine, state, target)


def test_what_cannot_be_is_told_by_name() -> None:
    with pytest.raises(IllegalTransition, match="cannot go from 'lost' to 'running'"):
        check("job", "lost", "running")
    with pytest.raises(IllegalTransition, match="no state of a job leads to 'queue'"):
        sources("job", "queue")
    with pytest.raises(IllegalTransition, match="no state of a version leads to 'staged'"):
        sources("version", "staged")


def test_what_is_finished_stays_so() -> None:
    assert {state for state, targets in JOB.items() if not targets} == set(FINISHED_JOBS) - {"partial"}
    assert JOB["partial"] == {"running"}, "a job whose enqueuer was cut off goes on"
    assert {state for state, targets in VERSION.items() if targets} == set(UNFINISHED_VERSIONS)
    assert {state for state, targets in BATCH.items() if not targets} == {"indexed", "cancelled"}


def test_only_what_is_open_is_published_and_only_what_runs_is_indexed() -> None:
    assert sources("version", "published") == ["open"]
    assert sources("batch", "indexed") == ["running"]
    assert sources("job", "succeeded") == ["paused", "queued", "running"]
