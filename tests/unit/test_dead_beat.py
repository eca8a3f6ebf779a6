"""The pid file of a beat that was killed keeps no other from starting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from workers.programs import forget_dead_beat


def test_a_pid_file_of_nobody_or_of_somebody_else_is_taken_away(tmp_path: Path) -> None:
    flag = tmp_path / "beat.pid"
    forget_dead_beat(tmp_path)  # there is none
    for content in ("nothing", "2147483646\n", f"{os.getpid()}\n"):
        flag.write_text(content)
        forget_dead_beat(tmp_path)
        assert not flag.exists(), content


def test_a_pid_file_of_one_that_is_dead_and_not_buried_is_taken_away(tmp_path: Path) -> None:
    flag = tmp_path / "beat.pid"
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()", "beat"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE) as beat:
        flag.write_text(f"{beat.pid}\n")
        forget_dead_beat(tmp_path)
        assert flag.exists(), "it lives"

        beat.kill()
        os.waitid(os.P_PID, beat.pid, os.WEXITED | os.WNOWAIT)  # dead, and not buried
        forget_dead_beat(tmp_path)
        assert not flag.exists()
