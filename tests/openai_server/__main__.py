"""The process: `python -m openai_server --directory DIR --key KEY ...`; ends with its standard input."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
from pathlib import Path

import uvicorn

from openai_server.app import Application, Server
from openai_server.control_routes import ControlRoutes
from openai_server.models import Models, tokens_of
from openai_server.store import Store


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--served", type=json.loads, default={})
    given = parser.parse_args()
    server = Server(Store(given.directory, given.key), Models(given.served, given.models))
    application = Application([*server.routes(), *ControlRoutes(server).routes()])
    # Said to be TCP, or asyncio would not switch Nagle's algorithm off: 40 ms for each answer.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", given.port))
    listener.listen(1024)
    threading.Thread(target=_end_with_input, daemon=True).start()
    threading.Thread(target=tokens_of, args=("warm",), daemon=True).start()
    port_file = given.directory / "port"
    port_file.with_suffix(".new").write_text(str(listener.getsockname()[1]))
    port_file.with_suffix(".new").rename(port_file)
    config = uvicorn.Config(application, log_level="warning", http="h11", lifespan="off", ws="none",
                            timeout_graceful_shutdown=0, timeout_keep_alive=60)  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
