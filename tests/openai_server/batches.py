"""Batches: made, moved on by the server's clock or step by step, carried out, and told of."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from openai_server import files, lines
from openai_server.answers import ApiError, missing
from openai_server.batch import TERMINAL, WINDOW, Batch
from openai_server.faults import Fault
from openai_server.models import Models
from openai_server.production import Produced, produce
from openai_server.store import Store

# A batch whose input is larger is worked on while others are answered.
LARGE_BYTES = 2_000_000


class Batches:
    def __init__(self, store: Store, models: Models) -> None:
        self.store = store
        self.models = models
        self._moving = threading.RLock()
        self._pool = ThreadPoolExecutor(1)
        self._working: dict[str, Future[None]] = {}

    # -- what clients ask for

    def create(self, account: str, body: Any, at: float, fate: list[Fault], lag: float = 0.0) -> Batch:
        """Raises ApiError for whatever OpenAI refuses."""
        given = _checked(body)
        file = self._input(account, given["input_file_id"])
        if file["purpose"] != "batch":
            raise ApiError(400, f"Invalid purpose of file {file['id']}: expected batch.", param="input_file_id")
        expires = given.get("output_expires_after") or {}
        batch = Batch(
            files.new_id("batch_"),
            account,
            "validating",
            at,
            file["id"],
            given.get("metadata"),
            entered_at=at,
            fate=[{"kind": fault.kind, "given": dict(fault.given)} for fault in fate],
            output_expires=expires.get("seconds"),
        )
        gone = batch.destiny.get("gone")
        with self.store.transaction() as database:
            database.execute(
                """INSERT INTO batches (id, account, state, created_at, listed_at, gone_at, record)
                   VALUES (?, ?, ?, ?, ?, ?, ?)""",
                (batch.id, account, batch.state, at, at + lag, at + gone.get("seconds", 0) if gone else None,
                 json.dumps(asdict(batch))),
            )  # fmt: skip
        return batch

    def foreign(self, account: str, count: int, at: float) -> None:
        """Batches of somebody else who uses the same account: they are done, and their files are gone."""
        with self.store.transaction() as database:
            for _ in range(count):
                batch = Batch(
                    files.new_id("batch_"), account, "completed", at, files.new_id("file-"), {"purpose": "nightly"},
                    total=1, completed=1, output_file_id=files.new_id("file-"), times={"completed": at},
                )  # fmt: skip
                database.execute(
                    "INSERT INTO batches (id, account, state, created_at, listed_at, record) VALUES (?, ?, ?, ?, ?, ?)",
                    (batch.id, account, batch.state, at, at, json.dumps(asdict(batch))),
                )

    def shown(self, batch: Batch) -> dict[str, Any]:
        return batch.shown(self._share(batch, self.store.now()))

    def cancel(self, account: str, batch_id: str) -> Batch:
        with self._moving:
            batch = self.get(account, batch_id)
            if batch.state in TERMINAL:
                raise ApiError(409, f"Cannot cancel a batch with status '{batch.state}'.")
            if batch.state != "cancelling":
                now = self.store.now()
                batch.done = self._share(batch, now)
                self._enter(batch, "cancelling", now)
            return batch

    def get(self, account: str, batch_id: str) -> Batch:
        with self.store.transaction() as database:
            row = database.execute("SELECT * FROM batches WHERE id = ? AND account = ?", (batch_id, account)).fetchone()
        if row is None or (row["gone_at"] is not None and row["gone_at"] <= self.store.now()):
            raise missing("Batch", batch_id)
        return Batch(**json.loads(row["record"]))

    def page(self, account: str, limit: int, after: str | None) -> tuple[list[Batch], bool]:
        """(batches, whether there are more), newest first."""
        if not 1 <= limit <= 100:
            raise ApiError(400, f"Invalid 'limit': {limit} is not between 1 and 100.", param="limit")
        now = self.store.now()
        with self.store.transaction() as database:
            start = None
            if after is not None:
                row = database.execute("SELECT seq FROM batches WHERE id = ?", (after,)).fetchone()
                if row is None:
                    raise ApiError(400, f"Invalid 'after': no batch {after}.", param="after")
                start = row["seq"]
            rows = database.execute(
                """SELECT record FROM batches
                    WHERE account = ? AND listed_at <= ? AND (gone_at IS NULL OR gone_at > ?) AND (? IS NULL OR seq < ?)
                    ORDER BY seq DESC LIMIT ?""",
                (account, now, now, start, start, limit + 1),
            ).fetchall()
        return [Batch(**json.loads(row["record"])) for row in rows[:limit]], len(rows) > limit

    # -- how they move on

    def settle(self, *, wait: bool = False) -> None:
        """Moves every batch to where it is by now. wait: large ones too, which else are worked on meanwhile."""
        with self.store.transaction() as database:
            rows = database.execute(
                "SELECT id, account, record FROM batches WHERE state NOT IN (?, ?, ?, ?)", TERMINAL
            ).fetchall()
        for row in rows:
            input_id = json.loads(row["record"])["input_file_id"]
            content = self.store.content(input_id)
            if content.exists() and content.stat().st_size > LARGE_BYTES:
                self._aside(row["id"], wait)
            else:
                self._move(row["id"])

    def step(self, batch_id: str) -> None:
        """To the next state, whatever the clock says."""
        with self._moving:
            batch = self.load(batch_id)
            if batch.state not in TERMINAL:
                self._transition(batch, self.store.now())

    def expire(self, batch_id: str) -> None:
        with self._moving:
            batch = self.load(batch_id)
            if batch.state not in TERMINAL:
                self._end(batch, "expired", self.store.now())

    def change(self, batch_id: str, values: Mapping[str, Any]) -> None:
        """Sets what a test wants otherwise: `done`, `fate`, ..."""
        with self._moving:
            batch = self.load(batch_id)
            for name, value in values.items():
                setattr(batch, name, value)
            self._store(batch)

    def rest(self) -> None:
        """Waits for what is worked on, and forgets it."""
        for work in self._working.values():
            work.exception()
        self._working.clear()

    def _aside(self, batch_id: str, wait: bool) -> None:
        with self._moving:
            if batch_id not in self._working or self._working[batch_id].done():
                self._working[batch_id] = self._pool.submit(self._move, batch_id)
        if wait:
            self._working[batch_id].result()

    def _move(self, batch_id: str) -> None:
        while True:
            with self._moving:
                batch = self.load(batch_id)
                due = self._due(batch)
                if due is None or due > self.store.now():
                    return
                large = batch_id in self._working
                if not large:
                    self._transition(batch, due)
            if large:
                self._transition(batch, due)

    def _due(self, batch: Batch) -> float | None:
        """When it goes to its next state; None: not by itself."""
        if batch.state in TERMINAL:
            return None
        stuck = batch.destiny.get("stuck")
        if stuck is not None and stuck.get("state", "in_progress") == batch.state:
            return None
        seconds = self.store.setting("timing", {}).get(batch.state, 0.0)
        moves = None if seconds is None else batch.entered_at + seconds
        if batch.state == "cancelling":
            return moves
        expires = batch.created_at + WINDOW
        return expires if moves is None else min(moves, expires)

    def _transition(self, batch: Batch, at: float) -> None:
        if batch.state == "cancelling":
            self._end(batch, "cancelled", at)
        elif at >= batch.created_at + WINDOW:
            self._end(batch, "expired", at)
        elif batch.state == "validating":
            self._validate(batch, at)
        elif batch.state == "in_progress":
            if fault := batch.destiny.get("expired"):
                batch.done = fault.get("done", 0.5)
                self._end(batch, "expired", at)
            else:
                batch.done = 1.0
                self._enter(batch, "finalizing", at)
        else:
            batch.done = 1.0
            self._end(batch, "completed", at)

    def _validate(self, batch: Batch, at: float) -> None:
        try:
            try:
                content = self._input(batch.account, batch.input_file_id)["id"]
            except ApiError as error:
                raise lines.Invalid("invalid_input_file", str(error)) from None
            found = lines.check(self.store.content(content), self.models)
            batch.total, batch.tokens, batch.model = found.lines, found.tokens, found.model
            self._refuse(batch)
        except lines.Invalid as refused:
            batch.errors = [refused.error]
            batch.total = batch.tokens = 0
            self._enter(batch, "failed", at)
        else:
            self._enter(batch, "in_progress", at)

    def _refuse(self, batch: Batch) -> None:
        if fault := batch.destiny.get("invalid"):
            code, message = fault.get("code", "invalid_json_line"), fault.get("message", "This line is not valid.")
            raise lines.Invalid(code, message, fault.get("line"))
        limit = self.store.setting("enqueued_tokens")
        with self.store.transaction() as database:
            enqueued = database.execute(
                """SELECT coalesce(sum(tokens), 0) FROM batches
                    WHERE account = ? AND id <> ? AND state NOT IN (?, ?, ?, ?)""",
                (batch.account, batch.id, *TERMINAL),
            ).fetchone()[0]
        if batch.destiny.get("token_limit") or (limit is not None and enqueued + batch.tokens > limit):
            raise lines.Invalid(
                "token_limit_exceeded",
                f"Enqueued token limit reached for {batch.model} in organization {batch.account}. Limit: "
                f"{limit or enqueued:,} enqueued tokens. Please try again once some in_progress batches have been "
                "completed.",
            )

    def _share(self, batch: Batch, at: float) -> float:
        """The part of its lines that is finished."""
        if batch.done is not None:
            return batch.done
        if batch.state != "in_progress":
            return 0.0
        seconds = self.store.setting("timing", {}).get("in_progress", 0.0)
        return min(1.0, (at - batch.entered_at) / seconds) if seconds else 0.0

    def _end(self, batch: Batch, state: str, at: float) -> None:
        """Carries out what is to be done of it, and ends it: results, bill and state are there together."""
        share = self._share(batch, at)
        made: Produced | None = None
        source = self.store.content(batch.input_file_id)
        if batch.total and source.exists():
            pool = self.store.setting("pool")
            made = produce(
                source, self.store.files, self.models, batch.destiny, round(share * batch.total), state, pool
            )
        with self.store.transaction() as database:
            if self.load(batch.id).state != batch.state:  # a large one, that was cancelled meanwhile
                return
            if made is not None:
                expires = {"expires": batch.output_expires or 30 * 86_400}
                for name, path in (("output", made.output), ("error", made.error)):
                    if path is not None:
                        given = {"purpose": "batch_output", "filename": f"{batch.id}_{name}.jsonl", **expires}
                        file = files.add(self.store, batch.account, path, given, at)
                        setattr(batch, f"{name}_file_id", file["id"])
                batch.completed, batch.failed, batch.usage = made.completed, made.failed, made.tokens
                database.executemany(
                    "INSERT INTO billed (hash, model, dimensions, tokens, batch, at) VALUES (?, ?, ?, ?, ?, ?)",
                    [(*row, batch.id, at) for row in made.billed],
                )
            self._enter(batch, state, at)

    def _enter(self, batch: Batch, state: str, at: float) -> None:
        with self.store.transaction():
            if self.load(batch.id).state == batch.state:
                batch.state, batch.entered_at = state, at
                batch.times[state] = at
                self._store(batch)

    def load(self, batch_id: str) -> Batch:
        with self.store.transaction() as database:
            row = database.execute("SELECT record FROM batches WHERE id = ?", (batch_id,)).fetchone()
        if row is None:
            raise missing("Batch", batch_id)
        return Batch(**json.loads(row["record"]))

    def _store(self, batch: Batch) -> None:
        with self.store.transaction() as database:
            database.execute(
                "UPDATE batches SET state = ?, tokens = ?, record = ? WHERE id = ?",
                (batch.state, batch.tokens, json.dumps(asdict(batch)), batch.id),
            )

    def _input(self, account: str, file_id: str) -> dict[str, Any]:
        try:
            return files.get(self.store, account, file_id)
        except ApiError:
            raise ApiError(400, f"Cannot find file {file_id}, or organization {account} does not have access to it.",
                           param="input_file_id") from None  # fmt: skip


def _checked(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ApiError(400, "We could not parse the JSON body of your request.")
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not isinstance(body.get(name), str) or not body[name]:
            raise ApiError(400, f"Missing required parameter: '{name}'.", param=name)
    if body["endpoint"] != lines.URL:
        raise ApiError(400, f"Invalid value: '{body['endpoint']}'. This server has {lines.URL}.", param="endpoint")
    if body["completion_window"] != "24h":
        raise ApiError(400, "Invalid value for 'completion_window': must be '24h'.", param="completion_window")
    metadata = body.get("metadata") or {}
    fits = len(metadata) <= 16 and all(
        isinstance(value, str) and len(name) <= 64 and len(value) <= 512 for name, value in metadata.items()
    )
    if not fits:
        raise ApiError(400, "Invalid 'metadata': 16 pairs at most, of 64 and 512 characters.", param="metadata")
    expires = body.get("output_expires_after")
    if expires is not None and (expires.get("anchor") != "created_at" or expires.get("seconds") not in files.EXPIRES):
        raise ApiError(400, "Invalid 'output_expires_after'.", param="output_expires_after")
    return body
