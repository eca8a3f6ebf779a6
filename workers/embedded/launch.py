"""Becomes another program: `launch.py --parent PID --death-signal N [--uid U --gid G] [--capability C] -- ARGV`.

Run as a script in a fresh interpreter (`python -I -S`), because nothing of this may happen between fork and exec of
a process that has threads. The new program gets a signal when its parent dies (Linux), and runs as another user
where Postgres, which refuses root, is started by root. That user may be unable to pass the directories on the way to
the program or to its data (a checkout in /root, a home of mode 0700), so one capability for just that can be kept.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from contextlib import suppress

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAPABILITY_VERSION_3 = 0x20080522
CANNOT_EXECUTE = 126


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _call(function: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{function}: {os.strerror(error)}")


def _become(uid: int, gid: int, capability: int | None) -> None:
    """Drops to a user for good; keeps `capability` (below 32), and nothing else, over the exec to come."""
    if capability is not None:
        _call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
        # Without this access(2), by which initdb checks that it can run postgres, disregards the capability. A
        # container may forbid it; then that check decides.
        with suppress(OSError):
            _call("prctl", PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if capability is not None:
        mask = 1 << capability
        sets = (_CapabilitySets * 2)(_CapabilitySets(mask, mask, mask), _CapabilitySets(0, 0, 0))
        _call("capset", ctypes.byref(_CapabilityHeader(CAPABILITY_VERSION_3, 0)), sets)
        _call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="launch")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--death-signal", type=int, required=True)
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("--capability", type=int)
    split = arguments.index("--")
    options, argv = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    os.umask(0o077)
    if options.uid is not None:
        _become(options.uid, options.gid, options.capability)
    if sys.platform == "linux":
        # After the change of user, which clears it. A parent that died before this line is seen by the next one.
        _call("prctl", PR_SET_PDEATHSIG, options.death_signal, 0, 0, 0)
        if os.getppid() != options.parent:
            raise OSError(f"the parent {options.parent} is gone")
    os.execv(argv[0], argv)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.stderr.write(f"cannot start: {error}\n")
        sys.exit(CANNOT_EXECUTE)
