"""What the server remembers: one SQLite file and a directory of files' contents. It survives SIGKILL at any moment."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS keys (key TEXT PRIMARY KEY, account TEXT NOT NULL, state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, account TEXT NOT NULL, purpose TEXT NOT NULL,
    filename TEXT NOT NULL, bytes INTEGER NOT NULL, created_at REAL NOT NULL, expires_at REAL,
    visible_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, account TEXT NOT NULL, state TEXT NOT NULL,
    created_at REAL NOT NULL, listed_at REAL NOT NULL, gone_at REAL, tokens INTEGER NOT NULL DEFAULT 0,
    record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS billed (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, hash TEXT NOT NULL, model TEXT NOT NULL, dimensions INTEGER NOT NULL,
    tokens INTEGER NOT NULL, batch TEXT, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS billed_hash ON billed (hash);
CREATE TABLE IF NOT EXISTS requests (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, operation TEXT NOT NULL, path TEXT NOT NULL,
    status INTEGER NOT NULL, inputs INTEGER NOT NULL, tokens INTEGER NOT NULL, model TEXT NOT NULL,
    fingerprint TEXT NOT NULL, seconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS faults (
    id INTEGER PRIMARY KEY AUTOINCREMENT, operation TEXT NOT NULL, kind TEXT NOT NULL, left_times INTEGER,
    skip INTEGER NOT NULL, probability REAL NOT NULL, seed INTEGER NOT NULL, looked INTEGER NOT NULL,
    fired INTEGER NOT NULL, match TEXT NOT NULL, given TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS late (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, due REAL NOT NULL, account TEXT NOT NULL, operation TEXT NOT NULL,
    given TEXT NOT NULL);
"""
TABLES = ("keys", "files", "batches", "billed", "requests", "faults", "late", "settings")


class Store:
    """Thread-safe. Times are seconds since 1970 by the server's clock, which runs with the machine's, and is moved."""

    def __init__(self, directory: Path, key: str) -> None:
        self.files = directory / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self.key = key
        self._lock = threading.RLock()
        self._database = sqlite3.connect(
            directory / "state.sqlite", check_same_thread=False, isolation_level=None, cached_statements=256
        )
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode=WAL")
        # What is written is the system's when a commit returns: a killed process loses nothing, only a power cut would.
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.executescript(SCHEMA)
        with self.transaction() as database:
            database.execute("INSERT OR IGNORE INTO keys VALUES (?, 'org-default', 'valid')", (key,))

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._database.in_transaction:  # within another one of this thread
                yield self._database
                return
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def setting(self, name: str, default: Any = None) -> Any:
        with self._lock:
            row = self._database.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return default if row is None else json.loads(row["value"])

    def set(self, values: Mapping[str, Any]) -> None:
        with self.transaction() as database:
            for name, value in values.items():
                database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))

    def now(self) -> float:
        return time.time() + float(self.setting("clock", 0.0))

    def content(self, file_id: str) -> Path:
        return self.files / file_id

    def reset(self) -> None:
        """Forgets everything but the first key."""
        with self.transaction() as database:
            for table in TABLES:
                database.execute(f"DELETE FROM {table}")
            database.execute("INSERT INTO keys VALUES (?, 'org-default', 'valid')", (self.key,))
        for path in self.files.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
