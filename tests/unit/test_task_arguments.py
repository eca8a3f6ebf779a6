"""What a message carries is an id, or nothing: no key, text or name can be read in Redis, in Flower or in a log."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module

import pytest
from celery import Celery

import tasks
from pipeline.errors import InvalidRequest
from tasks.base import parse_id


def all_tasks() -> dict[str, inspect.Signature]:
    """Name -> what it is called with, of all tasks that a worker knows."""
    for module in pkgutil.iter_modules(tasks.__path__):
        import_module(f"tasks.{module.name}")
    app = Celery("a test", set_as_current=False)
    app.finalize()
    own = {name: task.run for name, task in app.tasks.items() if task.run.__module__.startswith("tasks.")}
    return {name: inspect.signature(run) for name, run in own.items()}


def test_every_task_is_called_with_one_id_or_with_nothing() -> None:
    signatures = all_tasks()

    assert {"embed.batch", "prepare.batch", "delete.batch", "openai.batch", "duty.openai.poll"} <= set(signatures)
    for name, signature in signatures.items():
        parameters = list(signature.parameters.values())
        assert len(parameters) <= 1, name
        assert all(one.annotation == "int" and one.name.endswith("_id") for one in parameters), name


@pytest.mark.parametrize("carried", ["sk-of-a-test", {"api_key": "sk-of-a-test"}, ["sk-of-a-test"], None, True, 0, 1.5])
def test_what_is_no_id_is_refused(carried: object) -> None:
    with pytest.raises(InvalidRequest):
        parse_id(carried)
