"""The memory of all processes of ours, as each has measured itself and reported to the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.ledger import fleet, services
from pipeline.ledger.engine import Connection
from pipeline.resident import MIB
from pipeline.settings import MemorySettings


@dataclass(frozen=True, slots=True)
class FleetProcess:
    """name: such as `general1@host main`, `general1@host child 0`, `beat@host`. worker: its row's id; None: it is of no
    worker. memory: as `ProcessMemory.to_json` has it.
    """

    name: str
    worker: str | None
    host: str
    memory: Mapping[str, Any]

    @property
    def rss(self) -> int:
        return int(self.memory["rss"])


@dataclass(frozen=True, slots=True)
class FleetMemory:
    """Bytes resident of all processes together and of the greatest; how many are above the two limits."""

    processes: int
    total: int
    greatest: int
    above_soft: int
    above_hard: int

    def to_json(self) -> dict[str, int]:
        return {
            "processes": self.processes,
            "total_mb": self.total // MIB,
            "greatest_mb": self.greatest // MIB,
            "above_soft": self.above_soft,
            "above_hard": self.above_hard,
        }


def processes(connection: Connection) -> list[FleetProcess]:
    """Of workers that are alive their main process and its children; and the other services, such as beat."""
    found = []
    for row in fleet.alive(connection):
        worker = row["id"].partition("#")[0]
        for memory in row["processes"]:
            part = "main" if memory.get("slot", -1) < 0 else f"child {memory['slot']}"
            found.append(FleetProcess(f"{worker} {part}", row["id"], row["host"], memory))
    return found + [
        FleetProcess(f"{service.name}@{service.host}", None, service.host, service.memory)
        for service in services.listing(connection)
        if service.alive and service.memory
    ]


def machines(found: Iterable[FleetProcess]) -> dict[str, float]:
    """Host -> per cent of its memory in use, as the process there told that measured itself last."""
    told = sorted((process for process in found if "machine_percent" in process.memory), key=lambda it: it.memory["at"])
    return {one.host: one.memory["machine_percent"] for one in told if one.memory["machine_percent"] is not None}


def report(connection: Connection, settings: MemorySettings) -> FleetMemory:
    """All of them together."""
    sizes = [process.rss for process in processes(connection)]
    return FleetMemory(
        len(sizes),
        sum(sizes),
        max(sizes, default=0),
        sum(size > settings.soft_mb * MIB for size in sizes),
        sum(size > settings.hard_mb * MIB for size in sizes),
    )


def ask_large(connection: Connection, settings: MemorySettings, *, dry_run: bool = False) -> list[str]:
    """Asks workers of which a process is above `soft_mb` to collect. Returns their ids."""
    large = {found.worker for found in processes(connection) if found.worker and found.rss > settings.soft_mb * MIB}
    if not large or dry_run:
        return sorted(large)
    return fleet.ask_to_collect(connection, sorted(large))
