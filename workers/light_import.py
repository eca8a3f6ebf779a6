"""Of qdrant-client our own programs need the messages and channels alone, not the clients."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys

_PACKAGE = "qdrant_client"
_LEFT_OUT = "millrace_left_out"


def leave_out_clients() -> None:
    """From now on `qdrant_client.grpc` is imported without its package, which imports every client, a REST API as
    pydantic models, and FastEmbed: a second of every start, and 60 MB. Does nothing where it is imported already.

    For a process of our own: in an application's, the package is the application's too.
    """
    found = importlib.util.find_spec(_PACKAGE) if _PACKAGE not in sys.modules else None
    if found is not None:
        module = importlib.util.module_from_spec(
            importlib.machinery.ModuleSpec(_PACKAGE, None, origin=found.origin, is_package=True)
        )
        module.__path__ = list(found.submodule_search_locations or ())
        setattr(module, _LEFT_OUT, True)
        sys.modules[_PACKAGE] = module


def bring_back_clients() -> None:
    """For the one command that uses qdrant-client as its own users do."""
    if hasattr(sys.modules.get(_PACKAGE), _LEFT_OUT):
        del sys.modules[_PACKAGE]
        importlib.import_module(_PACKAGE)
