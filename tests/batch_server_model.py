"""A model of a server with a Batch API, and of what may go wrong on the way to it: for the protocol's machine.

What a call does and what its caller is told are two things: see `MODES`. What is billed is counted by text, and so is
every time that the server itself is to blame for a second payment (`excuses`) or for a text that is given up (`blame`).
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from pipeline.document import digest
from pipeline.openai_batch.answers import Failure, failure

DIMENSIONS = 3
LAG_SECONDS = 100.0  # until a batch is listed, at most: less than the grace
UNSEEN_SECONDS = 30.0  # until a file can be used, at most

# What becomes of a call: carried out and answered; carried out, and the answer lost; not carried out, and that is not
# told; refused for now; on its way for as long as it likes; carried out twice; and once, with another on its way.
MODES = (*["ok"] * 8, "lost", "dropped", "limited", "denied", "late", "twice", "echo")

# What goes wrong on a walk: with creations, and with everything else. A walk on which all goes wrong does not get far.
EVERY = ("lost", "dropped", "limited", "denied", "late", "twice", "echo")
THEMES: tuple[tuple[Sequence[str], Sequence[str]], ...] = ((EVERY, EVERY), (EVERY, ()), (("late",), ()), ((), EVERY))


def themed(mode: str, possible: Sequence[str]) -> str:
    """The mode where the walk has it, else another that it has."""
    return possible[MODES.index(mode) % len(possible)] if mode != "ok" and possible else "ok"


# What a line of an answer may be -> whether it was billed.
LINES = {
    "good": True,
    "floats": True,
    "other_dimensions": True,
    "two_vectors": True,
    "other_index": True,
    "nan": True,
    "zeros": True,
    "no_body": True,
    "not_written": True,
    "garbled": True,
    "status_0": False,
    "status_429": False,
    "status_500": False,
    "status_400": False,
    "status_401": False,
    "error_only": False,
}
# For these a text may be given up at once; for the others that are no vector, after three times.
DEADLY = {"status_400"}
UNBLAMED = {"good", "floats", "status_429", "status_401"}
# Another program's, on the same account.
FOREIGN = {
    "id": "batch-foreign",
    "status": "completed",
    "metadata": {"key": "x"},
    "input_file_id": "file-foreign",
    "output_file_id": "file-theirs",
}


def vector_of(key: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The one right vector of a text: float32[DIMENSIONS], of length 1."""
    numbers = np.frombuffer(digest(key), dtype=np.uint8)[:DIMENSIONS].astype(np.float64) + 1.0
    return (numbers / np.linalg.norm(numbers)).astype(np.float32)


@dataclass
class File:
    id: str
    name: str
    data: bytes
    seen_from: datetime
    deleted: bool = False


@dataclass
class RemoteBatch:
    id: str
    metadata: dict[str, str]
    input_file_id: str
    keys: list[bytes]
    created_at: datetime
    listed_from: datetime
    status: str = "validating"
    cancelling: bool = False
    output: str | None = None
    errors: str | None = None
    complaints: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    strange: bool = False  # tells a status that nobody knows, while it goes on
    double: bool = False  # of a request that somebody on the way repeated
    ended_at: datetime | None = None

    def told(self) -> dict[str, Any]:
        status = "cancelling" if self.cancelling and not self.ended else self.status
        return {
            "id": self.id,
            "object": "batch",
            "status": "pondering" if self.strange and not self.ended else status,
            "input_file_id": self.input_file_id,
            "metadata": dict(self.metadata),
            "created_at": int(self.created_at.timestamp()),
            "expires_at": int(self.created_at.timestamp()) + 86_400,
            "output_file_id": self.output if self.output is not None else "",
            "error_file_id": self.errors,
            "errors": {"data": self.complaints} if self.complaints else None,
            "request_counts": {"total": len(self.keys), "completed": 0, "failed": 0, **self.counts},
        }

    @property
    def ended(self) -> bool:
        return self.status in {"completed", "failed", "expired", "cancelled"}


class Server:
    def __init__(self, now: datetime) -> None:
        self.now = now
        self.files: dict[str, File] = {}
        self.batches: dict[str, RemoteBatch] = {}
        self.on_their_way: list[tuple[str, dict[str, str], bool]] = []  # creations: file, metadata, whether repeated
        self.faults: list[str] = []  # of who calls
        self.billed: Counter[bytes] = Counter()
        self.excuses: Counter[bytes] = Counter()
        self.blame: Counter[bytes] = Counter()
        self.deadly: set[bytes] = set()
        self.lag = 0.0
        self.unseen = 0.0
        self._ids = 0
        self._cuts: Counter[str] = Counter()

    def _id(self, kind: str) -> str:
        self._ids += 1
        return f"{kind}-{self._ids}"

    # -- calls -------------------------------------------------------------------------------------------------------

    def upload(self, name: str, data: bytes, mode: str) -> str | Failure:
        if (refusal := _refusal(mode)) is not None:
            return refusal
        file = self._file(name, data)
        file.seen_from = self.now + timedelta(seconds=self.unseen)
        return _timeout() if mode in {"lost", "late", "twice", "echo"} else file.id

    def files_named(self, name: str, mode: str) -> list[dict[str, Any]] | Failure:
        if mode != "ok":
            return _refusal(mode) or _timeout()
        found = (file for file in self.files.values() if file.name == name and not file.deleted)
        return [{"id": file.id, "filename": file.name, "bytes": len(file.data)} for file in found]

    def delete(self, file_id: str, mode: str) -> Failure | None:
        if (refusal := _refusal(mode)) is not None:
            return refusal
        file = self.files.get(file_id)
        absent = file is None or file.deleted
        if file is not None:
            file.deleted = True
        if mode != "ok":
            return _timeout()
        return failure(404, None, f"No such file object: {file_id}") if absent else None

    def create(self, file_id: str, metadata: dict[str, str], mode: str) -> dict[str, Any] | Failure:
        self._watch(file_id, metadata)
        if (refusal := _refusal(mode)) is not None:
            return refusal
        if mode == "late":
            self.on_their_way.append((file_id, metadata, False))
            return _timeout()
        made = self._create(file_id, metadata, double=False)
        if mode == "twice":
            self._create(file_id, metadata, double=True)
        elif mode == "echo":
            self.on_their_way.append((file_id, metadata, True))
        if mode != "ok":
            return _timeout()
        return made.told() if isinstance(made, RemoteBatch) else made

    def arrive(self, which: int) -> None:
        """One of the creations that are on their way."""
        file_id, metadata, double = self.on_their_way.pop(which % len(self.on_their_way))
        self._create(file_id, metadata, double=double)

    def _watch(self, file_id: str, metadata: dict[str, str]) -> None:
        """Nobody asks for a batch while one that was asked for before may still come to be, or is there; but for who
        was asleep, and whose file is gone."""
        if self.files[file_id].deleted:
            return
        key = metadata["millrace_key"]
        for before, earlier, double in self.on_their_way:
            if earlier["millrace_key"] == key and not double and not self.files[before].deleted:
                self.faults.append(f"{metadata} is created while {earlier} may still be")
        for batch in self.batches.values():
            if batch.metadata["millrace_key"] == key and not batch.double and batch.status != "failed":
                self.faults.append(f"{metadata} is created while {batch.id} is there")

    def _create(self, file_id: str, metadata: dict[str, str], *, double: bool) -> RemoteBatch | Failure:
        file = self.files.get(file_id)
        if file is None or file.deleted or file.seen_from > self.now:
            return failure(400, "invalid_request_error", f"Cannot find file {file_id}")
        keys = [bytes.fromhex(json.loads(line)["custom_id"]) for line in file.data.splitlines()]
        listed_from = self.now + timedelta(seconds=self.lag)
        made = RemoteBatch(self._id("batch"), dict(metadata), file_id, keys, self.now, listed_from, double=double)
        self.batches[made.id] = made
        if double:
            self.excuses.update(keys)
            for twin in self.batches.values():
                twin.double |= twin.input_file_id == file_id
        return made

    def listed(self, since: datetime, mode: str) -> list[dict[str, Any]] | Failure:
        if mode != "ok":
            return _refusal(mode) or failure(500, None, "the list is away")
        found = [one for one in self.batches.values() if one.listed_from <= self.now and one.created_at >= since]
        return [{**FOREIGN, "created_at": int(self.now.timestamp())}, *(one.told() for one in reversed(found))]

    def retrieve(self, batch_id: str, mode: str) -> dict[str, Any] | Failure:
        if mode == "late":  # for a while; for so long that it counts as gone, its texts are bought again
            if self.now >= self.batches[batch_id].created_at + timedelta(seconds=86_400 + 3600):
                self.excuses.update(self.batches[batch_id].keys)
            return failure(404, None, "No batch found")
        if mode != "ok":
            return _refusal(mode) or _timeout()
        return self.batches[batch_id].told()

    def cancel(self, batch_id: str, mode: str) -> dict[str, Any] | Failure:
        if (refusal := _refusal(mode)) is not None:
            return refusal
        batch = self.batches[batch_id]
        if batch.ended:
            return failure(409, None, f"Cannot cancel a batch with status {batch.status}")
        batch.cancelling = True
        return batch.told() if mode == "ok" else _timeout()

    def content(self, file_id: str, offset: int, mode: str) -> tuple[bytes, Failure | None]:
        """The bytes that come, and what stops them; a cut connection looks like the end."""
        file = self.files.get(file_id)
        if file is None or file.deleted or mode == "late":
            for batch in self.batches.values():
                if file_id in {batch.output, batch.errors} and self.now >= _soon(batch.ended_at):
                    self.excuses.update(batch.keys)
            return b"", failure(404, None, f"No such file object: {file_id}")
        data = file.data[offset:]
        self._cuts[file_id] += mode in {"twice", "echo"}
        if mode == "ok" or self._cuts[file_id] > 5:
            return data, None
        half = data[: len(data) * 2 // 3]
        return half, _refusal(mode) or (_timeout() if mode == "lost" else None)

    # -- what the server does by itself --------------------------------------------------------------------------------

    def go_on(self, batch: RemoteBatch, how: str, kinds: Sequence[str]) -> None:
        """One step of a batch that has not ended. kinds: of its lines, in turns."""
        if batch.ended:
            return
        if how == "strange":
            batch.strange = True
        elif batch.status == "validating" and how in {"token_limit", "named", "no_file", "broken"}:
            self._fail(batch, how)
        elif how in {"completed", "expired"} or (how == "cancelled" and batch.cancelling):
            self._end(batch, how, kinds)
        elif batch.status == "validating":
            batch.status = "in_progress"

    def _fail(self, batch: RemoteBatch, how: str) -> None:
        batch.status, batch.ended_at = "failed", self.now
        if how == "token_limit":
            message = "Enqueued token limit reached. Please try again once some batches have been completed."
            batch.complaints = [{"code": "token_limit_exceeded", "message": message, "line": None}]
        elif how == "no_file":
            batch.complaints = [{"code": "invalid_input_file", "message": "Could not find the input file"}]
        elif how == "named":
            batch.complaints = [{"code": "invalid_request", "message": "This line will not do.", "line": 1}]
            self.deadly.add(batch.keys[0])
        else:
            batch.complaints = [{"code": "internal_error", "message": "It is us.", "line": None}]
            self.blame.update(batch.keys)

    def _end(self, batch: RemoteBatch, how: str, kinds: Sequence[str]) -> None:
        batch.status, batch.ended_at = how, self.now
        done = len(batch.keys) if how == "completed" else len(batch.keys) // 2
        output: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for number, key in enumerate(batch.keys):
            if number >= done:
                if number % 2:  # some are in neither file
                    errors.append({"custom_id": key.hex(), "response": None, "error": {"code": f"batch_{how}"}})
                continue
            kind = kinds[number % len(kinds)]
            self._account(key, kind)
            (errors if kind.startswith(("status", "error")) else output).append(_line(key, kind))
        batch.counts = {"completed": len(output), "failed": sum("response" in one for one in errors)}
        written = [one for one in output if one is not MISSING]
        if written and len(kinds) % 2:
            first = written[0]
            written = [*reversed(written), first, {**first, "custom_id": None}, {**first, "custom_id": "ab" * 32}]
        batch.output = self._file("output", _written(written)).id if output else None
        batch.errors = self._file("errors", _written(errors)).id if errors else None

    def _account(self, key: bytes, kind: str) -> None:
        if LINES[kind]:
            self.billed[key] += 1
            if kind not in {"good", "floats"}:
                self.excuses[key] += 1
        if kind in DEADLY:
            self.deadly.add(key)
        elif kind not in UNBLAMED:
            self.blame[key] += 1

    def _file(self, name: str, data: bytes) -> File:
        made = File(self._id("file"), name, data, self.now)
        self.files[made.id] = made
        return made


def _refusal(mode: str) -> Failure | None:
    """Where the call was certainly not carried out, or it is not known that it was not."""
    if mode == "limited":
        return failure(429, "rate_limit_exceeded", "Too many requests", 7.0)
    if mode == "denied":
        return failure(401, "invalid_api_key", "Incorrect API key provided: sk-abcdefgh12345678")
    return failure(503, None, "overloaded") if mode == "dropped" else None


def _timeout() -> Failure:
    return failure(None, None, "no answer in time")


def _soon(ended_at: datetime | None) -> datetime:
    assert ended_at is not None, "a file of results is that of a batch that has ended"
    return ended_at + timedelta(seconds=3600)


MISSING: dict[str, Any] = {}


def _written(lines: Sequence[dict[str, Any]]) -> bytes:
    """One a line; and no end of line after the last."""
    return b"\n".join(
        b"?\xe2\x80\xa8{" if "garbled" in line else json.dumps(line, ensure_ascii=False).encode() for line in lines
    )


def _line(key: bytes, kind: str) -> dict[str, Any]:
    if kind == "not_written":
        return MISSING
    if kind == "garbled":
        return {"garbled": True}
    vector = vector_of(key)
    coded: Any = base64.b64encode(vector.tobytes()).decode()
    entry = {"object": "embedding", "index": 0, "embedding": coded}
    if kind == "floats":
        entry["embedding"] = [float(number) for number in vector]
    elif kind == "other_dimensions":
        entry["embedding"] = [0.6, 0.8]
    elif kind == "other_index":
        entry["index"] = 1
    elif kind == "nan":
        entry["embedding"] = [float("nan"), 0.0, 1.0]
    elif kind == "zeros":
        entry["embedding"] = [0.0] * DIMENSIONS
    data = [entry, entry] if kind == "two_vectors" else [entry]
    body: Any = {"data": data, "usage": {"prompt_tokens": 5, "total_tokens": 5}, "note": "a\u2028b"}
    status = int(kind.removeprefix("status_")) if kind.startswith("status_") else 200
    if status != 200:
        body = {"error": {"code": "x", "message": f"it is {kind}"}}
    elif kind == "no_body":
        body = None
    line = {"id": "r", "custom_id": key.hex(), "response": {"status_code": status, "body": body}, "error": None}
    if kind == "error_only":
        line |= {"response": None, "error": {"code": "server_error", "message": "lost"}}
    return line
