"""What is written down of an exception, and of a process that died without one."""

from __future__ import annotations

import pytest
from billiard.exceptions import WorkerLostError

from pipeline.errors import EmptyDocument
from tasks.failures import MAX_ERROR_CHARACTERS, MAX_TRACEBACK_CHARACTERS, tell, trace
from workers.deaths import how


def test_an_error_of_ours_is_told_by_its_message_and_any_other_with_its_type() -> None:
    assert tell(EmptyDocument("a.md has no text")) == "a.md has no text"
    assert tell(ValueError("wrong")) == "ValueError: wrong"
    assert len(tell(ValueError("x" * 10_000))) == MAX_ERROR_CHARACTERS


def test_passwords_and_what_postgres_cannot_hold_are_left_out() -> None:
    error = RuntimeError("cannot reach redis://user:se:cr-et@host:1/0 \x00\udc80 and https://host/a:b@c")
    assert tell(error) == "RuntimeError: cannot reach redis://user:***@host:1/0 \ufffd\ufffd and https://host/a:b@c"


def test_a_traceback_has_its_causes_and_is_cut_at_the_front() -> None:
    def fails() -> None:
        try:
            raise ValueError("the cause: postgresql://me:secret@host/db")
        except ValueError as cause:
            raise RuntimeError("outside") from cause

    with pytest.raises(RuntimeError) as caught:
        fails()
    told = trace(caught.value)
    assert "ValueError: the cause: postgresql://me:***@host/db" in told
    assert told.endswith("RuntimeError: outside\n")
    assert "secret" not in told

    long = trace(RuntimeError("x" * 100_000 + "the end"))
    assert len(long) <= MAX_TRACEBACK_CHARACTERS + 4
    assert long.startswith("...\n")
    assert long.endswith("the end\n")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("Worker exited prematurely: signal 11 (SIGSEGV) Job: 7.", "signal 11 (SIGSEGV)"),
        ("Worker exited prematurely: exitcode 3 Job: 12.", "exitcode 3"),
        ("gone", "gone"),
    ],
)
def test_how_a_process_died_is_found_in_billiards_words(told: str, expected: str) -> None:
    assert how(WorkerLostError(told)) == expected
