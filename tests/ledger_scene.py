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
from pipeline.ledger import batches
from pipeline.status import JobStatus
from pipeline.submission import Submission
from tasks import base
from tasks.maintenance import reconcile
from tasks.prepare import prepare

TENANTS = ("here", "there")


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
        assert faults(self.workshop) == {}

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
        self.workshop.sql(
            "UPDATE batches SET lease_until = clock_timestamp() - interval '1 ms' WHERE state = 'running'"
        )
        reconcile(self.workshop.services, 100)
        self._time_passes()
        while self.workshop.work():
            reconcile(self.workshop.services, 100)
        self._assert_all_is_done()
        before = self._ledger()
        for story in self.stories:
            story.finish()
        for request in self.underway:
            self.store.arrive(*request)
        assert self._ledger() == before, "a worker that comes back changes nothing"
        self._assert_all_is_done()
        self.workshop.contract()
        report = self.workshop.client.audit(COLLECTION)
        assert (report.clean, report.leaving, report.arriving) == (True, 0, 0), report
        assert (
            self.workshop.value("SELECT count(*) FROM chunks") == report.expected == self.store.count(self._physical())
        )
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
        def claimed(tools: Any, claims: Sequence[batches.Claim], progress: Any) -> None:
            (story,) = [story for story in self.stories if story.is_alive() and story.seam == "" and not story.over]
            self.claims[story] = list(claims)
            (prepare if claims[0].kind != "embed" else ingest.embed)(tools, claims, progress)

        budget = (lambda _connection, _claim: 60) if together else None
        return base.perform(self.workshop.services, batch_id, claimed, budget)

    def _advance(self, story: Story, error: BaseException | None = None) -> None:
        """To the next seam. What the story has lost meanwhile, another epoch's or nobody's, it must not touch."""
        claims = {claim.id: claim.epoch for claim in self.claims.get(story, [])}
        before = self._batches(claims)
        story.advance(error)
        after = self._batches(claims)
        for id, row in before.items():
            if row["epoch"] != claims[id] or row["state"] != "running":
                assert after[id] == row, f"{story.name} changed what it had lost"
        if story.over:
            self.stories.remove(story)

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
        assert faults(self.workshop) == {}
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
                tired = self.workshop.value(
                    "SELECT count(*) FROM batches WHERE job_id = %(job)s AND state = 'dead'", job=row["job_id"]
                )
                assert tired or "empty" in content.words, row
            case "cancelled":
                assert row["job_id"] in self.cancelled, row
            case "superseded":
                assert row["id"] < history[-1]["id"], row
            case "unchanged":
                shown = [other for other in history if other["state"] == "published" and other["id"] < row["id"]]
                assert self.contents[shown[-1]["id"]] == content, row
            case other:
                raise AssertionError(f"{other}: {row}")

    def _histories(self) -> Iterator[list[dict[str, Any]]]:
        rows = self.workshop.sql("SELECT id, document_id, job_id, state, error FROM versions ORDER BY document_id, id")
        for document in sorted({row["document_id"] for row in rows}):
            yield [row for row in rows if row["document_id"] == document]
