"""Memory of processes, as Linux tells it."""

from __future__ import annotations

from pathlib import Path


def memory_of(pid: int) -> dict[str, float]:
    """MB by kind: VmRSS, of which RssAnon is its own and RssShmem shared, and VmHWM, the most that VmRSS ever was;
    nothing for a process that has ended."""
    found: dict[str, float] = {}
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssAnon", "RssShmem", "VmHWM"):
            found[name] = int(value.split()[0]) / 1024
    return found
