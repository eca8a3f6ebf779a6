"""`python -m workers.embedded.vector_server`: the vector server as a process of its own."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from pipeline.errors import StackError
from pipeline.monitoring import logs
from pipeline.observe import logger
from workers.embedded.vector_server.files import write_atomically
from workers.embedded.vector_server.lifeline import watch_parent
from workers.light_import import leave_out_clients

log = logger("vector_server")

KEY_VARIABLE = "MILLRACE_VECTOR_SERVER_KEY"
# At 384 dimensions searching this many points without an index takes some milliseconds.
OPTIMIZE_AT = 10_000
# What is written between two looks at the disk is less; see room.py.
RESERVE_MB = 128


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workers.embedded.vector_server", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the collections")
    parser.add_argument("--listen", default="127.0.0.1:0", help="address and port; port 0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="written with the port once the server answers")
    parser.add_argument("--optimize-at", type=int, default=OPTIMIZE_AT, help="new points before the first optimisation")
    parser.add_argument("--reserve-mb", type=int, default=RESERVE_MB, help="room that is kept free on the disk")
    parser.add_argument("--log-format", choices=["json", "text"], default="json")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    parser.add_argument("--parent", type=int, help="end with this process (default: the one that started it; 0: none)")
    return parser


def main() -> int:
    """Exit 0 after an orderly stop, 1 where the server cannot start, 2 for wrong use."""
    options = arguments().parse_args()
    logs.configure("qdrant", format=options.log_format, level=options.log_level)
    key = os.environ.pop(KEY_VARIABLE, "")  # taken out, so that no child inherits it
    if not key:
        log.error("set %s to the API key that clients must send", KEY_VARIABLE)
        return 2
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    parent = os.getppid() if options.parent is None else options.parent
    if parent:
        watch_parent(parent, stop.set)
    leave_out_clients()
    from workers.embedded.vector_server.server import Server
    from workers.embedded.vector_server.store import Store

    try:
        store = Store(options.data, max(1, options.optimize_at), options.reserve_mb << 20)
    except (StackError, OSError) as error:
        log.error("the vector server cannot start: %s", error)
        return 1
    if options.port_file is not None:
        options.port_file.unlink(missing_ok=True)  # an older server's port must not be taken for this one's
    try:
        server = Server(store, options.listen, key)
    except RuntimeError as error:
        log.error("the vector server cannot listen on %s: %s", options.listen, error)
        store.close()
        return 1
    server.start()
    if options.port_file is not None:
        write_atomically(options.port_file, f"{server.port}\n".encode())
    log.info("serving %s on port %d", options.data, server.port)
    while not stop.wait(1.0):  # a wait without end would not see signals everywhere
        pass
    log.info("stopping")
    server.stop()
    log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
