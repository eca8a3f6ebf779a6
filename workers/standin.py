"""Alerts where Redis is away: no tick reaches a worker then, and it is just then that somebody is to be called.

Run as a process of its own by a worker's main process, which has no clients of Qdrant open, and forks. It runs the
duties that raise alerts and deliver their webhooks, under the leases of their rows like any other run, and ends.
"""

from __future__ import annotations

import subprocess
import sys

from pipeline.observe import logger
from workers.light_import import leave_out_clients

# What is run, in this order: the second delivers what the first owes.
DUTIES = ("alerts", "webhooks")

_log = logger("standin")


class Standin:
    """Starts the process; one at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> bool:
        """False where the one before has not ended yet."""
        if self._process is not None and self._process.poll() is None:
            return False
        self._process = subprocess.Popen([sys.executable, "-P", "-m", "workers.standin"], stdin=subprocess.DEVNULL)
        return True

    def stop(self, seconds: float) -> None:
        """Waits for it so long, and ends it then: the leases of its duties run out."""
        if self._process is None:
            return
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Runs what is due, and waits for the webhooks."""
    from pipeline.assembly import Services
    from pipeline.errors import SchemaMismatch, Unavailable
    from pipeline.monitoring import logs
    from pipeline.settings import load_settings
    from tasks.duties import named, run_duty

    settings = load_settings()
    logs.configure("standin", format=settings.logs.format, level=settings.logs.level)
    opened = Services(settings)
    try:
        for name in DUTIES:
            if run_duty(opened, named(name)) is not None:
                _log.info("ran the duty %s: no tick comes while Redis is away", name)
        opened.deliverer.wait(settings.webhooks.timeout)
    except (Unavailable, SchemaMismatch) as error:
        _log.warning("alerts are not looked for: %s", error)
    finally:
        opened.close()


if __name__ == "__main__":
    leave_out_clients()
    main()
