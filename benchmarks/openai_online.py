"""Online requests of 1, 2 and 4 workers, each a process of its own that embeds as a worker does, under one limiter.

At the limit: the server lets so many requests a minute through, as its answers say, and refuses what comes in a larger
burst than a few seconds' worth. Below it: each worker has one request under way, which takes 50 ms and a little; then
so many workers should embed so many times as much.
"""

from __future__ import annotations

import multiprocessing
import random
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.report import Figures, Options, say
from benchmarks.stand_in import MODEL, stand_in
from pipeline.settings import OpenAISettings, RedisSettings
from workers.embedded.part import run_alone
from workers.embedded.ports import free_port
from workers.embedded.redis import EmbeddedRedis

if TYPE_CHECKING:
    from openai_server import OpenAIServer, Request

    from pipeline.embedding.openai.embedder import OpenAIEmbedder
    from pipeline.embedding.openai.purchase import Part

WORKERS = (1, 2, 4)
REQUESTS_PER_MINUTE = 1200
TOKENS_PER_MINUTE = 480_000
MINUTE = 60.0
LIMITED_SECONDS = 70.0
FREE_SECONDS = 12.0
QUICK_SECONDS = 1.0
QUICK_WORKERS = (1, 2)
# The first seconds show how the limits are learned: where they are lower than was thought, what went out is waited for.
SETTLING_SECONDS = 8.0
# A server that counts by the second, as OpenAI says it may: no more than so many seconds' worth at once.
BURST_SECONDS = 3.0
INPUTS = 8  # of a request
CLAIM = 160  # texts that are asked for at once: 20 requests
QUICK_CLAIM = 16
WORDS = 12  # of a text
START_SECONDS = 120.0


def measure(options: Options) -> Figures:
    """at_the_limit: by number of workers; of_limit: requests a minute that were let through, as a share of the limit;
    most_in_60_s: as a share of it too, in the fullest 60 seconds; refused: 429s. by_tokens: the same where the tokens
    are the limit. below_it: texts a second, and how near that is to so many times one worker's."""
    numbers = QUICK_WORKERS if options.quick else WORKERS
    limited = QUICK_SECONDS if options.quick else (options.minutes or LIMITED_SECONDS / MINUTE) * MINUTE
    free = QUICK_SECONDS if options.quick else FREE_SECONDS
    claim = QUICK_CLAIM if options.quick else CLAIM
    with (
        TemporaryDirectory(prefix="millrace-openai-") as directory,
        _redis(Path(directory)) as redis_url,
        stand_in() as server,
        _workers(server, redis_url, max(numbers), claim) as workers,
    ):
        at_the_limit = {}
        for number in numbers:
            say(f"{number} workers at {REQUESTS_PER_MINUTE} requests a minute: {limited:.0f} s")
            server.control.set(rpm=REQUESTS_PER_MINUTE, tpm=100 * TOKENS_PER_MINUTE, burst_seconds=BURST_SECONDS)
            at_the_limit[str(number)] = _limited(server, workers[:number], limited, "requests")
        say(f"2 workers at {TOKENS_PER_MINUTE} tokens a minute: {limited:.0f} s")
        server.control.set(rpm=100 * REQUESTS_PER_MINUTE, tpm=TOKENS_PER_MINUTE, burst_seconds=BURST_SECONDS)
        by_tokens = _limited(server, workers[:2], limited, "tokens")
        server.control.set(rpm=1_000_000, tpm=1_000_000_000, burst_seconds=MINUTE)
        below = {}
        for number in numbers:
            say(f"{number} workers below the limit: {free:.0f} s")
            below[str(number)] = _free(server, workers[:number], free)
    one = below["1"]["texts_per_second"]
    for number in numbers:
        below[str(number)]["of_linear"] = round(below[str(number)]["texts_per_second"] / (number * one), 3)
    return {
        "latency_ms": 50,
        "requests_per_minute": REQUESTS_PER_MINUTE,
        "at_the_limit": at_the_limit,
        "by_tokens": {"workers": 2, "tokens_per_minute": TOKENS_PER_MINUTE, **by_tokens},
        "below_it": below,
    }


def _limited(server: OpenAIServer, workers: Sequence[Pipe], seconds: float, kind: str) -> Figures:
    said, found = _run(server, workers, seconds, in_flight=10)
    limit = REQUESTS_PER_MINUTE if kind == "requests" else TOKENS_PER_MINUTE
    let_through = [(row.at, 1 if kind == "requests" else row.tokens) for row in found if row.status != 429]
    started = let_through[0][0] + min(SETTLING_SECONDS, seconds / 3)
    ended = let_through[0][0] + seconds
    steady = sum(cost for at, cost in let_through if started <= at < ended)
    return {
        "of_limit": round(steady / (ended - started) * MINUTE / limit, 3),
        "most_in_60_s": round(_most(let_through, MINUTE) / limit, 3),
        "refused": sum(row.status == 429 for row in found),
        "errors": sum(answer["errors"] for answer in said),
        "texts_per_second": round(sum(answer["texts"] for answer in said) / seconds, 1),
    }


def _free(server: OpenAIServer, workers: Sequence[Pipe], seconds: float) -> Figures:
    said, found = _run(server, workers, seconds, in_flight=1)
    return {
        "texts_per_second": round(sum(answer["texts"] for answer in said) / seconds, 1),
        "refused": sum(row.status == 429 for row in found),
        "errors": sum(answer["errors"] for answer in said),
    }


def _most(costs: Sequence[tuple[float, int]], seconds: float) -> int:
    """The most within any so many seconds, of (time, cost) in the order of time."""
    most = within = first = 0
    for at, cost in costs:
        within += cost
        while costs[first][0] <= at - seconds:
            within -= costs[first][1]
            first += 1
        most = max(most, within)
    return most


def _run(
    server: OpenAIServer, workers: Sequence[Pipe], seconds: float, in_flight: int
) -> tuple[list[dict[str, Any]], list[Request]]:
    """What the workers say of a run, and what the server was asked in it."""
    before = max((row.seq for row in server.control.requests()), default=0)
    scope = secrets.token_hex(4)
    for number, pipe in enumerate(workers):
        pipe.send({"scope": scope, "number": number, "in_flight": in_flight})
    for pipe in workers:
        assert pipe.recv() == "ready"
    for pipe in workers:
        pipe.send(seconds)
    said = [pipe.recv() for pipe in workers]
    found = sorted((row for row in server.control.requests("embeddings") if row.seq > before), key=lambda row: row.at)
    return said, found


# -- the processes -------------------------------------------------------------------------------------------------


@contextmanager
def _redis(directory: Path) -> Iterator[str]:
    server = EmbeddedRedis(directory / "redis", free_port(), secrets.token_urlsafe(16), durable=False)
    with run_alone(server.part(), directory / "redis.log"):
        yield server.url


@contextmanager
def _workers(server: OpenAIServer, redis_url: str, number: int, claim: int) -> Iterator[list[Pipe]]:
    """Processes that wait to be told how to embed, and for how long."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(number):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, server.url, server.key, redis_url, claim), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            assert pipe.poll(START_SECONDS), "a worker does not start"
            assert pipe.recv() == "ready"
        yield pipes
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work(pipe: Pipe, url: str, key: str, redis_url: str, claim: int) -> None:
    from pipeline.embedding.openai.embedder import OpenAIEmbedder
    from pipeline.embedding.openai.spec import openai_spec
    from pipeline.embedding.openai.tokens import count_tokens

    def embedder(prefix: str, in_flight: int) -> OpenAIEmbedder:
        settings = OpenAISettings(api_key=key, base_url=url, in_flight=in_flight, request_inputs=INPUTS)
        return OpenAIEmbedder(settings, RedisSettings(url=redis_url, prefix=prefix), openai_spec(settings))

    count_tokens(["warm"], OpenAISettings(api_key=key, base_url=url), MODEL)
    with closing(embedder("warm:", 1)) as warm:
        warm.embed(["warm"])
    pipe.send("ready")
    while True:
        try:
            told = pipe.recv()
        except EOFError:
            return
        # Whoever has another prefix has other limits: each run begins without what was learned in the one before.
        with closing(embedder(f"{told['scope']}:", told["in_flight"])) as bought:
            chosen = random.Random(f"{told['scope']}:{told['number']}")  # noqa: S311 - no secret
            pipe.send("ready")
            pipe.send(_embed(bought, chosen, pipe.recv(), claim))


def _embed(embedder: OpenAIEmbedder, chosen: random.Random, seconds: float, size: int) -> dict[str, Any]:
    texts = errors = 0
    began = time.monotonic()

    def on_part(part: Part) -> None:
        nonlocal texts
        if time.monotonic() - began < seconds or not texts:  # a rate of nothing divides nothing
            texts += len(part.positions)

    while time.monotonic() - began < seconds:
        claim = [" ".join(str(chosen.getrandbits(20)) for _ in range(WORDS)) for _ in range(size)]
        try:
            embedder.buy(claim, "passage", on_part, None)
        except Exception:  # noqa: BLE001 - it is counted, and told
            errors += 1
    return {"texts": texts, "errors": errors}
