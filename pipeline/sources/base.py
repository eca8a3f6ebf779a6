"""What a source is: something that can be iterated for documents, and that knows afterwards what it did not see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pipeline.document import Document, Metadata, Validators


@dataclass(frozen=True, slots=True)
class Rejected:
    """A document that its source could not hand over. `error` names it and says why; the others go on."""

    uri: str
    error: str


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A document that is as the ledger has it, said without reading it. It counts as unchanged.

    read: reads it after all. Called where the ledger has another version by the time this is counted; without it the
    document is rejected then, to be ingested again.
    """

    uri: str
    read: Callable[[], Document | Rejected] | None = field(default=None, compare=False)


Item = Document | Rejected | Unchanged

# What the ledger knows: asked with uri -> the metadata that its document would have now, it answers with uri -> the
# validators of the published version, for those (and only those) that need not be read again if these still hold.
Known = Callable[[Mapping[str, Metadata]], Mapping[str, Validators]]


@runtime_checkable
class Source(Protocol):
    """A stream of documents, never held in memory as a whole.

    Iterating yields each document once, in an order that is the same for the same input, or `Rejected` in place of
    one that cannot be read (and `Unchanged`, where it was asked by `Conditional.since`). A source can be iterated
    again; the properties tell about the newest iteration.

    A source of your own (a SQL query, say) is any object with this shape; a generator in `__iter__` is enough.
    docs/sources.md has an example.
    """

    def __iter__(self) -> Iterator[Item]: ...

    @property
    def scope(self) -> str | None:
        """What the uri of every document of this source, and of no other, begins with; None where there is no such.

        `sync` compares the listing with the documents of the ledger below this prefix and deletes what is gone. A
        source whose scope is None (a file, pages, inline documents) cannot be synchronised.
        """

    @property
    def complete(self) -> bool:
        """Whether the newest iteration ran to its end and every path could be listed."""

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Uris and uri prefixes that the newest iteration could not look into, in the order in which they were met.

        Nothing at or below one of them may be taken for deleted. Before an iteration has ended this holds `scope`
        too, so that a listing that broke off protects everything.
        """


@runtime_checkable
class Conditional(Protocol):
    """What a source can have besides: telling without reading a document, by its validators, that it is as it was."""

    def since(self, known: Known) -> Iterator[Item]:
        """As `__iter__`, with `Unchanged` in place of a document whose validators are those that `known` answers.

        Ask for some hundreds of uris at a time. Documents that are yielded carry their `validators`.
        """


def documents_since(items: Iterable[Item], known: Known) -> Iterator[Item]:
    """The documents of a source or stream; where it is conditional, those that are as they were are not read."""
    return items.since(known) if isinstance(items, Conditional) else iter(items)


def skipped(items: object) -> int:
    """How many files the newest iteration left out because no extractor knows their formats; 0 where nobody counts.

    A source that counts them has the attribute `skipped`.
    """
    found = getattr(items, "skipped", 0)
    return found if isinstance(found, int) else 0
