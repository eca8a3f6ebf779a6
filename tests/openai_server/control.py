"""What a test says to the server, and asks it: faults, the clock, keys, limits, batches, bills, requests."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Billed:
    """hash: sha256 of the text, in hex. times: how often it was paid for, `by_batch` of them by the Batch API."""

    hash: str
    model: str
    dimensions: int
    times: int
    tokens: int
    by_batch: int


@dataclass(frozen=True)
class Request:
    """at: seconds since 1970 by the server's clock, when it came. status: 0: no answer. seconds: until it was answered.

    fingerprint: the first 16 characters of the key's SHA-256, in hex.
    """

    seq: int
    at: float
    operation: str
    path: str
    status: int
    inputs: int
    tokens: int
    model: str
    fingerprint: str
    seconds: float


class Control:
    """Raises AssertionError where the server does not know what is meant."""

    def __init__(self, address: Callable[[], str]) -> None:
        self._address = address

    def ask(self, command: str, **given: Any) -> Any:
        request = urllib.request.Request(
            f"{self._address()}/_control/{command}", json.dumps(given).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)["answer"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{command} {given}: {error.code} {error.read().decode()}") from None

    def reset(self) -> None:
        """Forgets everything: files, batches, bills, requests, faults, settings, keys but the first one."""
        self.ask("reset")

    # -- faults: faults.py and fates.py say which there are

    def fault(self, operation: str, kind: str, *, times: int | None = 1, **given: Any) -> int:
        """Makes a fault. times: None: always. Also: skip, probability with seed, match, and what the kind takes."""
        return int(self.ask("fault", operation=operation, kind=kind, times=times, **given))

    def clear_faults(self) -> None:
        self.ask("clear_faults")

    def fired(self, fault: int | None = None) -> int:
        """How often a fault has hit, or all of them together."""
        return sum(row["fired"] for row in self.ask("faults") if fault in {None, row["id"]})

    # -- what the server is like

    def set(self, **values: Any) -> None:
        """latency: seconds of each request. rpm, tpm, burst_seconds: limits.py. enqueued_tokens: of unfinished batches.
        creates_per_hour: batches. pool: only so many different vectors, which are computed fast. headers, base64,
        resizing, batches, ranges: False: a server that has no rate headers, answers base64 with numbers, refuses
        `dimensions`, has no Batch API, sends files from their beginning only."""
        self.ask("set", **values)

    def timing(self, **seconds: float | None) -> None:
        """How long batches stay in `validating`, `in_progress`, `finalizing`, `cancelling` (0 where nothing is said);
        None: until `step` or `finish`."""
        self.ask("set", timing=seconds)

    def now(self) -> float:
        """Seconds since 1970 by the server's clock."""
        return float(self.ask("now"))

    def advance(self, seconds: float) -> None:
        """Moves the server's clock, and does what is due by then."""
        self.ask("advance", seconds=seconds)

    def add_key(self, key: str, account: str = "org-default", state: str = "valid") -> None:
        """Keys of one account share its files, batches and limits."""
        self.ask("key", key=key, account=account, state=state)

    def set_key(self, key: str, state: str) -> None:
        """state: valid, revoked (401), forbidden (403), exhausted (429 insufficient_quota)."""
        self.ask("key", key=key, state=state)

    # -- batches

    def batches(self, *, unfinished: bool = False) -> list[dict[str, Any]]:
        """All of them, oldest first, as OpenAI shows one; and its `account`."""
        found: list[dict[str, Any]] = self.ask("batches", unfinished=unfinished)
        return found

    def files(self) -> list[dict[str, Any]]:
        """All of them, oldest first: id, account, purpose, filename, bytes, created_at, expires_at, visible_at."""
        found: list[dict[str, Any]] = self.ask("files")
        return found

    def step(self, batch: str) -> None:
        """To its next state."""
        self.ask("step", batch=batch)

    def finish(self, batch: str | None = None) -> None:
        """To its end; None: all."""
        self.ask("finish", batch=batch)

    def expire(self, batch: str, done: float | None = None) -> None:
        """Expires it. done: the share of its lines that are finished; None: what is by its timing."""
        self.ask("expire", batch=batch, done=done)

    def change(self, batch: str, **values: Any) -> None:
        """done: the share of its lines that are finished; a later cancel keeps them."""
        self.ask("change", batch=batch, **values)

    # -- what happened

    def billing(self) -> list[Billed]:
        """What was paid for: one entry for a text, a model and a size."""
        return [Billed(**row) for row in self.ask("billing")]

    def billed(self, text: str) -> int:
        """How often a text was paid for."""
        wanted = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return sum(entry.times for entry in self.billing() if entry.hash == wanted)

    def busiest(self, seconds: float = 60.0) -> tuple[int, int]:
        """The most requests, and the most tokens, of embeddings that were let through within any `seconds`."""
        found = sorted((row for row in self.requests("embeddings") if row.status != 429), key=lambda row: row.at)
        most_requests = most_tokens = tokens = first = 0
        for position, row in enumerate(found):
            tokens += row.tokens
            while found[first].at <= row.at - seconds:
                tokens -= found[first].tokens
                first += 1
            most_requests, most_tokens = max(most_requests, position - first + 1), max(most_tokens, tokens)
        return most_requests, most_tokens

    def requests(self, operation: str = "") -> list[Request]:
        """What was asked, in the order of the answers."""
        return [Request(**row) for row in self.ask("requests", operation=operation)]
