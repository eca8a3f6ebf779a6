"""Celery's processes log as all of ours do: its own ways of setting logging up are off, in the pool's children too."""

from __future__ import annotations

import sys
from typing import Any

from celery.signals import celeryd_init, setup_logging

from pipeline.monitoring import logs
from pipeline.settings import LogSettings

# By the word of Celery's command line; a worker is called by its name.
_COMMANDS = ("beat", "flower")


class Logging:
    """The logging of this process, by the settings."""

    def __init__(self, settings: LogSettings) -> None:
        self._settings = settings
        self._process = next((word for word in sys.argv[1:] if word in _COMMANDS), "celery")

    def connect(self) -> None:
        """Hangs it onto Celery's signals."""
        celeryd_init.connect(self._name, weak=False)
        setup_logging.connect(self._configure, weak=False)
        if self._process == "flower":
            # It never asks; and Tornado writes in a way of its own where nobody has set logging up.
            self._configure()

    def _name(self, sender: str = "", **_: Any) -> None:
        self._process = sender.partition("@")[0] or self._process

    def _configure(self, **_: Any) -> None:
        logs.configure(self._process, format=self._settings.format, level=self._settings.level)
