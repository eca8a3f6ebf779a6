"""What there may be to do for a remote batch, as values: the words that the protocol and its service have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from pipeline.openai_batch.answers import Batch

# Uploads of a file that the server does not find afterwards, before the batch counts as refused.
MOST_UPLOADS = 8

Digest = bytes  # a sha256; also because `bytes` is the name of a size below


class Row(Protocol):
    """What is committed of a remote batch: the columns of `remote_batches` that decide."""

    @property
    def key(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def state(self) -> str: ...
    @property
    def status(self) -> str | None: ...
    @property
    def inputs(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def sha256(self) -> bytes | None: ...
    @property
    def file_id(self) -> str | None: ...
    @property
    def remote_id(self) -> str | None: ...
    @property
    def remote(self) -> Batch: ...
    @property
    def others(self) -> Sequence[Batch]: ...
    @property
    def tries(self) -> int: ...
    @property
    def poll_seconds(self) -> float | None: ...
    @property
    def intent_at(self) -> datetime | None: ...
    @property
    def listings(self) -> int: ...
    @property
    def fenced_at(self) -> datetime | None: ...
    @property
    def cancel_reason(self) -> str | None: ...
    @property
    def doubtful(self) -> bool: ...
    @property
    def error(self) -> str | None: ...
    @property
    def submitted_at(self) -> datetime | None: ...
    @property
    def ended_at(self) -> datetime | None: ...


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. timeout: of a request; grace: for a batch to show up in the list; first, most: between two looks;
    window: within which the server promises an end."""

    timeout: float = 60.0
    grace: float = 120.0
    first: float = 10.0
    most: float = 300.0
    window: float = 86_400.0


@dataclass(frozen=True, slots=True)
class Change:
    """What is committed. columns: of the row. seconds: until the next step; 0: at once.

    failed: the step was in vain, and is tried again. settle: in the same transaction, `verdicts` decides about every
    text of the batch that has no vector. found: batches of its key in the server's list, when it is closed.
    """

    columns: Mapping[str, Any]
    seconds: float = 0.0
    failed: bool = False
    settle: bool = False
    found: tuple[Batch, ...] = ()


@dataclass(frozen=True, slots=True)
class Commit:
    """Nothing is asked of the server."""

    change: Change


@dataclass(frozen=True, slots=True)
class Upload:
    """Render the file and upload it under this name; then `after_upload`. search: one of the name may be there already
    (`after.pick_file`)."""

    name: str
    search: bool
    commit: Change | None = None


@dataclass(frozen=True, slots=True)
class Create:
    """Create the batch, with one request; then `after_create`."""

    file_id: str
    metadata: Mapping[str, str]
    commit: Change


@dataclass(frozen=True, slots=True)
class Search:
    """List the batches, newest first, back to that time; then `after_search`. A page that fails makes the whole search
    fail."""

    since: datetime


@dataclass(frozen=True, slots=True)
class DeleteInput:
    """Delete the input file; then `after_delete`."""

    file_id: str


@dataclass(frozen=True, slots=True)
class Look:
    """Retrieve, or cancel, these batches; then `after_look`. One that cannot be cancelled is retrieved: it may have
    ended."""

    ask: tuple[str, ...]
    cancel: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResultFile:
    remote_id: str
    file_id: str
    of_errors: bool


@dataclass(frozen=True, slots=True)
class Read:
    """Read the files, in this order, from where they are stored up to, and store what their lines say; then
    `after_read`."""

    files: tuple[ResultFile, ...]
    commit: Change | None = None


@dataclass(frozen=True, slots=True)
class Clean:
    """Delete the files; then `after_clean`. search: not everything went as it should, so uploads that nobody remembers
    may be there besides, by their name (`rendering.is_file_of`), and further batches (`after.found_stray`)."""

    files: tuple[str, ...]
    search: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """It is too early."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Nothing:
    """It is closed."""


Step = Commit | Upload | Create | Search | DeleteInput | Look | Read | Clean | Wait | Nothing


@dataclass(frozen=True, slots=True)
class Uploaded:
    """file_id: at the server. lines, bytes, sha256: of what was rendered. kept: bytes that the server says it has;
    None: it does not say."""

    file_id: str
    lines: int
    bytes: int
    sha256: Digest
    kept: int | None = None


def batches_of(row: Row) -> list[Batch]:
    """The batch and all others under its key, as they were told last."""
    return [batch for batch in (row.remote, *row.others) if batch]
