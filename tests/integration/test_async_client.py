"""The client for asyncio applications: the same as Client, and an event loop that never waits."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from workshop import COLLECTION, Workshop

from pipeline import AsyncClient, Client, Document, JobStatus, Settings
from pipeline.embedding.base import Embedded, Role
from pipeline.errors import InvalidRequest, UnknownCollection, UnknownJob, WaitTimeout
from pipeline.testing import ConstantEmbedder

Result = TypeVar("Result")

GROUP = 10


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    ingest = settings.ingest.model_copy(update={"group_documents": GROUP})
    made = Workshop(settings.model_copy(update={"ingest": ingest}))
    yield made
    made.close()


def _run(workshop: Workshop, story: Callable[[AsyncClient], Coroutine[Any, Any, Result]], **options: Any) -> Result:
    async def main() -> Result:
        # close() closes the services too, which the workshop still needs.
        client = AsyncClient(services=workshop.services, **options)
        return await story(client)

    return asyncio.run(main())


def _public(kind: type) -> dict[str, Callable[..., Any]]:
    return {name: member for name, member in inspect.getmembers(kind, callable) if not name.startswith("_")}


def test_every_method_of_the_client_is_there_with_the_same_parameters() -> None:
    plain, awaited = _public(Client), _public(AsyncClient)

    assert set(awaited) == {*plain, "watch"}
    for name, method in plain.items():
        expected = inspect.signature(method).parameters
        assert inspect.signature(awaited[name]).parameters == expected, name
        assert inspect.iscoroutinefunction(awaited[name]), name


def test_documents_go_in_are_awaited_and_found(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("about the file")

    async def story(client: AsyncClient) -> None:
        # Given documents in every form
        jobs = [
            await client.ingest(str(tmp_path), collection=COLLECTION),
            await client.ingest([("notes/1", "about the list")], collection=COLLECTION),
            await client.ingest(_notes(25), collection=COLLECTION, metadata={"kind": "stream"}),
        ]
        assert [job.documents["total"] for job in jobs] == [1, 1, 25]

        # When the work is done
        await asyncio.to_thread(workshop.work)

        # Then
        for job in jobs:
            assert (await client.wait(job.job_id, timeout=60)).state == "succeeded"
        found = await client.search("anything", collection=COLLECTION, limit=100, filters={"kind": "stream"})
        assert {result.uri for result in found.results} == {f"stream/{number}" for number in range(25)}
        assert len(await client.documents(collection=COLLECTION)) == 27
        assert (await client.sync(tmp_path, collection=COLLECTION)).documents["unchanged"] == 1
        assert (await client.schedule(tmp_path, every="1h", collection=COLLECTION)).every_seconds == 3600
        assert len(await client.schedules()) == 1
        assert (await client.delete(["notes/1"], collection=COLLECTION)).documents["total"] == 1
        assert [one.name for one in await client.collections()] == [COLLECTION]
        assert client.tenant == "default"

    _run(workshop, story)


async def _notes(count: int, wait: float = 0.0) -> AsyncIterator[Document]:
    for number in range(count):
        await asyncio.sleep(wait)
        yield Document(f"stream/{number}", f"note {number}")


def test_errors_are_those_of_the_client(workshop: Workshop) -> None:
    async def story(client: AsyncClient) -> None:
        with pytest.raises(UnknownCollection, match="nowhere"):
            await client.search("x", collection="nowhere")
        with pytest.raises(UnknownJob, match="nonsense"):
            await client.wait("nonsense")
        with pytest.raises(InvalidRequest, match="urgent"):
            await client.ingest(_notes(1), priority="urgent")
        with pytest.raises(TypeError, match="source"):
            await client.ingest(collection="x")  # type: ignore[call-arg]

        async def broken() -> AsyncIterator[Document]:
            yield Document("stream/0", "note 0")
            raise OSError("the database went away")

        with pytest.raises(OSError, match="the database went away"):
            await client.ingest(broken(), collection=COLLECTION)

    _run(workshop, story)


def test_an_async_stream_is_read_no_faster_than_it_is_staged(workshop: Workshop) -> None:
    read = 0
    staged: list[tuple[int, int]] = []
    loops: set[int] = set()

    async def notes() -> AsyncIterator[Document]:
        nonlocal read
        async for note in _notes(100):
            read += 1
            yield note

    async def story(client: AsyncClient) -> JobStatus:
        # Without waiting for anything, a source that is ready would be read to its end.
        def on_staged(status: JobStatus) -> None:
            loops.add(threading.get_ident())
            staged.append((status.documents["total"], read))

        job = await client.ingest(notes(), collection=COLLECTION, on_staged=on_staged)
        await asyncio.sleep(0)
        loops.add(threading.get_ident())
        return job

    assert _run(workshop, story).documents["total"] == 100
    assert len(staged) == 10
    # By the time of the call the next group may be on its way; never more than that one.
    assert all(total <= seen <= total + 2 * GROUP for total, seen in staged), staged
    assert len(loops) == 1


def test_a_cancelled_ingest_stops_reading_and_can_be_resumed(workshop: Workshop) -> None:
    read: list[str] = []
    ended: list[str] = []

    async def endless() -> AsyncIterator[Document]:
        try:
            number = 0
            while True:
                read.append(f"stream/{number}")
                yield Document(f"stream/{number}", f"note {number}")
                number += 1
                await asyncio.sleep(0.001)
        finally:
            ended.append("closed")

    async def story(client: AsyncClient) -> JobStatus:
        # Given an ingest of a stream that never ends, of which something is staged
        durable = asyncio.Event()
        ingesting = asyncio.create_task(
            client.ingest(endless(), collection=COLLECTION, idempotency_key="night", on_staged=lambda _: durable.set())
        )
        await asyncio.wait_for(durable.wait(), 60)

        # When whoever awaits it is cancelled
        ingesting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ingesting

        # Then nothing more is read, and its generator has ended
        seen = len(read)
        await asyncio.sleep(0.05)
        assert len(read) == seen
        assert ended == ["closed"]
        (job,) = await client.jobs()
        assert job.documents["total"] >= GROUP
        assert not job.finished

        # And the job goes on under its key
        again = await client.ingest(_notes(40), collection=COLLECTION, idempotency_key="night")
        assert again.job_id == job.job_id
        return again

    assert _run(workshop, story).documents["total"] >= 40


def test_a_cancelled_ingest_of_a_stream_that_says_nothing_ends_at_once(workshop: Workshop) -> None:
    async def silent() -> AsyncIterator[Document]:
        await asyncio.sleep(3600)
        yield Document("never", "said")

    async def story(client: AsyncClient) -> float:
        ingesting = asyncio.create_task(client.ingest(silent(), collection=COLLECTION))
        while not await client.jobs():
            await asyncio.sleep(0.01)
        began = time.monotonic()
        ingesting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ingesting
        return time.monotonic() - began

    assert _run(workshop, story) < 60


def test_more_ingests_than_threads_whose_sources_search_do_not_wait_for_each_other(workshop: Workshop) -> None:
    workshop.index({"notes/1": "what is known"})

    async def story(client: AsyncClient) -> list[JobStatus]:
        async def asking(name: str) -> AsyncIterator[Document]:
            for number in range(3):
                found = await client.search("what is known?", collection=COLLECTION)
                yield Document(f"{name}/{number}", found.results[0].text)

        asked = [client.ingest(asking(f"asker{number}"), collection=COLLECTION) for number in range(5)]
        return await asyncio.wait_for(asyncio.gather(*asked), 60)

    assert [job.documents["total"] for job in _run(workshop, story, threads=2)] == [3] * 5


_asked = contextvars.ContextVar("asked", default="by nobody")


class SlowEmbedder(ConstantEmbedder):
    """Takes its time over queries: until the event loop has gone on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = ""
        self.asking, self.went_on = threading.Event(), threading.Event()

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        if role == "query":
            self.asked = _asked.get()
            self.asking.set()
            assert self.went_on.wait(60)
        return super().embed(texts, role, on_progress)


def test_the_event_loop_goes_on_during_a_slow_search(settings: Settings) -> None:
    # Given a search that does not end before the event loop has ticked ten times meanwhile
    embedder = SlowEmbedder()
    workshop = Workshop(settings, embedder)
    workshop.index({"notes/1": "about one"})

    async def tick() -> None:
        ticks = 0
        while ticks < 10:
            await asyncio.sleep(0.01)
            ticks += embedder.asking.is_set()
        embedder.went_on.set()

    async def story(client: AsyncClient) -> int:
        _asked.set("by the test")
        ticking = asyncio.create_task(tick())
        found = await client.search("one", collection=COLLECTION)
        await ticking
        return len(found.results)

    # Then it ends
    assert _run(workshop, story) == 1
    assert embedder.asked == "by the test"
    workshop.close()


def test_waiting_holds_no_thread_and_can_be_cancelled(workshop: Workshop) -> None:
    job = workshop.put({"notes/1": "about one"})

    async def story(client: AsyncClient) -> JobStatus:
        # Given many more who wait than there are threads
        waiting = [asyncio.create_task(client.wait(job.job_id)) for _ in range(20)]
        await asyncio.sleep(0.1)
        assert (await asyncio.wait_for(client.job(job.job_id), 60)).state == "queued"
        with pytest.raises(WaitTimeout, match=str(job.job_id)):
            await client.wait(job.job_id, timeout=0.1)

        # When one is cancelled, it ends at once, and the job does not
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        await asyncio.to_thread(workshop.work)

        done = await asyncio.wait_for(asyncio.gather(*waiting[1:]), 60)
        return done[0]

    assert _run(workshop, story, threads=1).state == "succeeded"


def test_a_job_is_watched_until_its_end(workshop: Workshop) -> None:
    job = workshop.put({f"notes/{number}": f"about {number}" for number in range(3)})

    async def story(client: AsyncClient) -> list[JobStatus]:
        seen: list[JobStatus] = []
        async for status in client.watch(job.job_id):
            seen.append(status)
            if len(seen) == 1:
                await asyncio.to_thread(workshop.work)
        progress: list[JobStatus] = []
        assert await client.wait(job.job_id, on_progress=progress.append) == progress[-1]
        return seen

    states = [status.state for status in _run(workshop, story)]
    assert states[0] == "queued"
    assert states[-1] == "succeeded"
    assert states.count("succeeded") == 1


def test_closing_waits_for_what_is_under_way(settings: Settings) -> None:
    workshop = Workshop(settings)
    workshop.index({"notes/1": "about one"})

    async def main() -> int:
        async with AsyncClient(services=workshop.services) as client:
            searching = asyncio.create_task(client.search("one", collection=COLLECTION))
            await asyncio.sleep(0)
        return len((await searching).results)

    assert asyncio.run(main()) == 1
