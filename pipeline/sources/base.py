"""What a source is: something that can be iterated for documents, and that knows afterwards what it did not see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pipeline.document import Document


@dataclass(frozen=True, slots=True)
class Rejected:
    """A document that its source could not hand over. `error` names it and says why; the others go on."""

    uri: str
    error: str


@runtime_checkable
class Source(Protocol):
    """A stream of documents, never held in memory as a whole.

    Iterating yields each document once, in an order that is the same for the same input, or `Rejected` in place of
    one that cannot be read. A source can be iterated again; the properties tell about the newest iteration.

    A source of your own (a SQL query, say) is any object with this shape; a generator in `__iter__` is enough.
    """

    def __iter__(self) -> Iterator[Document | Rejected]: ...

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
