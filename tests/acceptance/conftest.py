"""Homes of stacks in which the offline model is there already: to build it takes as long as to start a worker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import MakeHome


@pytest.fixture(scope="session")
def make_home(tmp_path_factory: pytest.TempPathFactory) -> MakeHome:
    """Makes a home in a new directory of this name. The first process that needs the model builds it, for all stacks of
    the run."""
    run = tmp_path_factory.getbasetemp()
    models = (run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "models"
    models.mkdir(exist_ok=True)

    def make(directory: str, name: str = "home") -> Path:
        home = tmp_path_factory.mktemp(directory) / name
        home.mkdir(mode=0o700)
        (home / "models").symlink_to(models)
        return home

    return make
