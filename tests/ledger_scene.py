"""The scene of the ledger's state machine: what is under way, what was wanted, and what must be true of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from hypothesis.stateful import RuleBasedStateMachine, invariant
from ledger_checks import assert_steps_are_legal, faults
from paused_stories import Killed, SeamedStore, Story
from workshop import COLLECTION, Workshop, paragraph, paragraphs

from pipeline import Document, ingest
from pipeline.duties import Bounds
from pipeline.ledger import batches
from pipeline.status import JobStatus
from pipeline.submission import Submission
from tasks import base
from tasks.maintenance import reconcile
from tasks.prepare import prepare

TENANTS = ("here", "there")
NEVER_SECONDS = 1e8


@dataclass(frozen=True)
class Content:
    """What somebody wants a document to be. No words: that it be gone."""

    words: tuple[str, ...] = ()
    language: str = ""

    @property
    def text(self) -> str:
        return "" if "empty" in self.words else paragraphs(*self.words)

    @property
    def chunks(self) -> list[tuple[str, str]]:
        """(text, language) of each chunk, sorted."""
        return sorted((paragraph(word), self.language) for word in self.words)


@dataclass
class Search:
    """A search under way: what was published when it read its generation; spoiled: the index was swept since."""

    story: Story
    tenant: str
    expected: dict[str, list[tuple[str, str]]]
    spoiled: bool = False


@dataclass
class Writing:
    """A job whose enqueuer has not sealed it."""

    submission: Submission
    tenant: str
    given: dict[str, Content] = field(default_factory=dict)


def documents_of(given: Mapping[str, Content]) -> list[Document]:
    return [Document(uri, wanted.text, metadata={"language": wanted.language}) for uri, wanted in given.items()]


class Scene(RuleBasedStateMachine):
    """`workshop` is empty, with `watch_steps`, seams and a SeamedStore."""

    def __init__(self, workshop: Workshop) -> None:
        super().__init__()
        self.workshop = workshop
        store = workshop.services.vectors
        assert isinstance(store, SeamedStore)
        self.store = store
        self.contents: dict[int, Content] = {}  # by version
        self.stories: list[Story] = []  # of workers: claims under way
        self.claims: dict[Story, list[batches.Claim]] = {}
        self.taken_back: set[tuple[int, int]] = set()  # (batch, epoch) whose lease ran out
        self.sweeps: list[Story] = []
        self.searches: list[Search] = []
        self.underway: list[tuple[str, Sequence[Any]]] = []  # requests whose sender is dead
        self.writings: list[Writing] = []
        self.cancelled: set[UUID] = set()
        workshop.sql("DELETE FROM workers")

    # -- what is always true -------------------------------------------------------------------------------------

    @invariant()
    def steps_are_legal(self) -> None:
        assert_steps_are_legal(self.workshop)

    @invariant()
    def ledger_is_consistent(self) -> None:
        assert self._faults() == {}

    @invariant()
    def answers_are_whole(self) -> None:
        """Every document is found exactly as its published version, and all its points are in the index."""
        for tenant in TENANTS:
            assert self._found(tenant) == self._published(tenant)

    def teardown(self) -> None:
        """All is worked off; then those that were paused all the while come back, and change nothing."""
        for search in self.searches:
            search.story.advance(Killed())
        for sweep in self.sweeps:
            sweep.finish()
        for writing in self.writings:
            if writing.submission.job.id not in self.cancelled:
                writing.submission.seal()
        for pause in self.workshop.client.paused():
            collection = pause.collection if pause.scope == "collection" else None
            self.workshop.client.resume(pause.job_id, collection=collection, everything=pause.scope == "everything")
        self._stop_at_upsert()
        self._expire(None, worker_lives=False)
        self._finish()
        late = [story for story in self.stories if story.seam == "upsert"]
        self._come_back([story for story in self.stories if story not in late], self.underway[::2])
        # What the last ones bring is of documents that were indexed by others, deleted, and have left the index.
        given = dict.fromkeys(self._published("here"), Content())
        self._note(self.workshop.client.delete(list(given), collection=COLLECTION, tenant="here"), "here", given)
        self._finish()
        self.workshop.contract_once()
        self._come_back(late, self.underway[1::2])
        self._clear()
        report = self.workshop.client.audit(COLLECTION)
        assert (report.clean, report.leaving, report.arriving) == (True, 0, 0), report
        assert (
            self.workshop.value("SELECT count(*) FROM chunks") == report.expected == self.store.count(self._physical())
        )
        self._assert_all_is_done()

    def _clear(self) -> None:
        """What is not wanted any more leaves the index."""
        self.workshop.contract()

    def _stop_at_upsert(self) -> None:
        """A last worker stops where its request would leave."""
        given = {"last": Content(("rowan",), "de")}
        self._note(self.workshop.put(documents_of(given), tenant="here"), "here", given)
        self.workshop.sql("UPDATE circuits SET opened_at = NULL")
        for kind in ("prepare", "embed"):
            story = self._claim(self.workshop.value("SELECT max(id) FROM batches WHERE kind = %(kind)s", kind=kind))
            while not story.over and story.seam != "upsert":
                self._advance(story)
        assert story.seam == "upsert"

    def _finish(self) -> None:
        while self.workshop.work():
            self._reconcile()
        self._assert_all_is_done()

    def _come_back(self, stories: Sequence[Story], requests: Sequence[tuple[str, Sequence[Any]]]) -> None:
        before = self._ledger()
        for story in stories:
            self._go_on(story, 9)
        for request in requests:
            self.store.arrive(*request)
        assert self._ledger() == before, "a worker that comes back changes nothing"
        self._assert_all_is_done()

    # -- parts ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _one_of(things: Sequence[Any], place: int) -> Any:
        return things[place % len(things)]

    def _physical(self) -> str:
        return str(self.workshop.value("SELECT physical FROM collections"))

    def _time_passes(self) -> None:
        self.workshop.sql("UPDATE batches SET next_attempt_at = NULL WHERE state = 'ready'")

    def _perform(self, batch_id: int, *, together: bool) -> base.Outcome:
        def claimed(tools: Any, claims: Sequence[batches.Claim], progress: Any) -> Any:
            (story,) = [story for story in self.stories if story.is_alive() and story.seam == "" and not story.over]
            self.claims[story] = list(claims)
            return (prepare if claims[0].kind != "embed" else ingest.embed)(tools, claims, progress)

        budget = (lambda _connection, _claim: 60) if together else None
        return base.perform(self.workshop.services, batch_id, claimed, budget)

    def _begin(self, place: int, *, together: bool) -> Story | None:
        """A message for work that is ready, one of the next six, reaches a worker; None where there is none of either.
        The story stands at its first seam, or is over."""
        self._time_passes()
        ready = self.workshop.ready()
        if not ready or len(self.stories) > 4:
            return None
        return self._claim(ready[place % len(ready)].id, together=together)

    def _claim(self, batch_id: int, *, together: bool = False) -> Story:
        story = Story(f"batch {batch_id}", lambda: self._perform(batch_id, together=together))
        self.stories.append(story)
        self._advance(story)
        paused = self.workshop.sql(
            """SELECT b.id FROM batches b JOIN jobs j ON j.id = b.job_id LEFT JOIN pauses p
                   ON p.collection_id IS NULL OR p.collection_id = b.collection_id
                WHERE b.id = ANY(%(ids)s) AND (j.state IN ('paused', 'cancelled') OR p.id IS NOT NULL)""",
            ids=[claim.id for claim in self.claims.get(story, [])],
        )
        assert not paused, f"{story.name} was claimed although it is paused or cancelled"
        return story

    def _someone(self, place: int) -> Story | None:
        """One of the stories; a new one where there is none."""
        return self._one_of(self.stories, place) if self.stories else self._begin(place, together=False)

    def _held(self, story: Story) -> list[batches.Claim]:
        """Those claims of the story that nobody has taken from it."""
        claims = self.claims.get(story, [])
        rows = self._batches(claim.id for claim in claims)
        return [
            claim
            for claim in claims
            if (rows[claim.id]["state"], rows[claim.id]["epoch"]) == ("running", claim.epoch)
            and (claim.id, claim.epoch) not in self.taken_back
        ]

    def _advance(self, story: Story, error: BaseException | None = None) -> None:
        """To the next seam. What the story does not hold (it is lost, or done) it must not touch; and with any of it
        lost, another epoch's or cancelled, it must not end well."""
        held = {claim.id for claim in self._held(story)}
        others = {claim.id: claim.epoch for claim in self.claims.get(story, []) if claim.id not in held}
        before = self._batches(others)
        story.advance(error)
        assert self._batches(others) == before, f"{story.name} changed what it had lost"
        if story.over:
            self.stories.remove(story)
            lost = [row for id, row in before.items() if row["epoch"] != others[id] or row["state"] == "cancelled"]
            assert not lost or not isinstance(story.result, base.Done), f"{story.name} ended work that it had lost"

    def _go_on(self, story: Story | None, far: int) -> None:
        """That many seams further, or to the end."""
        for _ in range(far):
            if story is not None and not story.over:
                self._advance(story)

    def _heartbeat(self, story: Story) -> None:
        """Extends what the story still holds, and nothing else."""
        held = {claim.id for claim in self._held(story)}
        with self.workshop.services.ledger.transaction() as connection:
            assert batches.heartbeat(connection, self.claims.get(story, []), NEVER_SECONDS) == held

    def _expire(self, ids: Sequence[int] | None, *, worker_lives: bool, dies: bool = False) -> None:
        """The leases of these batches, or all, run out, and reconcile takes them back. dies: it gets no further."""
        if worker_lives:
            self.workshop.sql(
                """INSERT INTO workers (id, host, pid, queues, slots) VALUES (%(id)s, 'here', 1, 'normal', 1)
                   ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp()""",
                id=base.worker_id(),
            )
        else:
            self.workshop.sql("DELETE FROM workers")
        self.workshop.sql(
            """UPDATE batches SET lease_until = clock_timestamp() - interval '1 ms'
                WHERE state = 'running' AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s))""",
            ids=ids,
        )
        self._reconcile(dies=dies)

    def _reconcile(self, *, dies: bool = False) -> None:
        """dies: when it has taken back what expired, and before it gives up on what has had its attempts."""
        late = self.workshop.sql(
            "SELECT id, epoch FROM batches WHERE state = 'running' AND lease_until < clock_timestamp()"
        )
        if dies:
            with self.workshop.services.ledger.transaction() as connection:
                count, _ = batches.expire(connection, self.workshop.services.settings.work, 100)
        else:
            count = reconcile(self.workshop.services, Bounds(100, 20.0))["expired"]
        assert count == len(late)
        self.taken_back.update((row["id"], row["epoch"]) for row in late)

    def _batches(self, ids: Iterable[int]) -> dict[int, dict[str, Any]]:
        rows = self.workshop.sql(
            "SELECT id, state, epoch, attempts, losses, shared, alone FROM batches WHERE id = ANY(%(ids)s)",
            ids=list(ids),
        )
        return {row["id"]: row for row in rows}

    def _sweep(self, after_seconds: float, again_seconds: float) -> None:
        for search in self.searches:
            search.spoiled = True
        if len(self.sweeps) > 1:
            return
        tools = self.workshop.services.tools
        story = Story("sweep", lambda: ingest.contract(tools, after_seconds, again_seconds, 1000))
        story.advance()
        if not story.over:
            self.sweeps.append(story)

    def _note(self, status: JobStatus, tenant: str, given: Mapping[str, Content]) -> None:
        """Remembers what each new version of the job is to be; what has none is just so already."""
        rows = self.workshop.sql(
            """SELECT v.id, d.uri, v.state FROM versions v JOIN documents d ON d.id = v.document_id
                WHERE v.job_id = %(job)s ORDER BY v.id""",
            job=status.job_id,
        )
        new = {row["uri"]: row["id"] for row in rows if row["id"] not in self.contents}
        self.contents.update({version: given[uri] for uri, version in new.items()})
        published = self._published(tenant)
        for uri, content in given.items():
            if uri not in new:
                assert published.get(uri, []) == content.chunks, f"{uri} was said to be unchanged"

    def _published(self, tenant: str) -> dict[str, list[tuple[str, str]]]:
        """uri -> (text, language) of its chunks, by the published version and what was wanted of that."""
        rows = self.workshop.sql(
            """SELECT d.uri, v.id FROM documents d JOIN versions v ON v.id = d.published_version
                WHERE d.tenant = %(tenant)s AND v.kind = 'ingest' ORDER BY d.uri""",
            tenant=tenant,
        )
        return {row["uri"]: self.contents[row["id"]].chunks for row in rows}

    def _found(self, tenant: str) -> dict[str, list[tuple[str, str]]]:
        """uri -> (text, language) of its chunks, by a real search."""
        found = self.workshop.client.search("anything", collection=COLLECTION, limit=100, tenant=tenant)
        assert found.degraded == ()
        chunks: dict[str, list[tuple[str, str]]] = {}
        for result in found.results:
            chunks.setdefault(result.uri, []).append((result.text, result.metadata["language"]))
        return {uri: sorted(texts) for uri, texts in sorted(chunks.items())}

    def _ledger(self) -> dict[str, list[str]]:
        tables = ("documents", "versions", "chunks", "batches", "jobs", "collections", "staged", "embeddings")
        return {table: sorted(map(str, self.workshop.sql(f"SELECT * FROM {table}"))) for table in tables}

    def _assert_all_is_done(self) -> None:
        """Every document is what was wanted of it last, but for what was cancelled and what cannot be done."""
        assert self._faults() == {}
        assert_steps_are_legal(self.workshop)
        left = "(SELECT count(*) FROM {} WHERE {})"
        assert (
            self.workshop.value(
                f"""SELECT {left.format("versions", "state IN ('staged', 'open')")}
                     + {left.format("batches", "ended_at IS NULL")} + {left.format("jobs", "finished_at IS NULL")}
                     + {left.format("staged", "true")}"""
            )
            == 0
        ), "nothing is left to do"
        for tenant in TENANTS:
            assert self._found(tenant) == self._published(tenant)
        for history in self._histories():
            shown = max((row["id"] for row in history if row["state"] == "published"), default=0)
            for row in history:
                content = self.contents[row["id"]]
                if row["id"] > shown:
                    self._assert_fits(row, content, history)
                if row["state"] == "published":
                    assert not {"poison", "empty"} & set(content.words)

    def _assert_fits(self, row: Mapping[str, Any], content: Content, history: Sequence[Mapping[str, Any]]) -> None:
        """Why a version is not shown although it is the newest."""
        match row["state"]:
            case "failed":
                assert self._gave_up(row["job_id"]) or "empty" in content.words, row
            case "cancelled":
                assert row["job_id"] in self.cancelled, row
            case "superseded":
                assert row["id"] < history[-1]["id"], row
            case "unchanged":
                shown = [other for other in history if other["state"] == "published" and other["id"] < row["id"]]
                assert self.contents[shown[-1]["id"]] == content, row
            case other:
                raise AssertionError(f"{other}: {row}")

    def _gave_up(self, job_id: UUID) -> bool:
        """Whether a batch of the job had had its attempts."""
        return bool(
            self.workshop.value("SELECT count(*) FROM batches WHERE job_id = %(job)s AND state = 'dead'", job=job_id)
        )

    def _faults(self) -> dict[str, list[dict[str, Any]]]:
        return faults(self.workshop)

    def _histories(self) -> Iterator[list[dict[str, Any]]]:
        rows = self.workshop.sql("SELECT id, document_id, job_id, state, error FROM versions ORDER BY document_id, id")
        for document in sorted({row["document_id"] for row in rows}):
            yield [row for row in rows if row["document_id"] == document]
