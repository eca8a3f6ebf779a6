"""The client for asyncio applications: `Client`, in threads of its own, so that the event loop never waits.

async with AsyncClient() as client:
    job = await client.ingest(rows_of_my_database(), collection="notes")    # an async generator of documents
    async for status in client.watch(job.job_id):
        print(status.state, status.documents)
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from pipeline.assembly import Services
from pipeline.client import Client
from pipeline.client.figures import Metrics
from pipeline.settings import Settings
from pipeline.sources.given import Ingestible
from pipeline.status import JobStatus
from pipeline.watch import Watch

# Searches and looks at jobs that are under way at one time; others wait for their turn without holding up the loop.
DEFAULT_THREADS = 8

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _threaded(
    method: Callable[Concatenate[Client, _P], _R],
) -> Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, _R]]:
    """A method of Client, carried out in a thread. Where its awaiter is cancelled, what has begun ends unheard."""

    @functools.wraps(method)
    async def call(self: AsyncClient, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return await asyncio.wrap_future(self._submit(self._calls, method, self._client, *args, **kwargs))

    return call


def _enqueuing(
    method: Callable[Concatenate[Client, Any, _P], JobStatus],
) -> Callable[Concatenate[AsyncClient, Ingestible | AsyncIterable[Any], _P], Coroutine[Any, Any, JobStatus]]:
    """A method of Client that reads a source, which may be an async iterable of documents here.

    It is asked for one document at a time, when the one before has been taken. Where the awaiter is cancelled, nothing
    more is read, and what is staged by then is kept: the job goes on where it is enqueued again under its key.
    on_staged is called in the event loop.
    """

    signature = inspect.signature(method)

    @functools.wraps(method)
    async def call(self: AsyncClient, /, *args: Any, **kwargs: Any) -> JobStatus:
        loop = asyncio.get_running_loop()
        stop = _Stop()
        given = signature.bind(self._client, *args, **kwargs)
        told = given.arguments.get("on_staged")

        def on_staged(status: JobStatus) -> None:
            stop.check()
            if told is not None:
                loop.call_soon_threadsafe(told, status)

        given.arguments["on_staged"] = on_staged
        bridge: _Bridge | None = None
        if isinstance(given.arguments["source"], AsyncIterable):
            given.arguments["source"] = bridge = _Bridge(given.arguments["source"], loop, stop)
        running = self._submit(self._enqueuers, method, *given.args, **given.kwargs)
        ended = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            stop.set()
            if not running.cancel():
                await asyncio.wait([ended])
                ended.exception()  # nobody else asks for it
            raise
        finally:
            if bridge is not None:
                await bridge.close()

    return call


class _Stopped(Exception):
    """Whoever awaited this was cancelled."""


class _Stop:
    """Tells a thread that it is not wanted any more, and ends what it waits for in the event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._awaited: concurrent.futures.Future[Any] | None = None

    def set(self) -> None:
        with self._lock:
            self._stopped = True
            if self._awaited is not None:
                self._awaited.cancel()

    def check(self) -> None:
        if self._stopped:
            raise _Stopped

    def result(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, _R]) -> _R:
        """Waits in this thread for what runs in the loop. Raises _Stopped when that is not wanted any more."""
        with self._lock:
            if self._stopped:
                coroutine.close()
                raise _Stopped
            self._awaited = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return cast(_R, self._awaited.result())
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            raise _Stopped from None


_END = object()


class _Bridge:
    """An async iterable as a plain one, for a thread beside the event loop; one item is under way at a time."""

    def __init__(self, items: AsyncIterable[Any], loop: asyncio.AbstractEventLoop, stop: _Stop) -> None:
        self._items = aiter(items)
        self._asking: asyncio.Task[Any] | None = None
        self._loop = loop
        self._stop = stop

    def __iter__(self) -> Iterator[Any]:
        while (item := self._stop.result(self._loop, self._next())) is not _END:
            yield item

    async def close(self) -> None:
        """Ends an async generator that has more to say; to be called in the event loop."""
        if self._asking is not None and not self._asking.done():
            await asyncio.wait([self._asking])
        if isinstance(self._items, AsyncGenerator):
            await self._items.aclose()

    async def _next(self) -> Any:
        self._asking = asyncio.current_task()
        # StopAsyncIteration cannot leave a coroutine.
        return await anext(self._items, _END)


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited, with the same arguments and errors.

    threads: in which as many calls at one time are carried out; those that read a source have as many of their own.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        tenant: str | None = None,
        services: Services | None = None,
        threads: int = DEFAULT_THREADS,
    ) -> None:
        self._client = Client(settings, tenant=tenant, services=services)
        self._services = self._client._services
        self._calls = ThreadPoolExecutor(threads, thread_name_prefix="millrace-call")
        # A source may call the client itself: it must not wait for a thread that waits for it.
        self._enqueuers = ThreadPoolExecutor(threads, thread_name_prefix="millrace-enqueue")

    @property
    def settings(self) -> Settings:
        return self._client.settings

    @property
    def tenant(self) -> str:
        return self._client.tenant

    @property
    def metrics(self) -> Metrics:
        """For the application's own figures; its calls wait for nobody, and are not awaited."""
        return self._client.metrics

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Waits for the calls that are under way."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._enqueuers.shutdown()
        self._calls.shutdown()
        self._client.close()

    ingest = _enqueuing(Client.ingest)
    sync = _enqueuing(Client.sync)
    delete = _threaded(Client.delete)

    schedule = _threaded(Client.schedule)
    schedules = _threaded(Client.schedules)
    change_schedule = _threaded(Client.change_schedule)
    unschedule = _threaded(Client.unschedule)

    job = _threaded(Client.job)
    jobs = _threaded(Client.jobs)
    cancel = _threaded(Client.cancel)
    pause = _threaded(Client.pause)
    resume = _threaded(Client.resume)
    paused = _threaded(Client.paused)
    prioritize = _threaded(Client.prioritize)

    async def wait(
        self,
        job_id: uuid.UUID | str,
        timeout: float | None = None,
        on_progress: Callable[[JobStatus], None] | None = None,
    ) -> JobStatus:
        """As Client.wait; holds no thread between two looks. on_progress is called in the event loop."""
        async for status in self.watch(job_id, timeout):
            if on_progress is not None:
                on_progress(status)
        return status

    async def watch(self, job_id: uuid.UUID | str, timeout: float | None = None) -> AsyncIterator[JobStatus]:
        """The job's status again and again, until it is finished: that one is the last. Raises as Client.wait."""
        watch = Watch(self._services, job_id, timeout)
        while True:
            status = await asyncio.wrap_future(self._submit(self._calls, watch.look))
            if status is not None:
                yield status
                if status.finished:
                    return
            await asyncio.sleep(watch.pause())

    dead_letters = _threaded(Client.dead_letters)
    dead_letter = _threaded(Client.dead_letter)
    retry = _threaded(Client.retry)
    discard = _threaded(Client.discard)

    search = _threaded(Client.search)
    embed = _threaded(Client.embed)
    collections = _threaded(Client.collections)
    documents = _threaded(Client.documents)
    uris = _threaded(Client.uris)
    audit = _threaded(Client.audit)
    rebuild = _threaded(Client.rebuild)
    reembed = _threaded(Client.reembed)
    reembedding = _threaded(Client.reembedding)
    retry_reembedding = _threaded(Client.retry_reembedding)
    cancel_reembedding = _threaded(Client.cancel_reembedding)
    status = _threaded(Client.status)
    storage = _threaded(Client.storage)
    duties = _threaded(Client.duties)
    change_duty = _threaded(Client.change_duty)
    beats = _threaded(Client.beats)

    cost = _threaded(Client.cost)
    budgets = _threaded(Client.budgets)
    set_budget = _threaded(Client.set_budget)
    clear_budget = _threaded(Client.clear_budget)
    over_budget = _threaded(Client.over_budget)
    estimate = _threaded(Client.estimate)
    batches = _threaded(Client.batches)
    batch = _threaded(Client.batch)
    cancel_batch = _threaded(Client.cancel_batch)
    openai_webhook = _threaded(Client.openai_webhook)

    alerts = _threaded(Client.alerts)
    acknowledge = _threaded(Client.acknowledge)
    thresholds = _threaded(Client.thresholds)
    set_threshold = _threaded(Client.set_threshold)
    unset_threshold = _threaded(Client.unset_threshold)
    test_alert = _threaded(Client.test_alert)

    stats = _threaded(Client.stats)
    slow_operations = _threaded(Client.slow_operations)
    reset_stats = _threaded(Client.reset_stats)
    set_slow_seconds = _threaded(Client.set_slow_seconds)

    @staticmethod
    def _submit(
        threads: ThreadPoolExecutor, function: Callable[..., _R], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[_R]:
        """With the caller's context variables, as asyncio.to_thread does."""
        return threads.submit(contextvars.copy_context().run, functools.partial(function, *args, **kwargs))
