"""Everything that can happen to a few documents, as steps in any order: the state machine of test_ledger_machine.py.

The ledger, the stories and the broker are the real ones; the stories of workers stop at their seams
(`paused_stories`), and leases run out when a step says so.

The steps are one rule to Hypothesis. Of many it turns more than half off in most runs, and then what needs several of
them in a row (a document is put, prepared, half embedded, taken over, and the first worker comes back) never happens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from ledger_scene import NEVER_SECONDS, TENANTS, Content, Scene, Search, Writing, documents_of
from paused_stories import Killed, Story
from workshop import COLLECTION, Workshop

from pipeline.duties import Bounds
from pipeline.errors import InvalidRequest, LedgerUnavailable, VectorsUnavailable
from pipeline.ledger import cancelling
from pipeline.submission import Request, Submission
from tasks.maintenance import reconcile

URIS = ("a", "b", "c")

tenants = st.sampled_from(TENANTS)
priorities = st.sampled_from(["high", "normal", "low"])
chosen_uris = st.lists(st.sampled_from(URIS), min_size=1, max_size=3, unique=True)
# Most words are common: documents share chunks, and versions of a document differ in a few of theirs.
words = st.lists(st.sampled_from(["ash", "birch", "cedar", "elm", "fir"]), min_size=1, max_size=4)
rare = st.sampled_from([(), (), (), (), (), ("poison",), ("empty",)])
languages = st.sampled_from(["de", "de", "en"])
places = st.integers(min_value=0, max_value=5)
# How far a story goes: no story has more than four parts.
seams = st.integers(min_value=1, max_value=4)
rather_not = st.sampled_from([False, False, True])
few_seams = st.sampled_from([0, 0, 1, 2, 3])

_given: dict[str, st.SearchStrategy[dict[str, Any]]] = {}
_steps: list[str] = []


def happens(often: int = 1, **given: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A method that is a step, with what it is given; one that finds nothing to be done does nothing."""

    def known(step: Callable[..., None]) -> Callable[..., None]:
        _given[step.__name__] = st.fixed_dictionaries(given)
        _steps.extend([step.__name__] * often)
        return step

    return known


steps = st.deferred(lambda: st.sampled_from(_steps).flatmap(lambda name: st.tuples(st.just(name), _given[name])))


class LedgerMachine(Scene):
    """Applications, workers, duties and faults."""

    def __init__(self, workshop: Workshop) -> None:
        super().__init__(workshop)
        self.put("here", ["a", "b"], ["ash", "birch"], (), "de", "normal")

    @initialize(many=st.integers(min_value=0, max_value=4))
    def begin(self, many: int) -> None:
        """The first documents are staged, open or published."""
        self.work(0, many)

    @rule(step=steps)
    def happen(self, step: tuple[str, dict[str, Any]]) -> None:
        name, given = step
        getattr(self, name)(**given)

    # -- applications --------------------------------------------------------------------------------------------

    @happens(often=3, tenant=tenants, uris=chosen_uris, common=words, odd=rare, language=languages, priority=priorities)
    def put(
        self, tenant: str, uris: list[str], common: list[str], odd: tuple[str, ...], language: str, priority: str
    ) -> None:
        given = {uri: Content((*common[number:], *common[:number], *odd), language) for number, uri in enumerate(uris)}
        status = self.workshop.put(documents_of(given), tenant=tenant, priority=priority)
        self._note(status, tenant, given)

    @happens(often=2, tenant=tenants, uris=chosen_uris, priority=priorities, again=st.booleans())
    def delete(self, tenant: str, uris: list[str], priority: str, again: bool) -> None:
        """again: twice, in two jobs, of which the second one must not count on the first."""
        for _ in range(1 + again):
            status = self.workshop.client.delete(uris, collection=COLLECTION, tenant=tenant, priority=priority)
            self._note(status, tenant, dict.fromkeys(uris, Content()))

    @happens(tenant=tenants, priority=priorities)
    def begin_writing(self, tenant: str, priority: str) -> None:
        submission = Submission(self.workshop.services, Request("ingest", COLLECTION, tenant, priority))
        self.writings.append(Writing(submission, tenant))

    @happens(place=places, uris=chosen_uris, common=words, language=languages)
    def write(self, place: int, uris: list[str], common: list[str], language: str) -> None:
        if not self.writings:
            return
        writing = self._one_of(self.writings, place)
        given = {uri: Content(tuple(common), language) for uri in uris}
        try:
            writing.submission.ingest(iter(documents_of(given)), {})
        except InvalidRequest:
            assert writing.submission.job.id in self.cancelled
            self.writings.remove(writing)
            return
        self._note(self.workshop.client.job(writing.submission.job.id), writing.tenant, given)

    @happens(place=places, dies=st.booleans())
    def stop_writing(self, place: int, dies: bool) -> None:
        """Sealed; or the enqueuer dies, or only sleeps: `write` may come after all."""
        if not self.writings:
            return
        writing = self._one_of(self.writings, place)
        if not dies:
            self.writings.remove(writing)
            writing.submission.seal()
            return
        job = writing.submission.job.id
        self.workshop.sql("UPDATE jobs SET seen_at = seen_at - interval '1 hour' WHERE id = %(id)s", id=job)
        reconcile(self.workshop.services, Bounds(100, 20.0))

    @happens(often=2, place=places, dies=st.booleans())
    def cancel(self, place: int, dies: bool) -> None:
        """dies: whoever cancels, when it has decided; reconcile goes on."""
        jobs = self.workshop.sql("SELECT id FROM jobs WHERE finished_at IS NULL ORDER BY id DESC")
        if not jobs:
            return
        job = jobs[place % len(jobs)]["id"]
        self.cancelled.add(job)
        if not dies:
            self.workshop.client.cancel(job)
            return
        with self.workshop.services.ledger.transaction() as connection:
            cancelling.begin(connection, job)

    @happens(scope=st.sampled_from(["job", "job", "collection", "everything"]), place=places, pauses=st.booleans())
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

    @happens(place=places, priority=priorities)
    def prioritize(self, place: int, priority: str) -> None:
        jobs = self.workshop.sql("SELECT id FROM jobs WHERE finished_at IS NULL AND state <> 'cancelled' ORDER BY id")
        if jobs:
            self.workshop.client.prioritize(jobs[place % len(jobs)]["id"], priority)

    @happens(discards=st.booleans())
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

    @happens(often=3, place=places, many=seams)
    def work(self, place: int, many: int) -> None:
        """Workers whom nothing happens to."""
        for _ in range(many):
            story = self._begin(place, together=True)
            while story is not None and not story.over:
                self._advance(story)

    @happens(often=3, place=places, together=st.booleans(), far=seams)
    def start(self, place: int, together: bool, far: int) -> None:
        """A message reaches a worker, in any order."""
        self._go_on(self._begin(place, together=together), far - 1)

    @happens(place=places)
    def second_message(self, place: int) -> None:
        """A message for work that another has, that is paused or done, or that was not sent."""
        self._time_passes()
        rows = self.workshop.sql("SELECT id FROM batches ORDER BY ended_at IS NOT NULL, held DESC, id DESC LIMIT 6")
        if rows and len(self.stories) <= 4:
            self._claim(rows[place % len(rows)]["id"])

    @happens(often=3, place=places, far=seams, beats=st.booleans())
    def go_on(self, place: int, far: int, beats: bool) -> None:
        """Some seams further; also after the lease is gone: a worker that was paused comes back."""
        story = self._someone(place)
        if story is not None and beats:
            self._heartbeat(story)
        self._go_on(story, far)

    @happens(place=places, far=few_seams, how=st.sampled_from(["broken", "qdrant", "postgres"]))
    def go_wrong(self, place: int, far: int, how: str) -> None:
        errors = {
            "broken": RuntimeError("broken"),
            "qdrant": VectorsUnavailable("Qdrant is away"),
            "postgres": LedgerUnavailable("Postgres is away"),
        }
        story = self._someone(place)
        self._go_on(story, far)
        if story is not None and not story.over:
            self._advance(story, errors[how])

    @happens(often=2, place=places, far=few_seams, sent=st.sampled_from(["nothing", "half", "all"]))
    def crash(self, place: int, far: int, sent: str) -> None:
        """SIGKILL; a request that had left arrives later (`arrive`), or half of it does."""
        story = self._someone(place)
        self._go_on(story, far)
        if story is None or story.over:
            return
        if story.seam == "upsert" and sent != "nothing":
            name, points = self.store.underway[story]
            self.underway.append((name, points[: len(points) // 2] if sent == "half" else points))
        self._advance(story, Killed())

    @happens(place=places)
    def arrive(self, place: int) -> None:
        if self.underway:
            request = self._one_of(self.underway, place)
            self.underway.remove(request)
            self.store.arrive(*request)

    @happens(often=4, place=places, before=few_seams, after=few_seams, dies=rather_not, returns=st.booleans())
    def take_over(self, place: int, before: int, after: int, dies: bool, returns: bool) -> None:
        """A worker is paused beyond its lease, and another has its very work, to some seam or to the end. dies: who
        takes the claim back, before it gives up on what has had its attempts. returns: then the first worker goes on,
        to its end."""
        story = self._someone(place)
        self._go_on(story, before)
        held = self._held(story) if story is not None else []
        if story is None or story.over or not held:
            return
        self._expire([held[0].id], worker_lives=dies, dies=dies)
        self._time_passes()
        self._go_on(self._claim(held[0].id), after)
        if returns:
            self._heartbeat(story)
            self._go_on(story, 4)

    # -- time and duties -----------------------------------------------------------------------------------------

    @happens(worker_lives=st.booleans(), place=st.none() | places, dies=st.booleans())
    def expire(self, worker_lives: bool, place: int | None, dies: bool) -> None:
        """Leases run out: all of them, or that of one story's claims. dies: who takes the claims back, before it gives
        up on those that have had their attempts."""
        ids = None
        if place is not None and self.stories:
            ids = [claim.id for claim in self.claims.get(self._one_of(self.stories, place), [])]
        self._expire(ids, worker_lives=worker_lives, dies=dies)

    @happens(duty=st.sampled_from(["reconcile", "dispatch", "dispatch, Redis has forgotten all"]))
    def look_after(self, duty: str) -> None:
        if duty == "reconcile":
            self._reconcile()
            return
        if duty != "dispatch":
            self.workshop.services.broker._client().flushdb()
        self.workshop.dispatch()

    @happens(place=places, what=st.sampled_from(["first", "second", "go on", "die"]))
    def sweep(self, place: int, what: str) -> None:
        """The first contraction, by one of perhaps several control workers. The second one comes a quarter of an hour
        later: nobody is paused, and no request on its way, for so long."""
        if what == "first" or not (self.sweeps or what == "second"):
            self._sweep(0.0, NEVER_SECONDS)
        elif what != "second":
            story = self._one_of(self.sweeps, place)
            story.advance(Killed() if what == "die" else None)
            if story.over:
                self.sweeps.remove(story)
        elif not self.stories and not self.underway:
            self._sweep(NEVER_SECONDS, 0.0)

    # -- searching -----------------------------------------------------------------------------------------------

    @happens(tenant=tenants, place=places, begins=st.booleans())
    def search(self, tenant: str, place: int, begins: bool) -> None:
        """One begins, and reads its generation; or one ends."""
        if len(self.searches) < 3 and (begins or not self.searches):
            story = Story("search", lambda: self._found(tenant))
            story.advance()
            self.searches.append(Search(story, tenant, self._published(tenant), bool(self.sweeps)))
            return
        search = self._one_of(self.searches, place)
        self.searches.remove(search)
        found = search.story.finish()
        if not search.spoiled:
            assert found == search.expected
