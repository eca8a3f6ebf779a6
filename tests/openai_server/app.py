"""The HTTP application: each operation is let in, hit by its faults, carried out, written down, and answered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from openai_server import embeddings, faults, files
from openai_server.answers import ApiError, Raw, page
from openai_server.batches import Batches
from openai_server.faults import Drawn, Fault
from openai_server.hits import after, before, quota
from openai_server.limits import Limits
from openai_server.models import Models
from openai_server.store import Store

# Texts of a request from which on the vectors are computed beside others' requests.
MANY_TEXTS = 64


@dataclass
class Call:
    """One request on its way: who asks, what hits it, and what it is written down with."""

    request: Request
    operation: str
    account: str = ""
    key: str = ""
    body: Any = None
    raw: bytes = b""
    drawn: Drawn = field(default_factory=lambda: Drawn([]))
    inputs: int = 0
    tokens: int = 0
    model: str = ""
    taken: bool = False
    life: int = 0

    async def take(self) -> None:
        """Reads what is left of the request: who is still sending it would not see the answer."""
        if not self.taken:
            self.taken = True
            async for _ in self.request.stream():
                pass


class Forgotten(Exception):
    """The server was reset while a request slept: nothing of it is left."""


Handler = Callable[[Call], Awaitable[Response]]


class Server:
    """Everything that is asked under /v1."""

    def __init__(self, store: Store, models: Models) -> None:
        self.store = store
        self.models = models
        self.batches = Batches(store, models)
        self.limits = Limits(store)
        self._life = 0

    def reset(self) -> None:
        """Forgets everything, and whatever is still on its way."""
        self._life += 1
        self.batches.rest()
        self.store.reset()
        self.limits.reset()

    def routes(self) -> list[Route]:
        return [
            self._route("POST", "/v1/embeddings", "embeddings", self.embed),
            self._route("GET", "/v1/models", "models.list", self.list_models),
            self._route("POST", "/v1/files", "files.create", self.upload),
            self._route("GET", "/v1/files", "files.list", self.list_files),
            self._route("GET", "/v1/files/{id}", "files.get", self.get_file),
            self._route("DELETE", "/v1/files/{id}", "files.delete", self.delete_file),
            self._route("GET", "/v1/files/{id}/content", "files.content", self.content),
            self._route("POST", "/v1/batches", "batches.create", self.create_batch),
            self._route("GET", "/v1/batches", "batches.list", self.list_batches),
            self._route("GET", "/v1/batches/{id}", "batches.get", self.get_batch),
            self._route("POST", "/v1/batches/{id}/cancel", "batches.cancel", self.cancel_batch),
        ]

    def _route(self, method: str, path: str, operation: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            return await self._serve(Call(request, operation), handler)

        return Route(path, endpoint, methods=[method])

    async def _serve(self, call: Call, handler: Handler) -> Response:
        arrived, started = self.store.now(), time.monotonic()
        call.life = self._life
        try:
            response = await self._answer(call, handler)
        except ApiError as error:
            response = error.response()
        except Forgotten:
            return Raw()
        await call.take()
        status = 0 if isinstance(response, Raw) else response.status_code
        with self.store.transaction() as database:
            database.execute(
                """INSERT INTO requests (at, operation, path, status, inputs, tokens, model, fingerprint, seconds)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                (arrived, call.operation, call.request.url.path, status,
                 call.inputs, call.tokens, call.model, fingerprint(call.key), time.monotonic() - started),
            )  # fmt: skip
        return response

    async def _answer(self, call: Call, handler: Handler) -> Response:
        if call.operation != "files.create":
            call.raw = await call.request.body()
            call.taken = True
        self._let_in(call)
        seen = call.request.url.path + " " + call.raw.decode("utf-8", "replace")
        hit = Drawn(faults.draw(self.store, call.operation, seen))
        call.drawn = hit
        latency = float(self.store.setting("latency", 0.0))
        if slow := hit.get("slow"):
            latency += float(slow.get("seconds", 1.0))
        if latency:
            await self._sleep(call, latency)
        self._let_in(call)  # the key may have been revoked meanwhile
        if (refused := before(hit)) is not None:
            return refused
        if call.raw and call.request.method == "POST":
            try:
                call.body = json.loads(call.raw)
            except ValueError:
                raise ApiError(400, "We could not parse the JSON body of your request.") from None
        response = await handler(call)
        if fault := hit.get("linger"):
            await self._sleep(call, float(fault.get("seconds", 1.0)))
        return after(hit, response)

    async def _sleep(self, call: Call, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if call.life != self._life:
            raise Forgotten

    def _let_in(self, call: Call) -> None:
        call.key = call.request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not call.key:
            raise ApiError(401, "You didn't provide an API key.", code="invalid_api_key")
        with self.store.transaction() as database:
            row = database.execute("SELECT account, state FROM keys WHERE key = ?", (call.key,)).fetchone()
        if row is None or row["state"] == "revoked":
            shown = call.key if len(call.key) < 8 else f"{call.key[:4]}****{call.key[-4:]}"
            raise ApiError(401, f"Incorrect API key provided: {shown}. You can find your API key at "
                           "https://platform.openai.com/account/api-keys.", code="invalid_api_key")  # fmt: skip
        if row["state"] == "forbidden":
            raise ApiError(
                403, "You have insufficient permissions for this operation.", code="insufficient_permissions"
            )
        call.account = row["account"]
        if row["state"] == "exhausted" and call.operation in {"embeddings", "batches.create"}:
            raise quota()

    # -- embeddings

    async def embed(self, call: Call) -> Response:
        asked = await run_in_threadpool(embeddings.parse, call.body, self.models)
        call.inputs, call.tokens, call.model = len(asked.texts), sum(asked.tokens), asked.model.name
        if not self.store.setting("resizing", True) and asked.resized:
            raise ApiError(400, f"Model \"{asked.model.name}\" does not support matryoshka representation, changing "
                           "output dimensions will lead to poor results.", type="BadRequestError")  # fmt: skip
        headers = self.limits.charge(call.account, call.tokens)
        pool = self.store.setting("pool")
        arguments = (asked.texts, asked.model, asked.dimensions, pool)
        many = len(asked.texts) >= MANY_TEXTS or asked.model.local is not None
        vectors = await run_in_threadpool(self.models.embed, *arguments) if many else self.models.embed(*arguments)
        if not self.store.setting("base64", True):
            asked = embeddings.in_numbers(asked)
        body = embeddings.answer(asked, vectors, call.drawn)
        content = await run_in_threadpool(embeddings.rendered, body) if many else embeddings.rendered(body)
        # From here on it is paid for, whether or not the answer arrives.
        embeddings.bill(self.store, asked, None, self.store.now())
        if "no_headers" in call.drawn or not self.store.setting("headers", True):
            headers = {}
        else:
            headers |= {"x-request-id": "req_" + secrets.token_hex(16), "openai-processing-ms": "1"}
        return Response(content, media_type="application/json", headers=headers)

    async def list_models(self, call: Call) -> Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "system"} for name in self.models.known]
        return JSONResponse({"object": "list", "data": data})

    # -- files

    async def upload(self, call: Call) -> Response:
        self._without_batches()
        form = self.store.files / files.new_id("form-")
        call.taken = True
        with form.open("wb") as target:
            async for piece in call.request.stream():
                target.write(piece)
        try:
            type_ = call.request.headers.get("content-type", "")
            fields, filename, content = await run_in_threadpool(files.split_form, form, type_)
            given = files.checked_form(fields, filename, content.stat().st_size)
        finally:
            form.unlink()
        if late := call.drawn.get("late"):
            self._postpone(call, late, {**given, "content": content.name})
            return Raw()
        invisible = call.drawn.get("invisible")
        seconds = float(invisible.get("seconds", 5.0)) if invisible else 0.0
        return JSONResponse(files.add(self.store, call.account, content, given, self.store.now(), seconds))

    async def list_files(self, call: Call) -> Response:
        await self._settle()
        query = call.request.query_params
        limit = int(query.get("limit", 10_000))
        order = query.get("order", "desc")
        found, more = files.page(
            self.store, call.account, limit=limit, after=query.get("after"), order=order, purpose=query.get("purpose")
        )
        return JSONResponse(page(found, more))

    async def get_file(self, call: Call) -> Response:
        await self._settle()
        return JSONResponse(files.get(self.store, call.account, call.request.path_params["id"]))

    async def delete_file(self, call: Call) -> Response:
        await self._settle()
        return JSONResponse(files.delete(self.store, call.account, call.request.path_params["id"]))

    async def content(self, call: Call) -> Response:
        file = files.get(self.store, call.account, call.request.path_params["id"])
        path = self.store.content(file["id"])
        if call.drawn.get("truncated") or call.drawn.get("cut") or call.drawn.get("reset"):
            return Response(path.read_bytes(), media_type="application/octet-stream")
        size, start = int(file["bytes"]), self._start(call)
        if start > 0 and start >= size:
            raise ApiError(416, "Requested range not satisfiable.", headers={"content-range": f"bytes */{size}"})
        headers = {"content-length": str(size - start)}
        if start:
            headers["content-range"] = f"bytes {start}-{size - 1}/{size}"
        pieces, status = _pieces(path, start), 206 if start else 200
        return StreamingResponse(pieces, status, headers, media_type="application/octet-stream")

    def _start(self, call: Call) -> int:
        """Of `Range: bytes=10-`: 10, where the server knows ranges."""
        asked = re.fullmatch(r"bytes=(\d+)-", call.request.headers.get("range", ""))
        return int(asked[1]) if asked and self.store.setting("ranges", True) else 0

    # -- batches

    async def create_batch(self, call: Call) -> Response:
        self._without_batches()
        if late := call.drawn.get("late"):
            self._postpone(call, late, call.body)
            return Raw()
        await self._settle()
        foreign = call.drawn.get("foreign")
        count = int(foreign.get("count", 1)) if foreign else 0
        now = self.store.now()
        self._count_creates(call.account, now)
        self.batches.foreign(call.account, count, now)
        lag = call.drawn.get("lag")
        fate = faults.draw(self.store, "batch", "")
        batch = self.batches.create(
            call.account, call.body, now, fate, float(lag.get("seconds", 5.0)) if lag is not None else 0.0
        )
        self.batches.foreign(call.account, count, now)
        return JSONResponse(self.batches.shown(batch))

    def _count_creates(self, account: str, now: float) -> None:
        """Raises ApiError 429 where the account has made as many batches within the hour as it may."""
        most = self.store.setting("creates_per_hour")
        with self.store.transaction() as database:
            made = database.execute(
                "SELECT count(*) FROM batches WHERE account = ? AND created_at > ?", (account, now - 3600)
            ).fetchone()[0]
        if most is not None and made >= most:
            raise ApiError(429, f"Rate limit reached: {most} batches per hour.", type="batches",
                           code="rate_limit_exceeded", headers={"retry-after": "3600"})  # fmt: skip

    async def list_batches(self, call: Call) -> Response:
        self._without_batches()
        await self._settle()
        query = call.request.query_params
        found, more = self.batches.page(call.account, int(query.get("limit", 20)), query.get("after"))
        return JSONResponse(page([self.batches.shown(batch) for batch in found], more))

    async def get_batch(self, call: Call) -> Response:
        await self._settle()
        return JSONResponse(self.batches.shown(self.batches.get(call.account, call.request.path_params["id"])))

    async def cancel_batch(self, call: Call) -> Response:
        await self._settle()
        return JSONResponse(self.batches.shown(self.batches.cancel(call.account, call.request.path_params["id"])))

    # -- what comes late

    def _postpone(self, call: Call, late: Fault, given: Any) -> None:
        with self.store.transaction() as database:
            database.execute(
                "INSERT INTO late (due, account, operation, given) VALUES (?, ?, ?, ?)",
                (self.store.now() + float(late.get("seconds", 1.0)), call.account, call.operation, json.dumps(given)),
            )

    async def _settle(self) -> None:
        await run_in_threadpool(self.settle)

    def settle(self, *, wait: bool = False) -> None:
        """Does what is due by the server's clock."""
        with self.store.transaction() as database:
            rows = database.execute("SELECT * FROM late WHERE due <= ? ORDER BY due", (self.store.now(),)).fetchall()
            for row in rows:
                given = json.loads(row["given"])
                if row["operation"] == "files.create":
                    files.add(self.store, row["account"], self.store.files / given.pop("content"), given, row["due"])
                else:
                    self._create_late(row["account"], given, row["due"])
                database.execute("DELETE FROM late WHERE seq = ?", (row["seq"],))
        self.batches.settle(wait=wait)

    def _create_late(self, account: str, given: Any, due: float) -> None:
        try:
            self.batches.create(account, given, due, faults.draw(self.store, "batch", ""))
        except ApiError:
            return  # its file is gone: nobody is there to be told

    def _without_batches(self) -> None:
        if not self.store.setting("batches", True):
            raise ApiError(404, "Not Found")


def fingerprint(key: str) -> str:
    """The first half of a key's SHA-256: what is written down instead of it."""
    return hashlib.sha256(key.encode()).hexdigest()[:16] if key else ""


async def _pieces(path: Path, start: int) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(1 << 16):
            yield piece


class Application:
    """Starlette's, given the connection too, so that an answer can be cut short."""

    def __init__(self, routes: list[Route]) -> None:
        self.starlette = Starlette(routes=routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["transport"] = send.__self__.transport  # type: ignore[attr-defined] # uvicorn's RequestResponseCycle
        await self.starlette(scope, receive, send)
