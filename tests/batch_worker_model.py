"""A ledger of remote batches that keeps what was committed, in memory, and a worker that stops before and behind
whatever it does: the service without its I/O. What it commits, and when, is what the real one does.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from batch_server_model import Server, themed

from pipeline.embedding.base import ModelSpec
from pipeline.lifecycle import check
from pipeline.openai_batch import after, lines, protocol, verdicts
from pipeline.openai_batch.answers import Failure
from pipeline.openai_batch.rendering import Written, render_line
from pipeline.openai_batch.steps import (
    Change,
    Clean,
    Commit,
    Create,
    DeleteInput,
    Look,
    Nothing,
    Read,
    Search,
    Step,
    Timing,
    Upload,
    Uploaded,
    Wait,
)

SPEC = ModelSpec("tiny", "openai", 3, 100, "remote", True, "float32", "model")
TIMING = Timing(timeout=60.0, grace=120.0)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    """As `remote_batches`."""

    key: str
    attempt: int = 1
    state: str = "planned"
    status: str | None = None
    inputs: int = 0
    tokens: int = 0
    bytes: int | None = None
    sha256: Any = None
    file_id: str | None = None
    remote_id: str | None = None
    remote: Mapping[str, Any] = field(default_factory=dict)
    others: Sequence[Mapping[str, Any]] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    harvested: Mapping[str, int] = field(default_factory=dict)
    harvested_at: datetime | None = None
    epoch: int = 0
    owned: bool = False
    tries: int = 0
    next_at: datetime | None = BEGIN
    poll_seconds: float | None = None
    intent_at: datetime | None = None
    listings: int = 0
    fenced_at: datetime | None = None
    cancel_reason: str | None = None
    doubtful: bool = False
    error: str | None = None
    submitted_at: datetime | None = None
    ended_at: datetime | None = None
    closed_at: datetime | None = None


@dataclass
class Purchase:
    """As `purchases`."""

    row: str | None = None  # key of the remote batch that it is in
    attempts: int = 0
    outcome: str | None = None
    message: str = ""


class Ledger:
    """What is committed. Every write of a claim asks for its epoch."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.purchases: dict[bytes, Purchase] = {}
        self.embeddings: dict[bytes, Any] = {}
        self.dead: dict[bytes, str] = {}
        self.paid: list[tuple[bytes, str]] = []  # what was told of payments: key, outcome of the line
        self.steps: set[tuple[str, str]] = set()

    def claim(self, now: datetime) -> Row | None:
        for row in self.rows.values():
            if not row.owned and row.next_at is not None and row.next_at <= now:
                self.rows[row.key] = replace(row, owned=True, epoch=row.epoch + 1)
                return self.rows[row.key]
        return None

    def holds(self, row: Row) -> bool:
        return self.rows[row.key].epoch == row.epoch and self.rows[row.key].owned

    def commit(self, row: Row, change: Change) -> Row | None:
        """None where the claim was lost."""
        if not self.holds(row):
            return None
        columns = dict(change.columns)
        if "state" in columns and columns["state"] != row.state:
            check("remote", row.state, columns["state"])
            self.steps.add((row.state, columns["state"]))
            columns = {"error": None, **columns}
        if change.settle:
            self._settle(row, columns)
        now = self.rows[row.key]  # a cancellation may have come meanwhile
        columns.setdefault("tries", now.tries + 1 if change.failed else 0)
        self.rows[row.key] = replace(now, **columns)
        return self.rows[row.key]

    def _settle(self, row: Row, columns: Mapping[str, Any]) -> None:
        left = [key for key, one in self.purchases.items() if one.row == row.key]
        items = [verdicts.Item(key, (one := self.purchases[key]).attempts, one.outcome, one.message) for key in left]
        found = verdicts.verdicts(
            items, status=str(columns["status"]), remote=row.remote, inputs=row.inputs, error=columns.get("error")
        )
        assert found.keys() == set(left), "what becomes of every text is decided"
        for key, told in found.items():
            if told.fate == "dead":
                self.dead[key] = told.reason
                del self.purchases[key]
            else:
                assert told.fate == "again", f"{key.hex()} has no vector and is {told.fate}"
                self.purchases[key] = Purchase(attempts=self.purchases[key].attempts + told.blamed)

    def release(self, row: Row, now: datetime, seconds: float) -> None:
        if self.holds(row):
            held = self.rows[row.key]
            news = held.cancel_reason != row.cancel_reason
            at = None if held.state == "closed" else now + timedelta(seconds=0.0 if news else seconds)
            self.rows[row.key] = replace(held, owned=False, next_at=at)

    def take_back(self, row: Row, now: datetime) -> None:
        """The lease has run out."""
        if self.holds(row):
            self.rows[row.key] = replace(self.rows[row.key], owned=False, epoch=row.epoch + 1, next_at=now)

    def wanted(self) -> list[bytes]:
        return [key for key, one in self.purchases.items() if one.row is None]

    def store(self, row: Row, read: Sequence[lines.Line]) -> None:
        for line in read:
            mine = line.key is not None and (one := self.purchases.get(line.key)) is not None and one.row == row.key
            placed = lines.placed(line, wanted=bool(mine), stored=line.key in self.embeddings)
            if placed.key is None:
                continue
            if placed.tokens != 0:
                self.paid.append((placed.key, placed.outcome))
            if placed.outcome == "embedded":
                assert placed.key not in self.embeddings, "nothing is embedded twice"
                self.embeddings[placed.key] = placed.vector
                del self.purchases[placed.key]
            elif mine:
                self.purchases[placed.key].outcome = placed.outcome
                self.purchases[placed.key].message = placed.message


class Worker:
    """At one claimed row. Stops before and behind whatever it does."""

    def __init__(
        self, ledger: Ledger, server: Server, row: Row, theme: tuple[Sequence[str], Sequence[str]] = ((), ())
    ) -> None:
        self.ledger, self.server, self.row, self.theme = ledger, server, row, theme
        self.modes: Iterator[str] = iter(())
        self._steps = self._work()

    def go_on(self, steps: int, modes: Iterator[str]) -> bool:
        """Up to so many boundaries further. modes: what becomes of its calls. False where it has nothing left to do."""
        self.modes = modes
        return len(list(islice(self._steps, steps))) == steps

    def _work(self) -> Generator[None, None, None]:
        for _ in range(60):
            yield
            step = protocol.next_step(self.row, self.server.now, TIMING)
            if isinstance(step, Nothing | Wait):
                seconds = step.seconds if isinstance(step, Wait) else 0.0
                return self.ledger.release(self.row, self.server.now, seconds)
            change = getattr(step, "commit", None)
            if change is not None:
                if not self._commit(change):
                    return None
                yield
            follows = step.change if isinstance(step, Commit) else self._carry_out(step)
            yield
            if follows is None or not self._commit(follows):
                return None
            if follows.seconds or follows.failed:
                return self.ledger.release(self.row, self.server.now, follows.seconds)
        return self.ledger.release(self.row, self.server.now, 10.0)

    def _commit(self, change: Change) -> bool:
        row = self.ledger.commit(self.row, change)
        if row is None:
            return False
        self.row = row
        return True

    def _carry_out(self, step: Step) -> Change | None:
        row, server, now = self.row, self.server, self.server.now
        mode = self._mode(creation=isinstance(step, Create))
        follows: Change | None
        match step:
            case Upload():
                follows = self._upload(step, mode)
            case Create():
                made = server.create(step.file_id, dict(step.metadata), mode)
                follows = after.after_create(row, made, now, TIMING, 0.5)
            case Search():
                follows = after.after_search(row, server.listed(step.since, mode), now, TIMING, 0.5)
            case DeleteInput():
                follows = after.after_delete(row, server.delete(step.file_id, mode), now, TIMING, 0.5)
            case Look():
                answers = {one: server.cancel(one, mode) for one in step.cancel}
                unsure = [one for one, answer in answers.items() if isinstance(answer, Failure)]
                answers |= {one: server.retrieve(one, self._mode()) for one in (*step.ask, *unsure)}
                follows = after.after_look(row, answers, now, TIMING, 0.5)
            case Read():
                follows = self._read(step)
            case Clean():
                failures = [server.delete(one, self._mode()) for one in step.files]
                follows = after.after_clean(row, [one for one in failures if one is not None], now, TIMING, 0.5)
            case _:
                raise AssertionError(step)
        return follows

    def _mode(self, *, creation: bool = False) -> str:
        return themed(next(self.modes), self.theme[0] if creation else self.theme[1])

    def _upload(self, step: Upload, mode: str) -> Change:
        keys = sorted(key for key, one in self.ledger.purchases.items() if one.row == self.row.key)
        if not keys:
            return after.nothing_wanted()
        written = Written()
        data = b"".join(written.add(render_line(key, key.hex(), "tiny", None, "base64")) for key in keys)
        file_id: str | Failure | None = None
        if step.search:
            found = self.server.files_named(step.name, self._mode())
            if isinstance(found, Failure):
                return after.after_upload(self.row, found, TIMING, 0.5)
            file_id, unwanted = after.pick_file(found, step.name, len(data))
            for one in unwanted:
                self.server.delete(one, "ok")
        if file_id is None:
            file_id = self.server.upload(step.name, data, mode)
        if isinstance(file_id, Failure):
            return after.after_upload(self.row, file_id, TIMING, 0.5)
        return after.after_upload(
            self.row, Uploaded(file_id, written.lines, written.bytes, written.sha256), TIMING, 0.5
        )

    def _read(self, step: Read) -> Change | None:
        failures, torn = [], False
        for file in step.files:
            splitter = lines.Splitter(self.row.harvested.get(file.file_id, 0))
            data, failed = self.server.content(file.file_id, splitter.offset, self._mode())
            read = [lines.parse_line(line, SPEC) for line in splitter.feed(data)]
            if failed is not None:
                failures.append(failed)
            else:
                last = lines.parse_line(splitter.end(), SPEC, last=True)
                if last.outcome == "torn":
                    torn = True
                else:
                    read.append(last)
            if not self.ledger.holds(self.row):
                return None
            self.ledger.store(self.row, read)
            stored = {**self.row.harvested, file.file_id: splitter.offset}
            self._commit(Change({"harvested": stored, "tries": self.row.tries}))
        waiting = [one for one in self.ledger.purchases.values() if one.row == self.row.key and one.outcome is None]
        answered = self.row.inputs - len(waiting)
        return after.after_read(
            self.row, answered=answered, torn=torn, failures=failures, now=self.server.now, timing=TIMING, jitter=0.5
        )
