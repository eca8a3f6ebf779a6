"""The full path with the offline model, beside the model alone and beside LlamaIndex and Haystack on the same weights.

A round is: Millrace, the raw model loop, each peer at its defaults, each peer with our chunks, Millrace and the raw
loop with the int8 model. Every measurement starts its own processes and ends them, so nothing of one side runs while
another is measured; loading the model and a first run are outside the clock on all sides.

Millrace is a whole stack in a new home (so neither a document nor an embedding is known), timed from
`client.ingest(directory)` to the end of the job by the database's clock: read, staged, extracted, cut, embedded,
committed, in the index, published.
The peers are one process each, with as many threads as the machine has cores, and keep their vectors in memory.

What is compared is source tokens embedded per second: tokens of the pages' own text that reached the model. A page that
is longer than the model's limit after a peer's splitter is cut by the tokenizer in silence; that part counts as a page
done, but not as tokens embedded.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import corpus, peers, report, warming
from benchmarks.corpus import Corpus
from benchmarks.raw_loop import RawLoop
from benchmarks.report import Figures, Options
from benchmarks.stack import LiveStack, live_stack
from pipeline.embedding import bundled
from pipeline.embedding.bundled import Precision
from pipeline.embedding.local import LocalEmbedder
from pipeline.settings import EmbeddingSettings

PAGES = 120
ROUNDS = 3
CONCURRENCY = 2  # pool children of Millrace, and processes of the raw loop
PEERS = ("llama_index", "haystack")
COLLECTION = "benchmark"
WAIT_SECONDS = 1800.0


@dataclass(slots=True)
class Side:
    """What one side did, a value a round. cpu: seconds of CPU of all its processes. tokens: source tokens embedded in a
    round. cut: the share of source tokens that the tokenizer cut off. chunks: texts given to the model."""

    name: str
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    tokens: int = 0
    chunks: int = 0
    cut: float = 0.0

    def took(self, seconds: float, cpu: float) -> None:
        self.seconds.append(seconds)
        self.cpu.append(cpu)
        report.say(f"{self.name}: {seconds:.2f} s, {cpu:.2f} s of CPU")

    def rates(self, amount: float) -> list[float]:
        return [amount / seconds for seconds in self.seconds]

    def figures(self, pages: int) -> Figures:
        return {
            "tokens_s": report.summary(self.rates(self.tokens), 0),
            "pages_s": report.summary(self.rates(pages)),
            "seconds": report.summary(self.seconds),
            "cpu_seconds": report.summary(self.cpu),
            "chunks": self.chunks,
            "cut_silently": round(self.cut, 3),
        }


class Measurement:
    """Everything that the rounds share."""

    def __init__(self, pages: Corpus, directory: Path) -> None:
        self.corpus = pages
        self.directory = directory
        self.sides: dict[str, Side] = {}
        self.texts: list[str] = []  # our chunks, each text once: what everybody embeds where chunks are the same
        self.chunks_file = directory / "chunks.json"
        self.models: dict[Precision, Path] = {
            precision: bundled.model_directory(directory / "models", precision) for precision in ("float32", "int8")
        }
        self.model = LocalEmbedder(EmbeddingSettings(), directory / "models")
        self.peers_models = peers.models(self.models["float32"], directory / "cache")
        self.budgets: dict[Precision, int] = {}

    def side(self, name: str) -> Side:
        return self.sides.setdefault(name, Side(name))

    # -- the sides -----------------------------------------------------------------------------------------------

    def millrace(self, precision: Precision) -> None:
        """One ingest of all pages by a stack of its own."""
        side = self.side("millrace" if precision == "float32" else "millrace_int8")
        embedding = {"precision": precision}
        with live_stack(concurrency=CONCURRENCY, embedding=embedding) as live, live.client() as client:
            warming.warm(live, client, CONCURRENCY)
            with closing(live.services()) as opened:
                cpu = _cpu_seconds(live)
                (begun,) = warming.ask(opened, "SELECT clock_timestamp() AS at")
                job = client.ingest(self.corpus.sources, collection=COLLECTION)
                job = client.wait(job.job_id, timeout=WAIT_SECONDS)
                cpu = _cpu_seconds(live) - cpu
                if job.state != "succeeded":
                    raise RuntimeError(f"the ingest ended {job.state}: {list(job.errors)[:3]}")
                (ended,) = warming.ask(opened, "SELECT finished_at AS at FROM jobs WHERE id = %s", job.job_id)
                chunks = warming.ask(opened, "SELECT text, tokens FROM chunks WHERE born_version IN ("
                    "SELECT id FROM versions WHERE job_id = %s) ORDER BY point_id", job.job_id)  # fmt: skip
        distinct = {row["text"]: row["tokens"] - self.special for row in chunks}
        side.took((ended["at"] - begun["at"]).total_seconds(), cpu)
        side.chunks, side.tokens = len(distinct), sum(distinct.values())
        if not self.texts:
            self.texts = list(distinct)
            self.chunks_file.write_text(json.dumps(self.texts), "utf-8")

    def raw_loop(self, precision: Precision) -> None:
        """The model alone on the chunks that Millrace made."""
        side = self.side("raw_loop" if precision == "float32" else "raw_loop_int8")
        with RawLoop(self.models[precision], CONCURRENCY) as loop:
            if precision not in self.budgets:
                loop.choose(self.texts)
                self.budgets[precision] = loop.budget
            loop.budget = self.budgets[precision]
            loop.seconds(self.texts[:: max(1, len(self.texts) // 32)])  # warms
            cpu = loop.cpu_seconds()
            seconds = loop.seconds(self.texts)
            side.took(seconds, loop.cpu_seconds() - cpu)
        side.chunks, side.tokens = len(self.texts), self._tokens(self.texts)

    def peer(self, name: str, mode: str, workers: int = 0) -> None:
        """A peer on the same pages, or on our chunks."""
        side = self.side(name + ("_same_chunks" if mode == "chunks" else "") + ("_parallel" if workers else ""))
        job = peers.Job(mode, self.peers_models, self.corpus.plains, self.chunks_file, workers)
        answer = peers.run(name, job, self.directory)
        side.took(answer.seconds, answer.cpu_seconds)
        side.chunks = len(answer.texts)
        side.tokens, side.cut = self._embedded(answer.texts)

    # -- counting ------------------------------------------------------------------------------------------------

    @property
    def special(self) -> int:
        """Tokens that the model adds to every text."""
        return self.model.count_tokens([""])[0]

    def _tokens(self, texts: Sequence[str]) -> int:
        return sum(self.model.count_tokens(texts)) - self.special * len(texts)

    def _embedded(self, texts: Sequence[tuple[str, str]]) -> tuple[int, float]:
        """(source tokens that reached the model, share of source tokens that were cut off). What a peer puts before the
        text (the file's name) takes its room, and is no source."""
        room = self.model.spec.max_tokens - self.special
        before = [count - self.special for count in self.model.count_tokens([first for first, _ in texts])]
        counts = [count - self.special for count in self.model.count_tokens([text for _, text in texts])]
        reached = sum(min(count, max(0, room - taken)) for taken, count in zip(before, counts, strict=True))
        return reached, 1 - reached / max(1, sum(counts))


def measure(options: Options) -> Figures:
    """The figures of the module's docstring; ratios are medians over the rounds of the ratio within a round."""
    most, rounds = options.take(PAGES, ROUNDS)
    peers.installed()
    with tempfile.TemporaryDirectory(prefix="mb-", ignore_cleanup_errors=True) as scratch:
        directory = Path(scratch)
        machine = report.machine()
        run = Measurement(corpus.write(options.corpus, most, directory / "c"), directory)
        for _ in range(rounds):
            for turn in _turns(run):
                turn()
        # Once. LlamaIndex's own way, IngestionPipeline.run(num_workers=2), never ends with its FastEmbed integration
        # (llama-index-core 0.14.25): its workers cannot rebuild the pipeline that they are sent.
        run.peer("haystack", "defaults", CONCURRENCY)
        return _figures(run, rounds, machine)


def _turns(run: Measurement) -> list[Callable[[], None]]:
    turns: list[Callable[[], None]] = [lambda: run.millrace("float32"), lambda: run.raw_loop("float32")]
    for mode in ("defaults", "chunks"):
        turns += [lambda name=name, mode=mode: run.peer(name, mode) for name in PEERS]  # type: ignore[misc]
    return [*turns, lambda: run.millrace("int8"), lambda: run.raw_loop("int8")]


def _figures(run: Measurement, rounds: int, machine: Figures) -> Figures:
    pages = len(run.corpus.pages)
    return {
        **_ratios(run, "millrace", "raw_loop"),
        "int8": _ratios(run, "millrace_int8", "raw_loop_int8"),
        "sides": {name: side.figures(pages) for name, side in run.sides.items()},
        "ratio_haystack_parallel": round(_rate(run.sides["millrace"]) / _rate(run.sides["haystack_parallel"]), 2),
        "corpus": {
            "name": run.corpus.name,
            "pages": pages,
            "tokens": run._tokens([page.text for page in run.corpus.pages]),
        },
        "raw_loop_budget": dict(run.budgets),
        "rounds": rounds,
        "machine": machine,
        "versions": {**report.versions(), **peers.versions()},
    }


def _ratios(run: Measurement, ours: str, raw: str) -> Figures:
    """By source tokens embedded per second; under `_pages` by pages per second."""
    mine, alone = run.sides[ours], run.sides[raw]
    found: Figures = {"of_raw_loop": report.ratio(mine.rates(mine.tokens), alone.rates(alone.tokens))}
    for suffix in ("", "_same_chunks"):
        for name in PEERS:
            other = run.sides[name + suffix]
            found[f"ratio_{name}{suffix}"] = report.ratio(mine.rates(mine.tokens), other.rates(other.tokens))
    for name in PEERS:
        found[f"ratio_{name}_pages"] = report.ratio(mine.rates(1), run.sides[name].rates(1))
    return found


def _cpu_seconds(live: LiveStack) -> float:
    """Of all processes of the stack, and of this one, which is the client."""
    return sum(live.cpu_seconds().values()) + time.process_time()


def _rate(side: Side) -> float:
    return side.tokens / report.middle(side.seconds)
