"""Harvesting: the files of a remote batch are read as streams, and stored a few hundred lines at a time.

Each time in one transaction: the vectors, what they cost whom, the outcomes of lines without one, how far the file was
read, and the batches that waited for the last of it. So nothing is stored twice or lost, wherever it is cut off;
whoever goes on reads the file from where it is stored up to.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from pipeline.embedding.base import ModelSpec
from pipeline.embedding.openai.names import answered_names
from pipeline.ledger import embeddings, jobs, purchases, remote, remote_items, spending
from pipeline.ledger.engine import Connection, Ledger
from pipeline.ledger.remote import RemoteBatch
from pipeline.ledger.remote_items import Payer
from pipeline.ledger.spending import Used
from pipeline.observe import count, operation
from pipeline.openai_batch.answers import Failure
from pipeline.openai_batch.lines import Line, Splitter, parse_line, placed
from pipeline.openai_batch.ordering import Order
from pipeline.openai_batch.ordering import read as read_order
from pipeline.openai_batch.server import Broken, Progress, Server
from pipeline.openai_batch.steps import ResultFile
from pipeline.settings import CostSettings

PROVIDER = "openai_batch"
# Lines that say nothing about any text of ours.
_IDLE = frozenset({"blank", "torn", "garbled", "unnamed", "unknown"})


def _by_line(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, in parts that end with a line or with a piece: what is stored can then end with any line."""
    for piece in pieces:
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            yield piece[start : end + 1]
            start = end + 1
        if start < len(piece):
            yield piece[start:]


@dataclass(frozen=True, slots=True)
class Harvested:
    """What came of reading the files. unanswered: texts that still wait for the batch, of which no line told anything;
    torn: a file ended in the middle of a line; failures: of files that could not be read to their end."""

    row: RemoteBatch
    unanswered: int
    torn: bool
    failures: Sequence[Failure] = ()


@dataclass(slots=True)
class Harvest:
    """Of one remote batch. lines: that are stored in one transaction. at: told `read: stored` after each."""

    ledger: Ledger
    server: Server
    cost: CostSettings
    lines: int
    progress: Progress
    at: Callable[[str], None]
    _torn: bool = False
    _failures: list[Failure] = field(default_factory=list)

    def read(self, row: RemoteBatch, files: Sequence[ResultFile]) -> Harvested:
        """Reads the files, in this order. Raises LeaseLost, LedgerUnavailable; what was stored by then stays."""
        for file in files:
            row = self._read_file(row, file)
        with self.ledger.transaction() as connection:
            unanswered = remote_items.unanswered(connection, row.id)
        return Harvested(row, unanswered, self._torn, tuple(self._failures))

    def _read_file(self, row: RemoteBatch, file: ResultFile) -> RemoteBatch:
        spec, order = read_order(row.spec)
        splitter = Splitter(row.harvested.get(file.file_id, 0))
        waiting: list[Line] = []
        try:
            with closing(self.server.content(file.file_id, splitter.offset)) as pieces:
                for part in _by_line(pieces):
                    self.progress()
                    waiting += [self._read_line(raw, spec, order) for raw in splitter.feed(part)]
                    if len(waiting) >= self.lines:
                        row = self._store_all(row, file, waiting, splitter.offset)
                        waiting = []
        except Broken as broken:
            self._failures.append(broken.failed)
            return self._store_all(row, file, waiting, splitter.offset)
        offset = splitter.offset
        if rest := splitter.end():
            last = self._read_line(rest, spec, order, last=True)
            if last.outcome == "torn":
                self._torn = True
            else:
                waiting.append(last)
                offset += len(rest)
        return self._store_all(row, file, waiting, offset)

    def _read_line(self, raw: bytes, spec: ModelSpec, order: Order, *, last: bool = False) -> Line:
        line = parse_line(raw, spec, last=last)
        answered_names.heard(order.endpoint, order.model, "batch", line.model)
        return replace(line, message=self.server.without_key(line.message)) if line.message else line

    def _store_all(self, row: RemoteBatch, file: ResultFile, lines: Sequence[Line], offset: int) -> RemoteBatch:
        if offset == row.harvested.get(file.file_id, 0):
            return row
        with operation("openai.harvest"), self.ledger.transaction() as connection:
            changed = _Storing(connection, remote.hold(connection, row), file, self.cost).store(lines, offset)
        self.at("read: stored")
        return changed


class _Storing:
    """One transaction of a harvest."""

    def __init__(self, connection: Connection, row: RemoteBatch, file: ResultFile, cost: CostSettings) -> None:
        self._connection = connection
        self._row = row
        self._file = file
        spec, order = read_order(row.spec)
        self._spec: ModelSpec = spec
        self._served = order.model
        self._rate = spending.cost_of(cost, order.model, PROVIDER, 1)
        self._online_rate = spending.cost_of(cost, order.model, "openai", 1)

    def store(self, lines: Sequence[Line], offset: int) -> RemoteBatch:
        """Lock order: the remote batch, embeddings, purchases, then what costs; those that wake take no locks that
        anybody waits for."""
        connection, row = self._connection, self._row
        keys = sorted({line.key for line in lines if line.key is not None})
        waiting = remote_items.waiting_for(connection, row.id, keys)
        done = remote_items.stored(connection, [key for key in keys if key not in waiting])
        came, failed, besides = self._sorted(lines, waiting, done)

        billed = {key: line.tokens if line.tokens is not None else waiting[key] for key, line in came.items()}
        vectors = {key: (line.vector, waiting[key]) for key, line in came.items() if line.vector is not None}
        new = embeddings.store(connection, vectors, {key: tokens * self._rate for key, tokens in billed.items()})
        payers = remote_items.arrived(connection, row.id, sorted(came))
        remote_items.note(connection, row.id, {key: (line.outcome, line.message) for key, line in failed.items()})
        doubtful = self._doubtful(failed, besides, {**done, **waiting})
        spending.record(connection, [*self._bought(payers, billed), *doubtful])
        embedded = Counter(payers[key].job_id for key in new if key in payers)
        jobs.count(connection, {job: {"chunks_embedded": n} for job, n in embedded.items() if job is not None})
        changed = remote.change(
            connection,
            row,
            done=row.done + len(payers),
            cost=row.cost + sum(billed.values()) * self._rate + sum(used.doubtful_cost for used in doubtful),
            doubtful=row.doubtful or bool(doubtful),
            harvested={**row.harvested, self._file.file_id: offset},
        )
        purchases.wake(connection, sorted(payers))
        count("embedded_texts", len(payers), PROVIDER)
        count("embedded_tokens", sum(billed.values()), PROVIDER)
        return changed

    def _sorted(
        self, lines: Sequence[Line], waiting: Mapping[bytes, int], done: Mapping[bytes, int]
    ) -> tuple[dict[bytes, Line], dict[bytes, Line], list[Line]]:
        """(the first vector of each text that waits, errors of those without one, lines that were paid for besides)."""
        came: dict[bytes, Line] = {}
        failed: dict[bytes, Line] = {}
        besides: list[Line] = []
        for found in lines:
            wanted = found.key in waiting and found.key not in came
            line = placed(found, wanted=wanted, stored=found.key in came or found.key in done)
            if line.key is None or line.outcome in _IDLE:
                continue
            if line.outcome == "embedded":
                came[line.key] = line
                failed.pop(line.key, None)
            elif wanted:
                failed[line.key] = line
            elif found.outcome == "embedded" and self._file.remote_id != self._row.remote_id:
                besides.append(line)  # of a second batch: it was paid for again
        return came, failed, besides

    def _bought(self, payers: Mapping[bytes, Payer], billed: Mapping[bytes, int]) -> list[Used]:
        tokens: dict[Payer, list[int]] = defaultdict(list)
        for key, payer in payers.items():
            tokens[payer].append(billed[key])
        return [
            self._used(
                payer,
                texts=len(counts),
                tokens=sum(counts),
                cost=sum(counts) * self._rate,
                batch_saved=sum(counts) * (self._online_rate - self._rate),
            )
            for payer, counts in tokens.items()
        ]

    def _doubtful(
        self, failed: Mapping[bytes, Line], besides: Iterable[Line], counted: Mapping[bytes, int]
    ) -> list[Used]:
        """What was paid for without a vector that can be used, or a second time."""
        lines = [*failed.items(), *((line.key, line) for line in besides if line.key is not None)]
        tokens = {key: line.tokens if line.tokens is not None else counted.get(key, 0) for key, line in lines}
        return doubts(self._connection, self._row, {key: n for key, n in tokens.items() if n}, self._rate)

    def _used(self, payer: Payer, **figures: float) -> Used:
        return used(self._served, payer, **figures)


def doubts(connection: Connection, row: RemoteBatch, tokens: Mapping[bytes, int], rate: float) -> list[Used]:
    """Texts that may have been paid for besides: key -> tokens; for whoever ordered or uses them."""
    if not tokens:
        return []
    _, order = read_order(row.spec)
    shares: dict[Payer, list[int]] = defaultdict(list)
    for key, payer in remote_items.payers(connection, sorted(tokens)).items():
        shares[payer].append(tokens[key])
    return [
        used(order.model, payer, doubtful_texts=len(counts), doubtful_cost=sum(counts) * rate)
        for payer, counts in shares.items()
    ]


def used(model: str, payer: Payer, **figures: float) -> Used:
    """What a payer pays. figures: of `Used`."""
    return Used(
        payer.job_id,
        payer.tenant,
        payer.collection,
        PROVIDER,
        model,
        batch_id=payer.batch_id,
        **figures,  # type: ignore[arg-type]
    )
