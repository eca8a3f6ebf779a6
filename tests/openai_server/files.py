"""Files: taken as a form, kept on disk, handed out as a stream."""

from __future__ import annotations

import mmap
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openai_server.answers import ApiError, missing
from openai_server.store import Store

MAX_BYTES = 512 * 2**20
MAX_BATCH_BYTES = 200 * 2**20
EXPIRES = range(3600, 2_592_001)


def split_form(body: Path, content_type: str) -> tuple[dict[str, str], str | None, Path]:
    """The fields of a form that lies in a file; the name of the file in it, and where its content has been put.

    Read through the page cache: a form of 200 MB takes no memory of this process.
    """
    boundary = re.search(r'boundary="?([^";]+)"?', content_type)
    if boundary is None:
        raise ApiError(400, "We could not parse your multipart form.")
    content = body.with_suffix(".content")
    content.touch()
    if not body.stat().st_size:
        raise ApiError(400, "We could not parse your multipart form.")
    separator = b"--" + boundary[1].encode()
    fields: dict[str, str] = {}
    filename: str | None = None
    with body.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(separator)
        while start >= 0 and (end := data.find(b"\r\n" + separator, start)) >= 0:
            head_end = data.find(b"\r\n\r\n", start)
            head = data[start:head_end].decode("utf-8", "replace")
            name = re.search(r'[; ]name="([^"]*)"', head)
            found = re.search(r'filename="([^"]*)"', head)
            if found:
                filename = found[1]
                with content.open("wb") as target:
                    file.seek(head_end + 4)
                    _copy(file, target, end - head_end - 4)
            elif name:
                fields[name[1]] = data[head_end + 4 : end].decode("utf-8", "replace")
            start = end + 2
    return fields, filename, content


def _copy(source: Any, target: Any, length: int) -> None:
    while length > 0:
        piece = source.read(min(length, 1 << 20))
        target.write(piece)
        length -= len(piece)


def checked_form(fields: Mapping[str, str], filename: str | None, size: int) -> dict[str, Any]:
    """What a file is made of; raises ApiError for whatever OpenAI refuses."""
    purpose = fields.get("purpose")
    if not purpose:
        raise ApiError(400, "'purpose' is a required property")
    if filename is None:
        raise ApiError(400, "'file' is a required property")
    if purpose == "batch" and not filename.endswith(".jsonl"):
        raise ApiError(400, f"Invalid file format for Batch API. Must be .jsonl, but got {filename}", param="file")
    if size > (MAX_BATCH_BYTES if purpose == "batch" else MAX_BYTES):
        raise ApiError(413, "The file is too large.", code="file_too_large", param="file")
    expires: int | None = None
    if seconds := fields.get("expires_after[seconds]"):
        if fields.get("expires_after[anchor]") != "created_at" or int(seconds) not in EXPIRES:
            raise ApiError(400, "Invalid 'expires_after'.", param="expires_after")
        expires = int(seconds)
    return {"purpose": purpose, "filename": filename, "expires": expires}


def add(
    store: Store, account: str, content: Path, given: Mapping[str, Any], at: float, invisible: float = 0.0
) -> dict[str, Any]:
    """Keeps a file; `content` is moved. In one step: it is there as a whole, or not at all."""
    file_id = given.get("id") or new_id("file-")
    size = content.stat().st_size
    shutil.move(content, store.content(file_id))
    expires = at + given["expires"] if given.get("expires") else None
    with store.transaction() as database:
        database.execute(
            """INSERT INTO files (id, account, purpose, filename, bytes, created_at, expires_at, visible_at)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
            (file_id, account, given["purpose"], given["filename"], size, at, expires, at + invisible),
        )
    return get(store, account, file_id, visible=False)


def get(store: Store, account: str, file_id: str, *, visible: bool = True) -> dict[str, Any]:
    """A file as OpenAI shows it. visible: raise 404 where it is not to be seen yet."""
    now = store.now()
    with store.transaction() as database:
        row = database.execute("SELECT * FROM files WHERE id = ? AND account = ?", (file_id, account)).fetchone()
    if row is None or (row["expires_at"] or now + 1) <= now or (visible and row["visible_at"] > now):
        raise missing("File", file_id)
    return _shown(row)


def page(
    store: Store, account: str, *, limit: int, after: str | None, order: str, purpose: str | None
) -> tuple[list[dict[str, Any]], bool]:
    """(files, whether there are more), newest first unless `order` is asc."""
    if order not in {"asc", "desc"} or not 1 <= limit <= 10_000:
        raise ApiError(400, "Invalid 'limit' or 'order'.")
    sign = ">" if order == "asc" else "<"
    with store.transaction() as database:
        rows = database.execute(
            f"""SELECT * FROM files
                 WHERE account = ? AND (? IS NULL OR purpose = ?) AND visible_at <= ?
                   AND (expires_at IS NULL OR expires_at > ?)
                   AND (? IS NULL OR seq {sign} (SELECT seq FROM files WHERE id = ?))
                 ORDER BY seq {order} LIMIT ?""",
            (account, purpose, purpose, store.now(), store.now(), after, after, limit + 1),
        ).fetchall()
    return [_shown(row) for row in rows[:limit]], len(rows) > limit


def delete(store: Store, account: str, file_id: str) -> dict[str, Any]:
    get(store, account, file_id, visible=False)
    with store.transaction() as database:
        database.execute("DELETE FROM files WHERE id = ?", (file_id,))
        used = database.execute(
            """SELECT 1 FROM batches WHERE json_extract(record, '$.input_file_id') = ?
                  AND state IN ('in_progress', 'finalizing', 'cancelling')""",
            (file_id,),
        ).fetchone()
    if used is None:  # a batch that is under way goes on, and is paid for
        store.content(file_id).unlink(missing_ok=True)
    return {"id": file_id, "object": "file", "deleted": True}


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def _shown(row: Any) -> dict[str, Any]:
    return {
        "id": row["id"],
        "object": "file",
        "purpose": row["purpose"],
        "filename": row["filename"],
        "bytes": row["bytes"],
        "created_at": int(row["created_at"]),
        "expires_at": None if row["expires_at"] is None else int(row["expires_at"]),
        "status": "processed",
        "status_details": None,
    }
