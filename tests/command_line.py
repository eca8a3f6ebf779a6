"""The real program `millrace`, run as a person runs it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preloaded import Preloaded

PATIENCE_SECONDS = 90.0
_PRELOADED = Preloaded()

MakeHome = Callable[..., Path]  # in a new directory of this name; see tests/acceptance/conftest.py


@dataclass(frozen=True)
class CommandLine:
    """Commands on one home. They see no MILLRACE_ variable of ours but those in `env`."""

    home: Path
    env: dict[str, str] = field(default_factory=dict)

    def run(
        self, *arguments: str, status: int | None = 0, typed: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `millrace ARGUMENTS` to its end, which must be with this exit status (None: any).

        typed: what it reads from standard input.
        """
        done = _PRELOADED.run(arguments, self.environment(), self.home.parent, typed, PATIENCE_SECONDS)
        if status is not None and done.returncode != status:
            said = f"{done.stdout}\n{done.stderr}\n{self.logs()}"
            raise AssertionError(f"millrace {' '.join(arguments)} ended with {done.returncode}\n{said}")
        return done

    def json(self, *arguments: str, status: int | None = 0) -> dict[str, Any]:
        """Runs `millrace ARGUMENTS --json`; returns the object it printed."""
        content = json.loads(self.run(*arguments, "--json", status=status).stdout)
        assert isinstance(content, dict)
        return content

    def addresses(self) -> dict[str, str]:
        """What `millrace env` prints, as an environment."""
        words = shlex.split(self.run("env").stdout)
        return dict(word.split("=", 1) for word in words if word != "export")

    def argv(self, *arguments: str) -> list[str]:
        return [str(Path(sys.executable).with_name("millrace")), *arguments]

    def environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
        return {**ours, "MILLRACE_HOME": str(self.home), **self.env}

    def logs(self) -> str:
        """The end of every log, for a failure's report."""
        found = sorted((self.home / "logs").glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in found)


def eventually(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true answer of `what`; fails when there was none in time."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"not within {seconds} seconds: {what}"
        time.sleep(0.05)
    return answer
