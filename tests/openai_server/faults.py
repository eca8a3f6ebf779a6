"""Faults: which operation, what happens, how often. Kept in the database, so that they outlive a restart.

On every operation (`embeddings`, `files.create`, `files.list`, `files.get`, `files.delete`, `files.content`,
`batches.create`, `batches.list`, `batches.get`, `batches.cancel`, or `*`):

    status          the error `code` (500 if not said), and nothing is done; `message`, `error_code`, `headers`
    rate_limit      429; `retry_after` seconds, told as `how`: "ms", "seconds", "date", or None for no header at all
    quota           429 insufficient_quota
    refuse          the connection is closed and nothing is done
    drop            it is done, and the connection is closed without an answer
    reset           it is done, and the connection is reset in the middle of the answer
    cut             it is done; `share` of the answer comes, its length announced
    error_in_200    it is done; 200 with an error body
    garbage         it is done; 200 with something that is no JSON
    slow            `seconds` more, before it is done
    linger          `seconds` more, after it is done and before it is answered
    late            of both creates: the connection is closed, and it is done `seconds` later

Of embeddings: `wrong_index`, `wrong_dimension`, `wrong_count`, `nan`, `zero`, `null`, `no_usage`, `no_headers`;
`renamed`: it says that the model `name` made them.
Of files.create: `invisible` for `seconds`. Of batches.create: `lag`: listed only after `seconds`; `foreign`: `count`
batches of somebody else's beside it. Of files.content: `truncated`: `share` of it, and its end looks honest.

Of `batch`, what becomes of the next one created: see fates.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openai_server.store import Store


@dataclass(frozen=True)
class Fault:
    kind: str
    given: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        return self.given.get(name, default)


class Drawn:
    """The faults that hit one request."""

    def __init__(self, faults: list[Fault]) -> None:
        self._faults = {fault.kind: fault for fault in faults}

    def __contains__(self, kind: str) -> bool:
        return kind in self._faults

    def get(self, kind: str) -> Fault | None:
        return self._faults.get(kind)


def add(store: Store, operation: str, kind: str, given: Mapping[str, Any]) -> int:
    """times: None: always. skip: so many operations are spared first. probability, seed: by chance, repeatably.
    match: only operations with this in their path or body; of `batch` it is the fate's own."""
    rest = dict(given)
    times, skip = rest.pop("times", 1), rest.pop("skip", 0)
    probability, seed = rest.pop("probability", 1.0), rest.pop("seed", 0)
    match = "" if operation == "batch" else rest.pop("match", "")
    with store.transaction() as database:
        cursor = database.execute(
            """INSERT INTO faults (operation, kind, left_times, skip, probability, seed, looked, fired, match, given)
               VALUES (?, ?, ?, ?, ?, ?, 0, 0, ?, ?)""",
            (operation, kind, times, skip, probability, seed, match, json.dumps(rest)),
        )
    return int(cursor.lastrowid or 0)


def draw(store: Store, operation: str, seen: str) -> list[Fault]:
    """The faults that hit this operation now. seen: its path and body, for `match`."""
    found = []
    with store.transaction() as database:
        rows = database.execute(
            """SELECT * FROM faults
                WHERE (operation = ? OR operation = '*' AND ? <> 'batch') AND left_times IS NOT 0 ORDER BY id""",
            (operation, operation),
        ).fetchall()
        for row in rows:
            if row["match"] not in seen:
                continue
            spared = row["looked"] < row["skip"]
            fires = not spared and random.Random(f"{row['seed']}:{row['looked']}").random() < row["probability"]
            database.execute(
                "UPDATE faults SET looked = looked + 1, fired = fired + ?, left_times = left_times - ? WHERE id = ?",
                (int(fires), int(fires), row["id"]),
            )
            if fires:
                found.append(Fault(row["kind"], json.loads(row["given"])))
    return found
