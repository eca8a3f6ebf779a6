"""Everything that can happen to a few documents, as steps in any order: the state machine of test_ledger_machine.py.

The ledger, the stories and the broker are the real ones; the stories of workers stop at their seams
(`paused_stories`), and leases run out when a step says so.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from ledger_scene import TENANTS, Content, Scene, Search, Writing, documents_of
from paused_stories import Killed, Story
from workshop import COLLECTION, Workshop

from pipeline.errors import InvalidRequest, LedgerUnavailable, VectorsUnavailable
from pipeline.ledger import batches, cancelling
from pipeline.submission import Request, Submission
from tasks import base
from tasks.maintenance import reconcile

URIS = ("a", "b", "c")
NEVER_SECONDS = 1e8

tenants = st.sampled_from(TENANTS)
priorities = st.sampled_from(["high", "normal", "low"])
chosen_uris = st.lists(st.sampled_from(URIS), min_size=1, max_size=3, unique=True)
# Most words are common: documents share chunks, and versions of a document differ in a few of theirs.
words = st.lists(st.sampled_from(["ash", "birch", "cedar", "elm", "fir"]), min_size=1, max_size=4)
rare = st.sampled_from([(), (), (), (), (), ("poison",), ("empty",)])
languages = st.sampled_from(["de", "de", "en"])
places = st.integers(min_value=0, max_value=5)


class LedgerMachine(Scene):
    """Applications, workers, duties and faults."""

    def __init__(self, workshop: Workshop) -> None:
        super().__init__(workshop)
        self.put("here", ["a"], ["ash"], (), "de", "normal")

    # -- applications --------------------------------------------------------------------------------------------

    @rule(tenant=tenants, uris=chosen_uris, common=words, odd=rare, language=languages, priority=priorities)
    def put(
        self, tenant: str, uris: list[str], common: list[str], odd: tuple[str, ...], language: str, priority: str
    ) -> None:
        given = {uri: Content((*common[number:], *common[:number], *odd), language) for number, uri in enumerate(uris)}
        status = self.workshop.put(documents_of(given), tenant=tenant, priority=priority)
        self._note(status, tenant, given)

    @rule(tenant=tenants, uris=chosen_uris, priority=priorities)
    def delete(self, tenant: str, uris: list[str], priority: str) -> None:
        status = self.workshop.client.delete(uris, collection=COLLECTION, tenant=tenant, priority=priority)
        self._note(status, tenant, dict.fromkeys(uris, Content()))

    @rule(tenant=tenants, priority=priorities)
    def begin_writing(self, tenant: str, priority: str) -> None:
        submission = Submission(self.workshop.services, Request("ingest", COLLECTION, tenant, priority))
        self.writings.append(Writing(submission, tenant))

    @precondition(lambda self: self.writings)
    @rule(place=places, uris=chosen_uris, common=words, language=languages)
    def write(self, place: int, uris: list[str], common: list[str], language: str) -> None:
        writing = self._one_of(self.writings, place)
        given = {uri: Content(tuple(common), language) for uri in uris}
        try:
            writing.submission.ingest(iter(documents_of(given)), {})
        except InvalidRequest:
            assert writing.submission.job.id in self.cancelled
            self.writings.remove(writing)
            return
        self._note(self.workshop.client.job(writing.submission.job.id), writing.tenant, given)

    @precondition(lambda self: self.writings)
    @rule(place=places)
    def seal(self, place: int) -> None:
        writing = self._one_of(self.writings, place)
        self.writings.remove(writing)
        writing.submission.seal()

    @precondition(lambda self: self.writings)
    @rule(place=places)
    def fall_silent(self, place: int) -> None:
        """The enqueuer dies, or only sleeps: `write` may come after all."""
        job = self._one_of(self.writings, place).submission.job.id
        self.workshop.sql("UPDATE jobs SET seen_at = seen_at - interval '1 hour' WHERE id = %(id)s", id=job)
        reconcile(self.workshop.services, 100)

    @rule(place=places)
    def cancel(self, place: int) -> None:
        jobs = self.workshop.sql("SELECT id FROM jobs WHERE finished_at IS NULL ORDER BY id")
        if jobs:
            job = jobs[place % len(jobs)]["id"]
            self.cancelled.add(job)
            self.workshop.client.cancel(job)

    @rule(place=places)
    def begin_to_cancel(self, place: int) -> None:
        """Whoever cancels dies when it has decided; reconcile goes on."""
        jobs = self.workshop.sql("SELECT id FROM jobs WHERE finished_at IS NULL ORDER BY id")
        if jobs:
            job = jobs[place % len(jobs)]["id"]
            self.cancelled.add(job)
            with self.workshop.services.ledger.transaction() as connection:
                cancelling.begin(connection, job)

    @rule(scope=st.sampled_from(["job", "job", "collection", "everything"]), place=places, pauses=st.booleans())
    def pause_or_resume(self, scope: str, place: int, pauses: bool) -> None:
        jobs = self.workshop.sql(
            "SELECT id FROM jobs WHERE finished_at IS NULL AND state <> 'cancelled' ORDER BY state = 'paused', id"
        )
        change = self.workshop.client.pause if pauses else self.workshop.client.resume
        match scope:
            case "job" if jobs:
                change(jobs[-1 - place % len(jobs)]["id"])
            case "collection":
                change(collection=COLLECTION)
            case "everything":
                change(everything=True)

    @rule(place=places, priority=priorities)
    def prioritize(self, place: int, priority: str) -> None:
        jobs = self.workshop.sql("SELECT id FROM jobs WHERE finished_at IS NULL AND state <> 'cancelled' ORDER BY id")
        if jobs:
            self.workshop.client.prioritize(jobs[place % len(jobs)]["id"], priority)

    @rule(discards=st.booleans())
    def deal_with_dead_letters(self, discards: bool) -> None:
        if discards:
            self.workshop.client.discard(everything=True)
            return
        for job in self.workshop.client.retry(everything=True).jobs:
            rows = self.workshop.sql(
                """SELECT v.id, l.version_id AS before FROM versions v
                     JOIN dead_letters l ON l.retried_by = v.job_id AND l.document_id = v.document_id
                    WHERE v.job_id = %(job)s ORDER BY l.id""",
                job=job.job_id,
            )
            self.contents.update({row["id"]: self.contents[row["before"]] for row in rows})

    # -- workers -------------------------------------------------------------------------------------------------

    @rule(place=places, together=st.booleans())
    def start(self, place: int, together: bool) -> None:
        """A message reaches a worker, in any order."""
        self._time_passes()
        ready = self.workshop.ready()
        if not ready or len(self.stories) > 4:
            return
        batch = ready[place % len(ready)]
        story = Story(f"batch {batch.id}", lambda: self._perform(batch.id, together=together))
        self.stories.append(story)
        self._advance(story)

    @rule(batch=st.integers(min_value=1, max_value=12))
    def second_message(self, batch: int) -> None:
        """A message for work that another has, or that is done, or that was not sent."""
        self._time_passes()
        found = self.workshop.sql("SELECT min(id) + %(n)s AS id FROM batches", n=batch)
        if len(self.stories) <= 4:
            story = Story("second message", lambda: self._perform(found[0]["id"], together=False))
            self.stories.append(story)
            self._advance(story)

    @precondition(lambda self: self.stories)
    @rule(place=places)
    def go_on(self, place: int) -> None:
        """To the next seam; also after the lease is gone: a worker that was paused comes back."""
        self._advance(self._one_of(self.stories, place))

    @precondition(lambda self: self.stories)
    @rule(place=places)
    def go_through(self, place: int) -> None:
        story = self._one_of(self.stories, place)
        while not story.over:
            self._advance(story)

    @precondition(lambda self: self.stories)
    @rule(place=places, how=st.sampled_from(["broken", "qdrant", "postgres"]))
    def go_wrong(self, place: int, how: str) -> None:
        errors = {
            "broken": RuntimeError("broken"),
            "qdrant": VectorsUnavailable("Qdrant is away"),
            "postgres": LedgerUnavailable("Postgres is away"),
        }
        self._advance(self._one_of(self.stories, place), errors[how])

    @precondition(lambda self: self.stories)
    @rule(place=places, sent=st.sampled_from(["nothing", "half", "all"]))
    def crash(self, place: int, sent: str) -> None:
        """SIGKILL; a request that had left arrives later (`arrive`), or half of it does."""
        story = self._one_of(self.stories, place)
        if story.seam == "upsert" and sent != "nothing":
            name, points = self.store.underway[story]
            self.underway.append((name, points[: len(points) // 2] if sent == "half" else points))
        self._advance(story, Killed())

    @precondition(lambda self: self.underway)
    @rule(place=places)
    def arrive(self, place: int) -> None:
        request = self._one_of(self.underway, place)
        self.underway.remove(request)
        self.store.arrive(*request)

    @precondition(lambda self: self.stories)
    @rule(place=places)
    def heartbeat(self, place: int) -> None:
        claims = self.claims.get(self._one_of(self.stories, place), [])
        with self.workshop.services.ledger.transaction() as connection:
            batches.heartbeat(connection, claims, NEVER_SECONDS)

    @precondition(lambda self: any(self.claims.get(story) for story in self.stories))
    @rule(place=places, through=st.booleans())
    def take_over(self, place: int, through: bool) -> None:
        """A worker is paused beyond its lease, and another has its very work, to the next seam or to the end."""
        held = [story for story in self.stories if self.claims.get(story)]
        batch_id = self.claims[self._one_of(held, place)][0].id
        self.workshop.sql(
            """UPDATE batches SET lease_until = clock_timestamp() - interval '1 ms'
                WHERE id = %(id)s AND state = 'running'""",
            id=batch_id,
        )
        reconcile(self.workshop.services, 100)
        self._time_passes()
        other = Story(f"taken over {batch_id}", lambda: self._perform(batch_id, together=False))
        self.stories.append(other)
        self._advance(other)
        while through and not other.over:
            self._advance(other)

    # -- time and duties -----------------------------------------------------------------------------------------

    @rule(worker_lives=st.booleans(), place=st.none() | places)
    def expire(self, worker_lives: bool, place: int | None) -> None:
        """Leases run out: all of them, or that of one story's claims."""
        if worker_lives:
            self.workshop.sql(
                """INSERT INTO workers (id, host, pid, queues, slots) VALUES (%(id)s, 'here', 1, 'normal', 1)
                   ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp()""",
                id=base.worker_id(),
            )
        else:
            self.workshop.sql("DELETE FROM workers")
        ids = None
        if place is not None and self.stories:
            ids = [claim.id for claim in self.claims.get(self._one_of(self.stories, place), [])]
        self.workshop.sql(
            """UPDATE batches SET lease_until = clock_timestamp() - interval '1 ms'
                WHERE state = 'running' AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s))""",
            ids=ids,
        )
        reconcile(self.workshop.services, 100)

    @rule()
    def reconcile(self) -> None:
        reconcile(self.workshop.services, 100)

    @rule(flushed=st.booleans())
    def dispatch(self, flushed: bool) -> None:
        if flushed:
            self.workshop.services.broker._client().flushdb()
        self.workshop.dispatch()

    @rule()
    def sweep(self) -> None:
        """The first contraction: by one of perhaps several control workers."""
        self._sweep(0.0, NEVER_SECONDS)

    @precondition(lambda self: not self.stories and not self.underway)
    @rule()
    def sweep_again(self) -> None:
        """The second one, a quarter of an hour later: nobody is paused, and no request on its way, for so long."""
        self._sweep(NEVER_SECONDS, 0.0)

    @precondition(lambda self: self.sweeps)
    @rule(place=places, dies=st.booleans())
    def go_on_sweeping(self, place: int, dies: bool) -> None:
        story = self._one_of(self.sweeps, place)
        story.advance(Killed() if dies else None)
        if story.over:
            self.sweeps.remove(story)

    # -- searching -----------------------------------------------------------------------------------------------

    @rule(tenant=tenants)
    def begin_search(self, tenant: str) -> None:
        if len(self.searches) > 2:
            return
        story = Story("search", lambda: self._found(tenant))
        story.advance()
        self.searches.append(Search(story, tenant, self._published(tenant), bool(self.sweeps)))

    @precondition(lambda self: self.searches)
    @rule(place=places)
    def end_search(self, place: int) -> None:
        search = self._one_of(self.searches, place)
        self.searches.remove(search)
        found = search.story.finish()
        if not search.spoiled:
            assert found == search.expected
