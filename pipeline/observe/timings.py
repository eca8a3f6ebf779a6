"""Seconds by step, for who is told how long one call took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from pipeline.observe.recorder import operation


@dataclass
class Timings:
    """Seconds spent by step, in the order in which the steps first ran. of: the operation that they are steps of, where
    they are recorded too."""

    of: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            with operation(f"{self.of}.{name}") if self.of else nullcontext():
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def milliseconds(self) -> dict[str, float]:
        return {name: round(value * 1000, 3) for name, value in self.seconds.items()}
