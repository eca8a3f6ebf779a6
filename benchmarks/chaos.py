"""Faults, one after the other, on a stack of its own, while documents are written and searched for.

The faults and the documents are those of `millrace drill` (workers/drill), in numbers: every seventh second or so a
worker, a pool child, Redis, Qdrant or Postgres is killed or held still (SIGSTOP, up to beyond the lease) or the broker
is emptied, and a fault counts only where it hit work that was under way. The stack is the one of `millrace up` with its
supervisor: two general workers of two children, the offline model in int8, the default leases. Replaced points
leave the index after seconds and not after a minute, so that at the end nothing may be left of what was replaced.

The judge (workers/drill/judge.py) is no part of Millrace: qdrant-client, SQL, and what was acknowledged.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks import report
from benchmarks.report import Figures, Options
from pipeline.settings import load_settings
from workers.drill.plain import Sql
from workers.drill.stack import DrilledStack
from workers.drill.story import Drill
from workers.drill.story import Options as DrillOptions
from workers.embedded.background import start_in_background
from workers.embedded.shutdown import stop_stack

FAULTS = 300
QUICK_FAULTS = 6
DOCUMENTS = 2_000
QUICK_DOCUMENTS = 200
KINDS = ("worker", "redis", "qdrant", "postgres", "flush", "stop", "term")
WORKERS = 2
CHILDREN = 2
# The first sweep, and the second one for writers that were held still in between: longer than any is here (13 s).
CONTRACT = {"MILLRACE_WORK__CONTRACT_SECONDS": "5", "MILLRACE_WORK__RECONTRACT_SECONDS": "30"}
QUICK_CONTRACT = {"MILLRACE_WORK__CONTRACT_SECONDS": "1", "MILLRACE_WORK__RECONTRACT_SECONDS": "14"}
CONTRACT_PATIENCE = 300.0
LOOK_SECONDS = 0.5


def measure(options: Options) -> Figures:
    """lost, duplicate, stale, half_documents and the rest of what the judge counts; how long the faults were felt."""
    faults = options.faults or (QUICK_FAULTS if options.quick else FAULTS)
    few = faults < FAULTS // 10
    chosen = DrillOptions(options.seed, KINDS, faults, documents=QUICK_DOCUMENTS if few else DOCUMENTS)
    # psycopg's pool logs every connection that a killed Postgres leaves; it is not asked to.
    logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())
    with drillable_stack({**(QUICK_CONTRACT if few else CONTRACT), "MILLRACE_EMBEDDING__PRECISION": "int8"}) as stack:
        drill = Drill(stack, chosen, "chaos", report.say)
        try:
            told = drill.run()
            drill.say("what was replaced leaves the index")
            _contract(drill)
            drill.say("the judge compares the index with what was asked for")
            verdict = drill.verdict()
        finally:
            drill.close()
    work = stack.settings.work
    clocks = {"lease_seconds": work.lease_seconds, "heartbeat_seconds": work.heartbeat_seconds}
    return {**told.to_json(verdict), "workers": WORKERS, "children": CHILDREN, **clocks}


@contextmanager
def drillable_stack(environment: Mapping[str, str]) -> Iterator[DrilledStack]:
    """A supervised stack in a home that is removed afterwards. environment: variables of its programs and of ours."""
    directory = Path(tempfile.mkdtemp(prefix="millrace-chaos-"))
    home = directory / "home"
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        start_in_background(load_settings(home=home), WORKERS, CHILDREN, lambda _: None, drillable=True)
        try:
            yield DrilledStack(home)
        finally:
            stop_stack(home)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(directory, ignore_errors=True)


def _contract(drill: Drill) -> None:
    """Returns when both sweeps are done: the duty runs once a minute, so it is asked to run at once."""
    sql = Sql(drill.stack.postgres_url)
    deadline = time.monotonic() + CONTRACT_PATIENCE
    try:
        while True:
            row = sql.one(
                """SELECT count(*) AS left FROM versions v JOIN collections c ON c.id = v.collection_id
                    WHERE c.name = %(name)s AND v.contracted < 2 AND v.ended_at IS NOT NULL""",
                {"name": drill.collection},
            )
            if not row["left"]:
                return
            assert time.monotonic() < deadline, f"{row['left']} versions are not contracted in time"
            drill.contract()
            time.sleep(LOOK_SECONDS)
    finally:
        sql.close()
