"""Waiting for a server that is away for a moment, where what is done would have to be begun again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import Unavailable

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0

_T = TypeVar("_T")


class Patience:
    """So many seconds for each outage."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None
        self._pause = _FIRST_PAUSE_SECONDS

    def call(self, what: Callable[[], _T]) -> _T:
        """What it returns; called again while it raises Unavailable. Raises that when the time is up."""
        while True:
            try:
                result = what()
            except Unavailable:
                self.wait()
                continue
            self.well()
            return result

    def wait(self) -> None:
        """Waits a little before another try. Raises the error that is being handled, when the time is up."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since >= self._seconds:
            raise  # noqa: PLE0704 - called where one is handled
        time.sleep(min(self._pause, self._seconds))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)

    def well(self) -> None:
        """It answers again: the next outage has all the time."""
        self._since = None
        self._pause = _FIRST_PAUSE_SECONDS
