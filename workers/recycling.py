"""By which memory billiard's pool replaces a child: what is resident now, after it was asked to give back what it can.

billiard looks, after each task whose end it has reported, at the most that was ever resident (`ru_maxrss`): one large
document, long gone, would cost every child its life, and no collection could save it.
"""

from __future__ import annotations

from billiard import pool

from tasks.memory import resident_after_task


def install() -> None:
    """From now on children of this process are judged so. Called before the pool forks."""
    pool.mem_rss = resident_after_task
