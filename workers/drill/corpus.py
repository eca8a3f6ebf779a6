"""The documents of a drill: what is written next, and the record of what was asked for and acknowledged.

Every paragraph begins with a mark that no other paragraph ever had, so a chunk tells by its text which writes it can
be of. What is chosen depends on the seed and on nothing else.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_WORDS = (
    *("mill", "race", "wheel", "stone", "grain", "water", "sluice", "weir", "flour", "sack", "bolt", "hopper", "gear"),
    *("shaft", "tail", "pond", "leat", "gate", "beam", "axle", "spill", "season", "harvest", "river", "bank", "bridge"),
    *("cart", "road", "market", "baker", "bread", "oven", "measure", "toll", "tithe", "lease", "ledger", "batch"),
)
_SENTENCE_WORDS = (6, 14)
_PARAGRAPH_SENTENCES = (2, 4)
# (share of the documents, paragraphs): most are one chunk, a few are dozens.
_SIZES = ((0.62, (1, 3)), (0.32, (6, 24)), (0.06, (60, 120)))
_DOCUMENTS_A_WRITE = (8, 28)
_SHARE_OF_DELETES = 0.2
_SHARE_OF_THE_SAME_AGAIN = 0.3  # of writes, that go to documents of the write before, which is under way still
_CHANGES = (
    ("new", 0.33),  # another text altogether
    ("edited", 0.3),  # a paragraph replaced, put in or taken out: most chunks stay as they are
    ("earlier", 0.12),  # A, then B, then A again
    ("twin", 0.1),  # the text of another document
    ("labelled", 0.08),  # the same text under other metadata
    ("same", 0.07),  # nothing changed
)


@dataclass(frozen=True, slots=True)
class Content:
    """What a document holds: its text, and a label in its filterable metadata."""

    text: str
    label: int


@dataclass(frozen=True, slots=True)
class Write:
    """One job. key: its idempotency key, by which it is known in the ledger. contents: by uri; None: the document is
    deleted. All of a write is ingested, or all of it is deleted."""

    key: str
    contents: Mapping[str, Content | None]

    @property
    def deletes(self) -> bool:
        return None in self.contents.values()


@dataclass(slots=True)
class _Event:
    key: str
    content: Content | None
    acknowledged: bool = False


class Record:
    """What was asked for of each document, in order: one write of a document begins when the one before it was
    acknowledged, so the newest is the last. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: dict[str, list[_Event]] = {}

    def begin(self, write: Write) -> None:
        with self._lock:
            for uri, content in write.contents.items():
                self._events.setdefault(uri, []).append(_Event(write.key, content))

    def acknowledge(self, write: Write) -> None:
        with self._lock:
            for uri in write.contents:
                self._events[uri][-1].acknowledged = True

    def uris(self) -> list[str]:
        with self._lock:
            return list(self._events)

    def since(self, uri: str, key: str | None) -> list[Content | None] | None:
        """What the document may hold, where the write of this key is published: that, or anything asked for later.

        key None: nothing of it is known to be published, so it may be absent too. None where the key is unknown.
        """
        with self._lock:
            events = self._events.get(uri, [])
            if key is None:
                return [None, *(event.content for event in events)]
            for place in range(len(events) - 1, -1, -1):
                if events[place].key == key:
                    return [event.content for event in events[place:]]
        return None

    def newest(self) -> dict[str, Content | None]:
        """What must be in the index of every document. Asserts that everything was acknowledged."""
        with self._lock:
            assert all(events[-1].acknowledged for events in self._events.values()), "a write was never acknowledged"
            return {uri: events[-1].content for uri, events in self._events.items()}


@dataclass(slots=True)
class Corpus:
    """Chooses writes to `documents` documents. name: what their uris and keys begin with."""

    name: str
    seed: int
    documents: int
    counts: dict[str, int] = field(default_factory=lambda: {"created": 0, "updated": 0, "deleted": 0, "same": 0})
    _random: random.Random = field(init=False)
    _history: dict[str, list[Content | None]] = field(default_factory=dict)
    _last: tuple[str, ...] = ()
    _writes: int = 0
    _marks: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(f"corpus {self.seed}")  # noqa: S311 - nothing secret is chosen

    def next(self) -> Write:
        """The next write; its counts are added to `counts`."""
        self._writes += 1
        chosen = self._random
        again = bool(self._last) and chosen.random() < _SHARE_OF_THE_SAME_AGAIN
        count = chosen.randint(*_DOCUMENTS_A_WRITE)
        pool: Sequence[str] = self._last if again else [f"{self.name}/{number}" for number in range(self.documents)]
        if chosen.random() < _SHARE_OF_DELETES and (there := [uri for uri in pool if self._current(uri) is not None]):
            uris = chosen.sample(there, min(len(there), count // 2))
            contents: dict[str, Content | None] = dict.fromkeys(uris)
        else:
            contents = {uri: self._changed(uri) for uri in chosen.sample(pool, min(len(pool), count))}
        for uri, content in contents.items():
            before = self._current(uri)
            what = "deleted" if content is None else "created" if before is None else "updated"
            self.counts["same" if content == before else what] += 1
            self._history.setdefault(uri, []).append(content)
        self._last = tuple(contents)
        return Write(f"{self.name}-{self._writes}", contents)

    def _current(self, uri: str) -> Content | None:
        return self._history.get(uri, [None])[-1]

    def _changed(self, uri: str) -> Content:
        chosen = self._random
        current = self._current(uri)
        if current is None:
            return Content(self._text(self._paragraphs(uri)), 0)
        change = chosen.choices([name for name, _ in _CHANGES], [share for _, share in _CHANGES])[0]
        earlier = [content for content in self._history[uri] if content is not None]
        other = self._current(chosen.choice(list(self._history))) or current
        match change:
            case "edited":
                text, label = self._edited(current.text), current.label
            case "earlier":
                return chosen.choice(earlier)
            case "twin":
                text, label = other.text, current.label
            case "labelled":
                text, label = current.text, current.label + 1
            case "same":
                return current
            case _:
                text, label = self._text(self._paragraphs(uri)), current.label
        return Content(text, label)

    def _paragraphs(self, uri: str) -> int:
        place = random.Random(f"size {self.seed} {uri}").random()  # noqa: S311 - a document stays about its size
        for share, sizes in _SIZES:
            if place < share:
                return self._random.randint(*sizes)
            place -= share
        return self._random.randint(*_SIZES[0][1])

    def _text(self, paragraphs: int) -> str:
        return "\n\n".join(self._paragraph() for _ in range(paragraphs))

    def _edited(self, text: str) -> str:
        parts = text.split("\n\n")
        place = self._random.randrange(len(parts))
        match self._random.randrange(3):
            case 0:
                parts.insert(place, self._paragraph())
            case 1 if len(parts) > 1:
                del parts[place]
            case _:
                parts[place] = self._paragraph()
        return "\n\n".join(parts)

    def _paragraph(self) -> str:
        self._marks += 1
        sentences = [
            " ".join(self._random.choices(_WORDS, k=self._random.randint(*_SENTENCE_WORDS))).capitalize() + "."
            for _ in range(self._random.randint(*_PARAGRAPH_SENTENCES))
        ]
        return f"Mark{self.seed}x{self._marks}. {' '.join(sentences)}"
