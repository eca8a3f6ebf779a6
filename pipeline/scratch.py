"""Directories for temporary files that tell when nobody needs them any more.

Whoever makes one holds a lock on a file in it. The kernel lets go of that when the process dies, however it dies, so
who gets the lock may remove the directory: no process id is compared, which another container or a later process may
have too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PREFIX = "millrace-scratch-"
_LOCK = "lock"
# One that has just been made may not be locked yet.
_YOUNG_SECONDS = 60.0


class Scratch:
    """A directory in the system's directory for temporary files, readable by its owner alone. close() removes it.

    Its name has the id of this process in it, for whoever looks. Raises OSError where it cannot be made.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._lock = _locked(self.path)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def abandoned() -> Iterator[Path]:
    """Directories of this user whose makers are dead, on this machine. Each is locked while it is looked at."""
    with suppress(OSError):
        for path in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
            if _is_ours(path) and (lock := _locked(path)) is not None:
                try:
                    yield path
                finally:
                    os.close(lock)


def _is_ours(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    old = time.time() - found.st_ctime > _YOUNG_SECONDS
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and old


def _locked(directory: Path) -> int | None:
    """A descriptor that has the lock; None where another process has it."""
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
