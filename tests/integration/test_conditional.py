"""A page that is as it was published is not fetched again; and when what is known of it must not be used."""

from __future__ import annotations

import http.server
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate

import pytest
from web_site import Site, status
from workshop import COLLECTION, Workshop, chunked

from pipeline import Client, Document, Settings
from pipeline.sources import Rejected
from pipeline.sources.base import Item, Known, Unchanged
from pipeline.status import JobStatus

OLD = formatdate(1_700_000_000, usegmt=True)


@dataclass
class Page:
    """A page of a site that knows conditional requests. `asked`: what each request carried; `sent`: bodies sent."""

    body: bytes
    etag: str | None = None
    modified: str | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0
    before: Callable[[], None] | None = None

    def __call__(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        if self.before is not None:
            before, self.before = self.before, None
            before()
        names = ("If-None-Match", "If-Modified-Since")
        given = {name: handler.headers[name] for name in names if handler.headers[name]}
        self.asked.append(given)
        same = given.get("If-None-Match") == self.etag if self.etag else given.get("If-Modified-Since") == self.modified
        unchanged = bool(given) and same
        handler.send_response(304 if unchanged else 200)
        if self.etag:
            handler.send_header("ETag", self.etag)
        if self.modified:
            handler.send_header("Last-Modified", self.modified)
        handler.send_header("Content-Type", "text/plain")
        if not unchanged:
            handler.send_header("Content-Length", str(len(self.body)))
        handler.end_headers()
        if not unchanged:
            self.sent += 1
            handler.wfile.write(self.body)


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    local = settings.sources.model_copy(update={"web_private": True, "web_timeout": 60})
    made = Workshop(settings.model_copy(update={"sources": local}))
    yield made
    made.close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


def counts(job: JobStatus) -> dict[str, int]:
    return {name: count for name, count in job.documents.items() if count}


@pytest.mark.parametrize(
    ("etag", "modified", "condition"),
    [
        ('"v1"', None, {"If-None-Match": '"v1"'}),
        ('W/"v1"', None, {"If-None-Match": 'W/"v1"'}),
        (None, OLD, {"If-Modified-Since": OLD}),
        ('"v1"', OLD, {"If-None-Match": '"v1"', "If-Modified-Since": OLD}),
    ],
    ids=["etag", "weak", "time", "both"],
)
def test_an_unchanged_page_is_asked_for_and_not_fetched_again(
    workshop: Workshop, site: Site, etag: str | None, modified: str | None, condition: dict[str, str]
) -> None:
    page = site.pages["/a"] = Page(b"about a", etag, modified)
    workshop.index(f"{site.url}/a")

    again = workshop.index(f"{site.url}/a")

    assert page.asked == [{}, condition]
    assert page.sent == 1
    assert (again.state, counts(again)) == ("succeeded", {"total": 1, "unchanged": 1})
    assert workshop.texts() == {f"{site.url}/a": ["about a"]}


def test_a_changed_page_is_fetched_and_then_known_by_its_new_validators(workshop: Workshop, site: Site) -> None:
    page = site.pages["/a"] = Page(b"about a", '"v1"')
    workshop.index(f"{site.url}/a")
    page.body, page.etag = b"about a, changed", '"v2"'

    assert counts(workshop.index(f"{site.url}/a")) == {"total": 1, "indexed": 1}
    assert counts(workshop.index(f"{site.url}/a")) == {"total": 1, "unchanged": 1}
    assert [given.get("If-None-Match") for given in page.asked] == [None, '"v1"', '"v2"']
    assert workshop.texts() == {f"{site.url}/a": ["about a, changed"]}


def test_the_same_bytes_under_a_new_tag_are_unchanged_and_the_new_tag_is_kept(workshop: Workshop, site: Site) -> None:
    page = site.pages["/a"] = Page(b"about a", '"v1"')
    workshop.index(f"{site.url}/a")
    page.etag = '"v2"'

    assert counts(workshop.index(f"{site.url}/a")) == {"total": 1, "unchanged": 1}
    assert counts(workshop.index(f"{site.url}/a")) == {"total": 1, "unchanged": 1}
    assert [given.get("If-None-Match") for given in page.asked] == [None, '"v1"', '"v2"']
    assert page.sent == 2


def test_a_tag_that_came_while_the_same_bytes_were_on_their_way_is_kept_too(workshop: Workshop, site: Site) -> None:
    page = site.pages["/a"] = Page(b"about a", '"v1"')
    workshop.put(f"{site.url}/a")
    page.etag = '"v2"'
    workshop.put(f"{site.url}/a", priority="low")
    workshop.work()

    workshop.index(f"{site.url}/a")

    assert [given.get("If-None-Match") for given in page.asked] == [None, None, '"v2"']


def test_a_page_without_validators_is_fetched_and_compared(workshop: Workshop, site: Site) -> None:
    page = site.pages["/a"] = Page(b"about a")
    workshop.index(f"{site.url}/a")

    assert counts(workshop.index(f"{site.url}/a")) == {"total": 1, "unchanged": 1}
    assert page.asked == [{}, {}]


def test_a_time_of_this_very_second_does_not_tell_two_pages_apart(workshop: Workshop, site: Site) -> None:
    page = site.pages["/a"] = Page(b"about a", modified=formatdate(time.time(), usegmt=True))
    workshop.index(f"{site.url}/a")

    workshop.index(f"{site.url}/a")

    assert page.asked == [{}, {}]


def test_other_metadata_or_another_recipe_fetches_again(workshop: Workshop, site: Site, settings: Settings) -> None:
    page = site.pages["/a"] = Page(b"about a", '"v1"')
    workshop.index(f"{site.url}/a")

    assert counts(workshop.index(f"{site.url}/a", metadata={"lang": "en"})) == {"total": 1, "indexed": 1}
    assert counts(workshop.index(f"{site.url}/a", metadata={"lang": "en"})) == {"total": 1, "unchanged": 1}
    other = Workshop(chunked(workshop.settings))
    assert counts(other.index(f"{site.url}/a", metadata={"lang": "en"})) == {"total": 1, "indexed": 1}
    other.close()
    assert page.sent == 3


def test_another_collection_or_tenant_knows_nothing_of_the_page(workshop: Workshop, site: Site) -> None:
    page = site.pages["/a"] = Page(b"about a", '"v1"')
    workshop.index(f"{site.url}/a")

    workshop.index(f"{site.url}/a", tenant="other")
    workshop.index(f"{site.url}/a", collection="others")

    assert page.asked == [{}, {}, {}]


def test_the_validators_of_a_version_that_failed_are_never_used(workshop: Workshop, site: Site) -> None:
    page = site.pages["/a"] = Page(b"about a", '"good"')
    workshop.index(f"{site.url}/a")
    page.body, page.etag = b"   ", '"empty"'

    assert workshop.index(f"{site.url}/a").documents["failed"] == 1
    assert workshop.index(f"{site.url}/a").documents["failed"] == 1
    assert [given.get("If-None-Match") for given in page.asked] == [None, '"good"', '"good"']
    assert workshop.texts() == {f"{site.url}/a": ["about a"]}


def test_a_page_that_was_deleted_is_fetched_again(workshop: Workshop, site: Site) -> None:
    page = site.pages["/a"] = Page(b"about a", '"v1"')
    workshop.index(f"{site.url}/a")
    workshop.remove([f"{site.url}/a"])

    assert counts(workshop.index(f"{site.url}/a")) == {"total": 1, "indexed": 1}
    assert page.asked == [{}, {}]


def test_a_page_with_another_version_on_its_way_is_fetched(workshop: Workshop, site: Site) -> None:
    page = site.pages["/a"] = Page(b"about a", '"v1"')
    workshop.index(f"{site.url}/a")
    page.body, page.etag = b"about a, changed", '"v2"'
    workshop.put(f"{site.url}/a", priority="low")
    page.body, page.etag = b"about a", '"v1"'

    workshop.index(f"{site.url}/a")

    assert page.asked[-1] == {}
    assert workshop.texts() == {f"{site.url}/a": ["about a"]}


def test_a_version_published_between_the_question_and_the_count_is_no_reason_to_believe_the_answer(
    workshop: Workshop, site: Site
) -> None:
    # Given a page that was published as v1, and that somebody else publishes as something else while we ask for it
    uri = f"{site.url}/a"
    page = site.pages["/a"] = Page(b"about a", '"v1"')
    workshop.index(uri)

    def somebody_else() -> None:
        with Client(services=workshop.services) as client:
            client.ingest([Document(uri, "about something else")], collection=COLLECTION)
        workshop.work()

    page.before = somebody_else

    # When the site answers that it is still v1
    done = workshop.index(uri)

    # Then it is fetched after all, and what the site has is what a search finds
    assert page.asked == [{}, {"If-None-Match": '"v1"'}, {}]
    assert done.documents["indexed"] == 1
    assert workshop.texts() == {uri: ["about a"]}


def test_the_tag_of_a_page_is_not_sent_to_another_page_that_it_redirects_to(workshop: Workshop, site: Site) -> None:
    first, second = Page(b"the first edition", '"1"'), Page(b"the second edition", '"1"')
    site.pages |= {"/latest": status(302, "/first"), "/first": first, "/second": second}
    workshop.index(f"{site.url}/latest")
    assert counts(workshop.index(f"{site.url}/latest")) == {"total": 1, "unchanged": 1}
    assert first.asked == [{}, {"If-None-Match": '"1"'}]

    site.pages["/latest"] = status(302, "/second")
    workshop.index(f"{site.url}/latest")

    assert second.asked == [{}]
    assert workshop.texts() == {f"{site.url}/latest": ["the second edition"]}


def test_a_list_of_pages_is_one_job_in_which_each_is_asked_for_by_its_own_tag(workshop: Workshop, site: Site) -> None:
    pages = {name: Page(f"about {name}".encode(), f'"{name}"') for name in ("a", "b", "c")}
    site.pages |= {f"/{name}": page for name, page in pages.items()}
    urls = [f"{site.url}/{name}" for name in pages]
    workshop.index(urls)
    pages["b"].body, pages["b"].etag = b"about b, changed", '"b2"'
    del site.pages["/c"]

    again = workshop.index([*urls, urls[0]])

    assert counts(again) == {"total": 3, "indexed": 1, "unchanged": 1, "failed": 1}
    assert again.state == "partial"
    [error] = again.errors
    assert "/c answered 404" in error["error"]
    assert pages["a"].sent == 1


@dataclass
class Shelf:
    """A source of one's own with validators."""

    texts: dict[str, tuple[str, str]]  # name -> text, edition
    read: list[str] = field(default_factory=list)
    scope: str | None = "shelf/"
    complete: bool = True
    unreadable: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Document | Rejected]:
        for item in self.since(lambda _: {}):
            assert not isinstance(item, Unchanged)
            yield item

    def since(self, known: Known) -> Iterator[Item]:
        there = known({f"shelf/{name}": {} for name in self.texts})
        for name, (text, edition) in self.texts.items():
            uri, validators = f"shelf/{name}", {"edition": edition}
            if there.get(uri) == validators or name in self.claims:
                yield Unchanged(uri)
            else:
                self.read.append(name)
                yield Document(uri, text, validators=validators)


def test_a_sync_counts_what_is_unchanged_and_deletes_none_of_it(workshop: Workshop) -> None:
    shelf = Shelf({name: (f"about {name}", "1") for name in "abcd"})
    workshop.client.sync(shelf, collection=COLLECTION)
    workshop.work()
    shelf.texts["b"] = ("about b, changed", "2")
    del shelf.texts["d"]
    shelf.read.clear()

    job = workshop.client.sync(shelf, collection=COLLECTION)
    workshop.work()

    assert shelf.read == ["b"]
    assert counts(workshop.client.job(job.job_id)) == {"total": 4, "indexed": 1, "unchanged": 2, "deleted": 1}
    assert sorted(workshop.texts()) == ["shelf/a", "shelf/b", "shelf/c"]


def test_a_source_that_claims_what_the_ledger_does_not_have_is_not_believed(workshop: Workshop) -> None:
    done = workshop.index(Shelf({"a": ("about a", "1"), "b": ("about b", "1")}, claims=("b",)))

    assert (done.state, counts(done)) == ("partial", {"total": 2, "indexed": 1, "failed": 1})
    [error] = done.errors
    assert error["uri"] == "shelf/b"
    assert "try again" in error["error"]


def test_a_job_that_goes_on_counts_each_unchanged_document_once(workshop: Workshop, settings: Settings) -> None:
    """An enqueuer was cut off after its first group; by the time it comes back, that group is published."""
    small = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"group_documents": 1})})
    first = Workshop(small)
    shelf = Shelf({name: (f"about {name}", "1") for name in "abc"})

    def cut_off(_: JobStatus) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.put(shelf, idempotency_key="k", on_staged=cut_off)
    first.work()
    done = first.index(shelf, idempotency_key="k")
    first.close()

    assert (done.state, counts(done)) == ("succeeded", {"total": 3, "indexed": 3})
    assert shelf.read == ["a", "b", "c"]
