"""A process that does what there is to do for one remote batch: it says how much memory that took, or is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remote_scene import RemoteScene


def harvest_alone(scene: RemoteScene, remote_id: int) -> dict[str, int]:
    """before, peak: resident bytes, before anything is read and at the most."""
    done = _run(scene, remote_id)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def killed_at(scene: RemoteScene, remote_id: int, boundary: str, nth: int = 1) -> None:
    """A process that is killed (SIGKILL) at the nth passing of a boundary of `BatchService`; it must come there."""
    done = _run(scene, remote_id, boundary, str(nth))
    assert done.returncode == -signal.SIGKILL, done.stderr


def _run(scene: RemoteScene, remote_id: int, *kill: str) -> subprocess.CompletedProcess[str]:
    settings = scene.settings
    given = {
        "postgres": {"url": settings.postgres.url.get_secret_value()},
        "redis": {"url": settings.redis.url.get_secret_value()},
        "openai": {"base_url": settings.openai.base_url, "api_key": settings.openai.api_key.get_secret_value()},
        "openai_batch": {"harvest_lines": settings.openai_batch.harvest_lines},
        "home": str(settings.home),
    }
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, __file__, json.dumps(given), str(remote_id), *kill],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def _main(given: str, remote_id: int, boundary: str = "", nth: int = 1) -> None:
    import openai  # noqa: F401 - it is resident in every worker that has asked for anything

    from pipeline.assembly import Services
    from pipeline.openai_batch.service import BatchService
    from pipeline.settings import load_settings
    from tasks.openai_batch import perform

    passed: list[str] = []

    def at(name: str) -> None:
        passed.append(name)
        if name == boundary and passed.count(name) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = load_settings(**json.loads(given))
    opened = Services(settings)
    with opened.ledger.transaction() as connection:
        connection.execute("SELECT 1")
    service = BatchService(opened.ledger, settings.openai, settings.openai_batch, settings.cost, at=at)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    perform(opened, remote_id, service)
    sys.stdout.write(json.dumps({"before": before, "peak": _resident("VmHWM")}))
    opened.close()


if __name__ == "__main__":
    _given, _remote_id, *_kill = sys.argv[1:]
    _main(_given, int(_remote_id), _kill[0] if _kill else "", int(_kill[1]) if _kill else 1)
