"""Free TCP ports on loopback."""

from __future__ import annotations

import random
import socket

from pipeline.errors import StackError

LOOPBACK = "127.0.0.1"
# Below the range that Linux gives to outgoing connections (32768 up): a port of ours stays free while its part is
# being restarted.
LOWEST, HIGHEST = 20_000, 32_000
ATTEMPTS = 200


def is_free(port: int) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((LOOPBACK, port))
            candidate.listen(1)
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port on which nothing listens; raises StackError when none was found."""
    for _ in range(ATTEMPTS):
        port = random.randint(LOWEST, HIGHEST)  # noqa: S311 - not a secret
        if is_free(port):
            return port
    raise StackError(f"no free port between {LOWEST} and {HIGHEST} on {LOOPBACK}; stop something that listens there")
