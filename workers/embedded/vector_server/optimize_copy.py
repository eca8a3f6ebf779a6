"""The child process that optimises a copy of a shard: the engine holds the interpreter lock for as long as that takes.

    python -m workers.embedded.vector_server.optimize_copy PARENT SHARD DELTA SPEC

Optimises SHARD under the configuration in SPEC, catches up with DELTA, makes everything durable, and prints the offset
in DELTA up to which it got. It is killed with its parent.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import qdrant_edge as edge
from qdrant_client import grpc as api

from workers.embedded.vector_server.changes import read_records
from workers.embedded.vector_server.config import engine_config, schema
from workers.embedded.vector_server.files import sync_tree
from workers.embedded.vector_server.lifeline import die_with_parent

# Searches and writes come first on a small machine, but a third of a busy core is left for this.
NICENESS = 5
# Catching up with the delta while writers go on: each round leaves what came in during it, a fraction of the last.
ROUNDS = 4


def optimize(shard_path: Path, delta_path: Path, spec_path: Path) -> int:
    """Returns the offset in the delta. Raises the engine's errors."""
    spec = api.CreateCollection.FromString(spec_path.read_bytes())
    shard = edge.EdgeShard.load(str(shard_path), engine_config(spec))
    shard.optimize()
    offset = 0
    with delta_path.open("rb") as delta:
        for _ in range(ROUNDS):
            for change, end in read_records(delta, schema(spec)):
                for operation in change.operations:
                    shard.update(operation.call)
                offset = end
    shard.flush()
    shard.close()
    sync_tree(shard_path)
    return offset


def main() -> None:
    parent, *paths = sys.argv[1:]
    die_with_parent(int(parent))
    os.nice(NICENESS)
    shard, delta, spec = (Path(path) for path in paths)
    sys.stdout.write(f"{optimize(shard, delta, spec)}\n")


if __name__ == "__main__":
    main()
