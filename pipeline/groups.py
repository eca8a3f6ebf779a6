"""The stream of documents, cut into groups that are staged in one transaction each.

A group is in memory twice or three times while it is staged. Where the process has more resident than
`memory.ingest_mb`, groups are halved, again and again down to a sixteenth; as it gets better they grow back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from pipeline import resident
from pipeline.document import Document, Metadata
from pipeline.observe import count, logger
from pipeline.resident import MIB
from pipeline.settings import IngestSettings, MemorySettings
from pipeline.sources.base import Item, Rejected, Unchanged

# A name of a metric: how often groups were made smaller.
HALVED = "ingest_groups_halved"

# Smaller than this share they are not made: each is a transaction.
_LEAST_SHARE = 1 / 16
# They grow again when so much of the budget is free.
_FREE_SHARE = 0.1
# Memory is looked at after each group, and within one each time that so many bytes have come.
_LOOK_BYTES = MIB

_log = logger("ingest")


class Sizes:
    """How much is staged at once: what the settings say, or less of it while memory is short."""

    def __init__(
        self,
        settings: IngestSettings,
        memory: MemorySettings,
        resident_bytes: Callable[[], int] = resident.resident_bytes,
    ) -> None:
        """resident_bytes: how much this process has."""
        self._settings = settings
        self._budget = memory.ingest_mb * MIB
        self._resident = resident_bytes
        self._share = 1.0
        self._told = False

    @property
    def documents(self) -> int:
        return max(1, int(self._settings.group_documents * self._share))

    @property
    def size(self) -> int:
        """Bytes."""
        return max(1, int(self._settings.group_bytes * self._share))

    def look(self) -> None:
        """Looks at the memory of this process, and makes groups smaller or larger."""
        rss = self._resident()
        if rss > self._budget and self._share > _LEAST_SHARE:
            self._share /= 2
            count(HALVED)
            resident.trim()  # what the last group took may be free by now
            if not self._told:
                self._told = True
                _log.warning(
                    "%d MB are resident, and memory.ingest_mb is %d: groups of documents are made smaller",
                    *(rss // MIB, self._budget // MIB),
                )
        elif rss < self._budget * (1 - _FREE_SHARE) and self._share < 1:
            self._share *= 2


@dataclass(slots=True)
class Group:
    """What is staged in one transaction; every uri in one of the lists, once."""

    documents: list[Document]
    rejected: list[Rejected]
    unchanged: list[Unchanged]

    def uris(self) -> list[str]:
        items: tuple[Item, ...] = (*self.documents, *self.rejected, *self.unchanged)
        return [item.uri for item in items]


def groups(source: Iterable[Item], metadata: Metadata, sizes: Sizes) -> Iterator[Group]:
    """Cuts the stream by count and bytes. In a group, what came last of a uri is what is wanted."""
    found: dict[str, Item] = {}
    size = looked = 0
    for item in source:
        found.pop(item.uri, None)
        if isinstance(item, Document):
            found[item.uri] = with_metadata(item, metadata)
            size += len(item.data)
        else:
            found[item.uri] = item
        if size - looked >= _LOOK_BYTES:
            looked = size
            sizes.look()
        if len(found) >= sizes.documents or size >= sizes.size:
            yield _group(found)
            found, size, looked = {}, 0, 0
            sizes.look()
    if found:
        yield _group(found)


def with_metadata(item: Document, metadata: Metadata) -> Document:
    """The document with the metadata of its job added to its own."""
    return replace(item, metadata={**item.metadata, **metadata}) if metadata else item


def _group(found: Mapping[str, Item]) -> Group:
    group = Group([], [], [])
    for item in found.values():
        if isinstance(item, Document):
            group.documents.append(item)
        elif isinstance(item, Rejected):
            group.rejected.append(item)
        else:
            group.unchanged.append(item)
    return group
