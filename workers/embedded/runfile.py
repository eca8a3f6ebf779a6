"""The run file of a stack: what runs, with which pid, where; and what of it is alive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psutil

from workers.embedded.home import is_same_process
from workers.embedded.stack import node_name

SERVERS_BY_URL = ("postgres", "redis", "qdrant", "flower")
WITHOUT_ADDRESS = ("beat",)
ONCE = ("initdb", "migrate")


def describe_processes(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The processes as they are shown: `{"postgres": {"url", "pid"}, ..., "workers": [{"name", "pid", "children"}],
    "beat": {"pid"}, "api": null, "flower": {"url", "pid"}}`; null for a part that does not run."""
    by_name = {part["name"]: part for part in parts if part["name"] not in ONCE}
    found: dict[str, Any] = {}
    for name in ("postgres", "redis", "qdrant", "workers", "beat", "api", "flower"):
        if name == "workers":
            found[name] = [
                {
                    "name": node_name(worker),
                    "pid": part["pid"],
                    "children": [child["pid"] for child in part["children"]],
                }
                for worker, part in by_name.items()
                if worker not in (*SERVERS_BY_URL, *WITHOUT_ADDRESS)
            ]
        elif name not in by_name:
            found[name] = None
        elif name in SERVERS_BY_URL:
            found[name] = {"url": by_name[name]["url"], "pid": by_name[name]["pid"]}
        else:
            found[name] = {"pid": by_name[name]["pid"]}
    return found


def live_processes(run: dict[str, Any]) -> dict[str, Any]:
    """The processes of a run file's content that are alive now, with the children they have now."""
    alive = [part for part in run.get("parts", ()) if is_same_process(part.get("pid"), part.get("started"))]
    return describe_processes({**part, "children": children_of(part["pid"])} for part in alive)


def children_of(pid: int) -> list[dict[str, Any]]:
    """The children of a process, `{"pid", "started"}` each; not theirs, which read documents and end with them."""
    found = []
    try:
        children = psutil.Process(pid).children()
    except psutil.Error:
        return []
    for child in children:
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                found.append({"pid": child.pid, "started": child.create_time()})
        except psutil.Error:
            continue
    return found
