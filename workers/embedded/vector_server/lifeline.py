"""A process that ends when its parent does, also when the parent is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

import psutil

_PR_SET_PDEATHSIG = 1
# The kernel's signal comes even when only the thread ends that started this process, so its handler looks first.
PARENT_SIGNAL = signal.SIGUSR1
POLL_SECONDS = 1.0


def die_with_parent(parent: int) -> None:
    """For a child with nothing to save: the kernel kills it when the parent goes (Linux); ends now if it has."""
    _ask_kernel(signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(f"the parent {parent} has gone")


def watch_parent(parent: int, gone: Callable[[], None]) -> None:
    """Call `gone`, from any thread, once the process `parent` has ended: told by the kernel, or by looking each second.

    Must be called from the main thread. `parent` may be any process; the kernel's signal serves only a direct parent.
    """
    try:
        process = psutil.Process(parent)
    except psutil.NoSuchProcess:
        gone()
        return

    def alive() -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def look(*_: object) -> None:
        if not alive():
            gone()

    if os.getppid() == parent:
        signal.signal(PARENT_SIGNAL, look)
        _ask_kernel(PARENT_SIGNAL)
    pause = threading.Event()

    def poll() -> None:
        while alive():
            pause.wait(POLL_SECONDS)
        gone()

    threading.Thread(target=poll, name="lifeline", daemon=True).start()


def _ask_kernel(number: signal.Signals) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0)
