"""Python's own garbage collector in a worker: how often it runs, and what it need not look at.

What a process has imported and loaded lives as long as it does. `gc.freeze` takes it out of what every full collection
walks over; before the fork that also keeps the pages shared, which a collection would write to, and so copy.
Figures: docs/memory.md, `python -m benchmarks collector`.
"""

from __future__ import annotations

import gc

from pipeline import resident

# Objects made, less those gone, before the youngest generation is collected; collections of one generation before the
# next one's. A batch makes some hundred thousand objects and frees nearly all of them by counting references alone.
THRESHOLDS = (20_000, 20, 20)


class _Own:
    """Of this process."""

    warm = False


def before_fork() -> None:
    """In the main process, when all is imported that its children will need."""
    gc.collect()
    gc.freeze()


def enter_child() -> None:
    """In a fresh child."""
    _Own.warm = False
    gc.set_threshold(*THRESHOLDS)


def after_task() -> None:
    """In a child between two tasks: freezes what is there, once, after the first task that needed the model."""
    if not _Own.warm and resident.held_bytes():
        _Own.warm = True
        gc.collect()
        gc.freeze()
