"""/_control: what tests say to the server, and ask it. Not a part of OpenAI's protocol; no key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openai_server import faults
from openai_server.answers import ApiError
from openai_server.app import Server
from openai_server.batch import TERMINAL


class ControlRoutes:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.store = server.store

    def routes(self) -> list[Route]:
        commands: list[Callable[[dict[str, Any]], Any]] = [
            self.reset, self.fault, self.clear_faults, self.faults, self.set, self.advance, self.key, self.settle,
            self.step, self.finish, self.expire, self.change, self.billing, self.requests, self.batches, self.files,
            self.now,
        ]  # fmt: skip
        return [self._route(command) for command in commands]

    def _route(self, command: Callable[[dict[str, Any]], Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                given = await request.json()
                return JSONResponse({"answer": await run_in_threadpool(command, given)})
            except ApiError as error:
                return error.response()

        return Route(f"/_control/{command.__name__}", endpoint, methods=["POST"])

    def reset(self, given: dict[str, Any]) -> None:
        self.server.reset()

    def fault(self, given: dict[str, Any]) -> int:
        return faults.add(self.store, given.pop("operation"), given.pop("kind"), given)

    def clear_faults(self, given: dict[str, Any]) -> None:
        with self.store.transaction() as database:
            database.execute("DELETE FROM faults")

    def faults(self, given: dict[str, Any]) -> list[dict[str, Any]]:
        return self._rows("SELECT id, operation, kind, left_times, looked, fired FROM faults ORDER BY id")

    def set(self, given: dict[str, Any]) -> None:
        self.store.set(given)
        self.server.limits.reset()

    def advance(self, given: dict[str, Any]) -> float:
        self.server.settle(wait=True)  # what was due before is done at its own time
        self.store.set({"clock": self.store.setting("clock", 0.0) + given["seconds"]})
        self.server.settle(wait=True)
        return self.store.now()

    def now(self, given: dict[str, Any]) -> float:
        return self.store.now()

    def key(self, given: dict[str, Any]) -> None:
        with self.store.transaction() as database:
            row = database.execute("SELECT account FROM keys WHERE key = ?", (given["key"],)).fetchone()
            account = given.get("account") or (row["account"] if row else "org-default")
            database.execute(
                "INSERT OR REPLACE INTO keys (key, account, state) VALUES (?, ?, ?)",
                (given["key"], account, given["state"]),
            )

    def settle(self, given: dict[str, Any]) -> None:
        self.server.settle(wait=True)

    def step(self, given: dict[str, Any]) -> None:
        self.server.batches.step(given["batch"])

    def finish(self, given: dict[str, Any]) -> None:
        """One batch, or all."""
        wanted = [given["batch"]] if given.get("batch") else [row["id"] for row in self.batches({})]
        for batch_id in wanted:
            for _ in range(4):  # no batch has more states than that before it
                self.server.batches.step(batch_id)

    def expire(self, given: dict[str, Any]) -> None:
        if given.get("done") is not None:
            self.server.batches.change(given["batch"], {"done": given["done"]})
        self.server.batches.expire(given["batch"])

    def change(self, given: dict[str, Any]) -> None:
        self.server.batches.change(given.pop("batch"), given)

    def billing(self, given: dict[str, Any]) -> list[dict[str, Any]]:
        self.server.settle(wait=True)
        return self._rows(
            """SELECT hash, model, dimensions, count(*) AS times, sum(tokens) AS tokens, count(batch) AS by_batch
                 FROM billed GROUP BY hash, model, dimensions ORDER BY min(seq)"""
        )

    def requests(self, given: dict[str, Any]) -> list[dict[str, Any]]:
        return self._rows("SELECT * FROM requests WHERE ? IN ('', operation) ORDER BY seq", given.get("operation", ""))

    def batches(self, given: dict[str, Any]) -> list[dict[str, Any]]:
        """All accounts' batches, oldest first, listed already or not; `unfinished` only, if asked for."""
        self.server.settle(wait=True)
        rows = self._rows("SELECT id, account, state FROM batches ORDER BY seq")
        shown = [self.server.batches.load(row["id"]) for row in rows]
        return [
            {**self.server.batches.shown(batch), "account": batch.account}
            for batch in shown
            if not (given.get("unfinished") and batch.state in TERMINAL)
        ]

    def files(self, given: dict[str, Any]) -> list[dict[str, Any]]:
        self.server.settle(wait=True)
        return self._rows("SELECT * FROM files ORDER BY seq")

    def _rows(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        with self.store.transaction() as database:
            return [dict(row) for row in database.execute(statement, values)]
