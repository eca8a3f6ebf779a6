"""Uploading: the file of a remote batch is rendered from the ledger onto disk, and sent from there.

It is never in memory as a whole, and it is the same bytes whoever renders it, however often.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from pipeline.ledger import remote, remote_items
from pipeline.ledger.engine import Ledger
from pipeline.ledger.remote import RemoteBatch
from pipeline.observe import logger, operation
from pipeline.openai_batch.after import pick_file
from pipeline.openai_batch.answers import Failure, failure, whole_number
from pipeline.openai_batch.choosing import since
from pipeline.openai_batch.ordering import Order
from pipeline.openai_batch.ordering import read as read_order
from pipeline.openai_batch.rendering import Written, render_line
from pipeline.openai_batch.server import Progress, Server
from pipeline.openai_batch.steps import Upload, Uploaded
from pipeline.scratch import Scratch

# Texts that are read from the ledger at a time: a few megabytes.
_PAGE = 1000

_log = logger("openai_batch")


def upload(
    ledger: Ledger, server: Server, row: RemoteBatch, step: Upload, most_bytes: int, progress: Progress
) -> tuple[RemoteBatch, Uploaded | Failure | None]:
    """The row as it is then, and what came of it; None: there is nothing left to upload.

    most_bytes: of the file; what does not fit is wanted again. Raises LeaseLost, LedgerUnavailable.
    """
    _, order = read_order(row.spec)
    try:
        scratch = Scratch()
    except OSError as error:
        return row, _no_room(error)
    with closing(scratch):
        path = scratch.path / step.name
        try:
            with operation("openai.render"):
                written, last = _render(ledger, row, order, path, most_bytes, progress)
        except OSError as error:
            return row, _no_room(error)
        if last is not None:
            row = _leave_out(ledger, row, last)
        if not written.lines:
            return row, None
        return row, _send(server, row, step, path, written, progress)


def _no_room(error: OSError) -> Failure:
    return failure(None, None, f"its file cannot be written: {error.strerror or error}; TMPDIR says where to")


def _render(
    ledger: Ledger, row: RemoteBatch, order: Order, path: Path, most_bytes: int, progress: Progress
) -> tuple[Written, bytes | None]:
    """What was written; and the key of the last text that fits, where not all do."""
    written, last = Written(), b""
    with path.open("wb") as file:
        for key, text in _texts(ledger, row, progress):
            line = render_line(key, order.prefix + text, order.model, order.dimensions, order.encoding)
            if written.lines and written.bytes + len(line) > most_bytes:
                return written, last
            file.write(written.add(line))
            last = key
    return written, None


def _texts(ledger: Ledger, row: RemoteBatch, progress: Progress) -> Iterator[tuple[bytes, str]]:
    after = b""
    while True:
        with ledger.transaction() as connection:
            page = remote_items.page(connection, row.id, after, _PAGE)
        yield from page
        progress()
        if len(page) < _PAGE:
            return
        after = page[-1][0]


def _leave_out(ledger: Ledger, row: RemoteBatch, last: bytes) -> RemoteBatch:
    with ledger.transaction() as connection:
        row = remote.hold(connection, row)
        number = remote_items.put_back_after(connection, row.id, last)
        held = remote_items.held(connection, row.id)
        _log.info("%d texts do not fit into the file of remote batch %d: they go into another one", number, row.id)
        return remote.change(connection, row, inputs=held.inputs, tokens=held.tokens)


def _send(
    server: Server, row: RemoteBatch, step: Upload, path: Path, written: Written, progress: Progress
) -> Uploaded | Failure:
    if step.search:
        found = server.files_since(since(row.created_at), progress)
        if isinstance(found, Failure):
            return found
        kept, others = pick_file(found, step.name, written.bytes)
        for file_id in others:
            server.delete_file(file_id)  # cut off in the middle; where it cannot be deleted it expires
        if kept is not None:
            _log.info("remote batch %d: its file %s was uploaded before, and is found", row.id, kept)
            return Uploaded(kept, written.lines, written.bytes, written.sha256, written.bytes)
    with operation("openai.upload"):
        made = server.upload(path, step.name, progress)
    if isinstance(made, Failure):
        return made
    kept_bytes = whole_number(made.get("bytes"))
    return Uploaded(str(made["id"]), written.lines, written.bytes, written.sha256, kept_bytes)
