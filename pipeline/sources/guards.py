"""What may be read: files inside the allowed roots and nothing but regular files; hosts with public addresses.

Every check is made on the thing that is then used (an open file descriptor, the address connected to), so that
nothing can be exchanged between the check and the use.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import DocumentTooLarge, ExtractionFailed, SourceRefused, SourceUnavailable

READ_TRIES = 3  # a file that is being written to is read again this often before it is given up
_READ_STEP = 1 << 20
_SETTLED_SECONDS = 2.0  # the coarsest file times that are in use (FAT)
_WRITE_SECONDS = 0.05  # one call to write() takes less, as a rule

# O_PATH needs no read permission on the directories on the way, only the right to pass through them.
_PASS = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
_LIST = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_RDONLY
# O_NONBLOCK: opening a FIFO or a device must not wait for anybody.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOCTTY", 0)

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISLNK, "a symbolic link"),
)


def check_root(path: str, roots: Sequence[Path]) -> str:
    """The path with every symbolic link resolved; raises SourceRefused where that lies outside the roots."""
    resolved = os.path.realpath(path)
    if roots and not any(is_below(resolved, os.path.realpath(root)) for root in roots):
        allowed = ", ".join(str(root) for root in roots)
        leads = f" (it leads to {resolved})" if resolved != path else ""
        raise SourceRefused(f"{path}{leads} is outside the allowed roots {allowed}; see MILLRACE_SOURCES__ROOTS")
    return resolved


def is_below(path: str, root: str) -> bool:
    """Whether a path is a directory or lies in it (both resolved)."""
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def open_directory(resolved: str) -> int:
    """A descriptor of a directory for listing. The caller closes it; raises OSError."""
    return _open_beneath(resolved, _LIST)


def open_regular(resolved: str) -> int:
    """A descriptor of a regular file, opened without following links or waiting. The caller closes it.

    `resolved` holds no symbolic links: one that is met was put there since it was checked.
    Raises SourceRefused for anything but a regular file, OSError where it cannot be opened.
    """
    return _regular(_open_beneath(resolved, _READ), resolved)


def open_regular_at(directory: int, name: str, path: str) -> int:
    """As `open_regular`, for a name in an open directory; `path` is what messages call it."""
    # A device that is opened may do something (rewind, hang up); look first, and look again at what was opened.
    _refuse_special(os.stat(name, dir_fd=directory, follow_symlinks=False), path)
    try:
        descriptor = os.open(name, _READ, dir_fd=directory)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise SourceRefused(f"{path} was exchanged for something that is not a regular file") from None
        raise
    return _regular(descriptor, path)


def _open_beneath(resolved: str, flags: int) -> int:
    """Opens an absolute path one name at a time, following no link on the way."""
    parts = [part for part in resolved.split(os.sep) if part]
    descriptor = os.open(os.sep, _PASS if parts else flags & ~os.O_NOFOLLOW)
    try:
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            if last and not flags & os.O_DIRECTORY:
                _refuse_special(os.stat(part, dir_fd=descriptor, follow_symlinks=False), resolved)
            following = os.open(part, flags if last else _PASS, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = following
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.ELOOP:
            raise SourceRefused(f"{resolved} was exchanged for a symbolic link") from None
        raise
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_special(status: os.stat_result, path: str) -> None:
    for is_kind, kind in _KINDS:
        if is_kind(status.st_mode):
            raise SourceRefused(f"{path} is {kind}, not a regular file")


def _regular(descriptor: int, path: str) -> int:
    try:
        _refuse_special(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(descriptor: int, max_bytes: int, path: str) -> bytes:
    """The content of an open regular file, as it was at one moment.

    Raises DocumentTooLarge over `max_bytes`; ExtractionFailed where the file kept changing while it was read;
    OSError.
    """
    for _ in range(READ_TRIES):
        before = os.fstat(descriptor)
        if before.st_size > max_bytes:
            raise too_large(path, before.st_size, max_bytes)
        os.lseek(descriptor, 0, os.SEEK_SET)
        data = _read_at_most(descriptor, max_bytes + 1, before.st_size)
        after = os.fstat(descriptor)
        if len(data) > max_bytes:
            raise too_large(path, max(after.st_size, len(data)), max_bytes)
        if _stamp(before) != _stamp(after) or len(data) != after.st_size:
            continue
        age = abs(time.time() - after.st_mtime)
        if age > _SETTLED_SECONDS:
            return data
        time.sleep(max(0.0, _WRITE_SECONDS - age))
        if _reads_as(descriptor, data) and _stamp(os.fstat(descriptor)) == _stamp(after):
            return data
    raise ExtractionFailed(f"{path} changes while it is read; ingest it again when it is complete")


def _read_at_most(descriptor: int, limit: int, expected: int) -> bytes:
    parts: list[bytes] = []
    left = limit
    while left > 0:
        part = os.read(descriptor, min(left, max(expected + 1, 1), _READ_STEP))
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _reads_as(descriptor: int, data: bytes) -> bool:
    """Whether the file still reads the same.

    A file's times are set when a write begins and are coarse (some milliseconds): in a file that was written to just
    now, equal times do not tell that nothing happened in between.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)
    view = memoryview(data)
    while part := os.read(descriptor, _READ_STEP):
        if view[: len(part)] != part:
            return False
        view = view[len(part) :]
    return not view


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def too_large(name: str, size: int, max_bytes: int) -> DocumentTooLarge:
    return DocumentTooLarge(
        f"{name} has {size:,} bytes; the limit is {max_bytes:,} (raise MILLRACE_SOURCES__MAX_BYTES, or split it)"
    )


# Prefixes whose addresses carry an IPv4 address that a gateway would connect to.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, loopback, link-local, multicast, reserved,
    unspecified or shared, also not by way of an IPv4 address inside an IPv6 one."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        inner = [part for part in (ip.sixtofour, *(ip.teredo or ())) if part is not None]
        if ip.is_site_local or not all(is_public(str(part)) for part in inner):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


# The setting that allows a source addresses which are not public.
WEB_PRIVATE = "MILLRACE_SOURCES__WEB_PRIVATE"


def resolve_public(host: str, port: int, allow_private: bool, setting: str = WEB_PRIVATE) -> list[str]:
    """The addresses of a host, in the resolver's order, numeric: what is connected to is what was checked.

    setting: that allows others, for the message.

    Raises SourceRefused where any of them is not public (unless allowed): a name that has a public address beside
    a private one is a trick. Raises SourceUnavailable where the name does not resolve.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SourceUnavailable(f"the host {host} cannot be resolved: {error}") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private:
        for address in addresses:
            if not is_public(address):
                raise SourceRefused(
                    f"the host {host} has the address {address}, which is not a public one; "
                    f"{setting}=true allows private networks"
                )
    return addresses
