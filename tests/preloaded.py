"""The program `millrace`, imported once: each command is a process of its own, forked from one that has loaded it.

What a command does is the same, its environment, directory, streams and exit status too; only the half second of
imports is paid once. Tests that measure a start, send signals or look at what is imported run the program itself.

    python tests/preloaded.py SOCKET     # serves on a Unix socket until its parent ends
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_START_SECONDS = 60.0
_MAX_REQUEST = 4 << 20


class Preloaded:
    """Starts the process at the first command, and ends it with this one. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._address = ""

    def run(
        self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path, typed: str | None, seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run(["millrace", *arguments], ...)` with both outputs captured. Raises TimeoutExpired."""
        request = json.dumps({"arguments": list(arguments), "env": dict(env), "cwd": str(cwd)}).encode()
        with (
            tempfile.TemporaryFile() as said,
            tempfile.TemporaryFile() as complained,
            tempfile.TemporaryFile() as given,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line,
        ):
            given.write((typed or "").encode())
            given.seek(0)
            line.settimeout(seconds)
            line.connect(self._serving())
            line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_REQUEST)
            socket.send_fds(line, [request], [given.fileno(), said.fileno(), complained.fileno()])
            try:
                answer = line.recv(64)
            except TimeoutError:
                raise subprocess.TimeoutExpired(["millrace", *arguments], seconds) from None
            said.seek(0)
            complained.seek(0)
            return subprocess.CompletedProcess(
                ["millrace", *arguments], int(answer), said.read().decode(), complained.read().decode()
            )

    def _serving(self) -> str:
        with self._lock:
            if not self._address:
                address = str(Path(tempfile.mkdtemp(prefix="millrace-preloaded-")) / "socket")
                process = subprocess.Popen([sys.executable, "-P", __file__, address], stdin=subprocess.PIPE)
                atexit.register(_end, process, address)
                deadline = time.monotonic() + _START_SECONDS
                while not os.path.exists(address):
                    assert process.poll() is None, "the preloaded program has ended"
                    assert time.monotonic() < deadline, "the preloaded program does not start"
                    time.sleep(0.02)
                self._address = address
            return self._address


def _end(process: subprocess.Popen[bytes], address: str) -> None:
    process.kill()
    process.wait()
    if process.stdin:
        process.stdin.close()
    os.unlink(address)
    os.rmdir(os.path.dirname(address))


# -- the process ---------------------------------------------------------------------------------------------------


def _serve(address: str) -> None:
    from workers.light_import import leave_out_clients

    leave_out_clients()
    import pipeline.client
    import pipeline.vectors.qdrant
    import workers.cli.main
    import workers.embedded.background
    import workers.embedded.shutdown

    del pipeline, workers
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who serve one command
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address + ".new")
    listener.listen(64)
    os.rename(address + ".new", address)
    while True:
        line, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _attend(line)
        line.close()


def _end_with_parent() -> None:
    sys.stdin.read()  # the parent's end closes with it
    os._exit(0)


def _attend(line: socket.socket) -> None:
    """One command from its request to its exit status; ends it where nobody waits for it any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _MAX_REQUEST)
    request, streams, _, _ = socket.recv_fds(line, _MAX_REQUEST, 3)
    pid = os.fork()
    if pid == 0:
        line.close()
        os._exit(_command(json.loads(request), streams))
    for stream in streams:
        os.close(stream)
    threading.Thread(target=_kill_when_unwanted, args=(line, pid), daemon=True).start()
    _, status = os.waitpid(pid, 0)
    line.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _kill_when_unwanted(line: socket.socket, pid: int) -> None:
    line.recv(1)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _command(request: Mapping[str, object], streams: Sequence[int]) -> int:
    from workers.cli.main import main

    arguments, env = request["arguments"], request["env"]
    assert isinstance(arguments, list)
    assert isinstance(env, dict)
    for number, given in enumerate(streams):
        os.dup2(given, number)
        os.close(given)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(str(request["cwd"]))
    sys.argv = ["millrace", *arguments]
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    threading._shutdown()  # type: ignore[attr-defined] # as the interpreter does at its end
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code if isinstance(code, int) else 1


if __name__ == "__main__":
    _serve(sys.argv[1])
