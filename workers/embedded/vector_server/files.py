"""Files that must be right after a crash, and copies that keep holes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

_CHUNK = 8 << 20


class CopyStopped(Exception):
    """The copy was given up because the server or the collection goes away."""


def sync_directory(directory: Path) -> None:
    """Make renames and new files in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file: after a crash it holds the old or the new content, never a part."""
    temporary = path.with_name(path.name + ".writing")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_tree(root: Path) -> None:
    """Make every file below a directory durable."""
    for directory, _, files in os.walk(root):
        for name in files:
            descriptor = os.open(os.path.join(directory, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(directory))


def copy_tree(source: Path, target: Path, stopped: Callable[[], bool]) -> None:
    """Copy a shard's directory. An empty shard is 164 MB of holes and 1 MB of data, so holes stay holes.

    Raises CopyStopped within some milliseconds of `stopped()`; what was copied is left for the caller to remove.
    """
    for directory, _, files in os.walk(source):
        there = target / Path(directory).relative_to(source)
        there.mkdir(parents=True, exist_ok=True)
        for name in files:
            with (Path(directory) / name).open("rb") as reader, (there / name).open("wb") as writer:
                size = os.fstat(reader.fileno()).st_size
                os.truncate(writer.fileno(), size)
                for start, end in _extents(reader.fileno(), size):
                    _copy(reader.fileno(), writer.fileno(), start, end, stopped)


def _copy(reader: int, writer: int, start: int, end: int, stopped: Callable[[], bool]) -> None:
    while start < end:
        if stopped():
            raise CopyStopped
        chunk = os.pread(reader, min(_CHUNK, end - start), start)
        if not chunk:
            return
        start += os.pwrite(writer, chunk, start)


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has data; all of it, where the system cannot tell."""
    if not hasattr(os, "SEEK_DATA"):
        yield 0, size
        return
    start = 0
    while start < size:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole up to the end
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end
        start = end
