"""The home directory of a stack: its places, its lock, and the files that only its owner may read."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import StackError, StackRunning
from workers.embedded.ports import free_port, is_free

STACK_FILE = "stack.json"
LOCK_FILE = "lock"
SAME_PROCESS_SECONDS = 2.0  # start times are kept in clock ticks since a boot time that is itself adjusted
# Somebody may be looking whether the lock is held, which takes it for a moment.
LOCK_SECONDS = 1.0
SERVERS = ("postgres", "redis", "qdrant", "flower")
WEBHOOKS = "webhooks"  # what they are signed with is kept among the passwords


@dataclass(frozen=True, slots=True)
class Home:
    """A home by its absolute path."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> Home:
        return cls(Path(os.path.abspath(path.expanduser())))

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def log(self, part: str) -> Path:
        return self.logs / f"{part}.log"

    def create(self) -> None:
        """Makes the home where it is missing, readable by its owner alone. Raises StackError."""
        if self.path in (Path("/"), Path(os.path.expanduser("~")), Path.cwd(), Path("/tmp")):  # noqa: S108 - refused, not used
            raise StackError(f"MILLRACE_HOME is {self.path}, which is not ours alone; name a directory below it")
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            self.logs.mkdir(mode=0o700, exist_ok=True)
            write_private(self.path / ".gitignore", "*\n")
        except OSError as error:
            raise StackError(f"MILLRACE_HOME {self.path} cannot be used: {error.strerror}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of the home; raises StackRunning, naming the process that has it."""
        descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise StackRunning(
                        f"a stack is running on {self.path} already (pid {self.holder() or 'unknown'}). "
                        "`millrace status` shows it, `millrace down` stops it"
                    )
                time.sleep(0.05)
            us = {"pid": os.getpid(), "started": psutil.Process().create_time()}
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(us).encode("ascii"), 0)
            yield
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        try:
            descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            return not _try_lock(descriptor)
        finally:
            os.close(descriptor)

    def holder(self) -> int | None:
        """The pid of the process that holds the lock; None where nobody does, or it has not said so yet."""
        if not self.is_locked():
            return None
        try:
            content = json.loads((self.path / LOCK_FILE).read_text("ascii"))
            return int(content["pid"]) if is_same_process(content["pid"], content["started"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Identity:
    """What a home keeps from one start to the next: a name that no other has, passwords, ports."""

    name: str
    passwords: dict[str, str] = field(repr=False)
    ports: dict[str, int]

    @classmethod
    def of(cls, home: Home) -> Identity:
        """Reads it, or makes it. For the holder of the lock."""
        try:
            content = json.loads((home.path / STACK_FILE).read_text("ascii"))
            identity = cls(content["name"], content["passwords"], content["ports"])
        except FileNotFoundError:
            identity = cls(f"millrace-{secrets.token_hex(6)}", {}, {})
        except (ValueError, KeyError, TypeError) as error:
            raise StackError(
                f"{home.path / STACK_FILE} is damaged: {error!r}. It holds the passwords of the data beside it; "
                "restore it, or move the home away and start anew"
            ) from error
        for server in SERVERS:
            identity.passwords.setdefault(server, secrets.token_urlsafe(24))
        identity.passwords.setdefault(WEBHOOKS, f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode('ascii')}")
        identity.save(home)
        return identity

    def choose_ports(self, home: Home) -> None:
        """Gives every server a port; one it had before is kept unless somebody else has it now."""
        for server in SERVERS:
            if server not in self.ports or not is_free(self.ports[server]):
                self.ports[server] = self._another_port()
        self.save(home)

    def move(self, server: str, home: Home) -> None:
        """Chooses another port for a server."""
        self.ports[server] = self._another_port()
        self.save(home)

    def save(self, home: Home) -> None:
        content = {"name": self.name, "passwords": self.passwords, "ports": self.ports}
        write_private(home.path / STACK_FILE, json.dumps(content, indent=1) + "\n")

    def _another_port(self) -> int:
        while (port := free_port()) in self.ports.values():
            pass
        return port


def write_private(path: Path, content: str) -> None:
    """Replaces a file in one step; only its owner can read it, at every moment."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def is_same_process(pid: Any, started: Any) -> bool:
    """Whether the process that had this pid and start time (seconds since the epoch) still runs."""
    try:
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - float(started)) < SAME_PROCESS_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError, TypeError):
        return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
