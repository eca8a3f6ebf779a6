"""Files that must be right after a crash, and copies that keep holes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


class CopyStopped(Exception):  # noqa: N818 - an outcome, not a fault
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

    Raises CopyStopped between two files once `stopped()` is true; what was copied is left for the caller to remove.
    """
    for directory, _, files in os.walk(source):
        there = target / Path(directory).relative_to(source)
        there.mkdir(parents=True, exist_ok=True)
        for name in files:
            if stopped():
                raise CopyStopped
            _copy_file(Path(directory) / name, there / name)


def _copy_file(source: Path, target: Path) -> None:
    if not hasattr(os, "SEEK_DATA"):
        shutil.copyfile(source, target)
        return
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        os.truncate(writer.fileno(), size)
        start = 0
        while start < size:
            try:
                start = os.lseek(reader.fileno(), start, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole up to the end
                return
            end = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            os.lseek(writer.fileno(), start, os.SEEK_SET)
            while start < end:
                start += os.sendfile(writer.fileno(), reader.fileno(), start, end - start)
