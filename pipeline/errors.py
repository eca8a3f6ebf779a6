"""Everything that Millrace raises, drawn once.

MillraceError
├── Transient                    try again: the same call may succeed later
│   ├── Unavailable              a dependency is away (nobody is blamed)
│   │   ├── LedgerUnavailable    Postgres
│   │   │   └── LedgerFull       it has no room on its disk
│   │   ├── BrokerUnavailable    Redis
│   │   ├── VectorsUnavailable   Qdrant
│   │   │   └── VectorsFull      it has no room on its disk
│   │   ├── ProviderUnavailable  who embeds for money: it does not answer, or takes nothing now
│   │   │   ├── ProviderLimited  it asks to wait
│   │   │   ├── KeyRejected      it does not know the key, or the key may not do this
│   │   │   └── QuotaExhausted   the account has no money left
│   │   ├── CollectionSwitching  it gets other vectors at this moment
│   │   ├── SourceUnavailable    a web server, a file system
│   │   └── ExtractorUnavailable the process that reads documents
│   ├── VectorsFailed            Qdrant answered that it failed
│   ├── EmbeddingFailed          the model failed on these texts, and may not the next time
│   ├── BoughtElsewhere          another piece of work buys these texts already
│   ├── BudgetExhausted          no more may be spent
│   ├── BacklogFull              a limit of what may be on its way is reached
│   ├── LeaseLost                the work was taken over; drop the result
│   ├── DutyHeld                 another process runs that duty
│   └── WaitTimeout              wait() gave up; the job goes on
└── Permanent                    the same call will fail again
    ├── InvalidDocument          this document; the others go on
    │   ├── UnsupportedFormat
    │   ├── ExtractionFailed
    │   ├── ExtractionOverLimit
    │   ├── EmptyDocument
    │   └── DocumentTooLarge
    ├── SourceRefused            a guard said no (root, link, address, scheme)
    ├── InvalidRequest           the caller's input
    │   ├── InvalidSettings
    │   ├── InvalidFilter
    │   ├── UnknownCollection
    │   ├── UnknownJob
    │   ├── UnknownDeadLetter
    │   ├── UnknownDuty
    │   ├── UnknownBatch         of the Batch API
    │   ├── CollectionMismatch
    │   ├── IdempotencyConflict
    │   ├── WebhookRejected      what came is no webhook of ours
    │   └── DeletionRefused
    ├── IllegalTransition        a state machine was asked for a step that it does not have
    ├── SchemaMismatch           the database is older or newer than this code
    ├── ModelUnavailable         the embedding model cannot be loaded here
    ├── InvalidVectors           what came back is not a vector of this model
    ├── VectorsRejected          Qdrant refused the request
    └── StackError               the embedded stack
        ├── StackRunning
        ├── StackNotRunning
        ├── NotDrillable
        └── PartFailed

The docstring of an error is its default message and says the remedy; a message given at the raise names the thing.
"""

from __future__ import annotations

import inspect


class MillraceError(Exception):
    """Something went wrong in Millrace."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or type(self).__name__))


class Transient(MillraceError):
    """This may work when tried again."""


class Permanent(MillraceError):
    """This will fail again unless something is changed."""


class Unavailable(Transient):
    """A service that Millrace depends on does not answer; see `millrace status`."""


class LedgerUnavailable(Unavailable):
    """Postgres does not answer. Check MILLRACE_POSTGRES__URL, or start the embedded stack with `millrace up`."""


class LedgerFull(LedgerUnavailable):
    """Postgres has no room left on its disk. Work waits, and goes on by itself when there is room again."""


class BrokerUnavailable(Unavailable):
    """Redis does not answer. Check MILLRACE_REDIS__URL; jobs are safe in Postgres and go on when it is back."""


class VectorsUnavailable(Unavailable):
    """Qdrant does not answer. Check MILLRACE_QDRANT__URL."""


class VectorsFull(VectorsUnavailable):
    """Qdrant has no room left on its disk. Work waits, and goes on by itself when there is room again."""


class ProviderUnavailable(Unavailable):
    """The embedding provider does not answer. Check MILLRACE_OPENAI__BASE_URL; work goes on by itself when it does."""


class ProviderLimited(ProviderUnavailable):
    """The embedding provider asks to wait. Work goes on by itself; raise the limits of the account to go faster."""

    def __init__(self, message: str | None = None, seconds: float | None = None) -> None:
        """seconds: until it may be asked again, where that is known."""
        super().__init__(message)
        self.seconds = seconds


class KeyRejected(ProviderUnavailable):
    """The embedding provider rejects the key. Set MILLRACE_OPENAI__API_KEY to a valid one and restart the workers."""


class QuotaExhausted(ProviderUnavailable):
    """The account at the embedding provider is out of credit. Top it up; work goes on by itself."""


class CollectionSwitching(Unavailable):
    """The collection gets the vectors of another model at this moment; the work is done again with those."""


class SourceUnavailable(Unavailable):
    """The source of a document does not answer; try again later."""


class ExtractorUnavailable(Unavailable):
    """No process can be started that reads documents; the log of the worker says why."""


class VectorsFailed(Transient):
    """Qdrant failed while it served the request; its log says why."""


class EmbeddingFailed(Transient):
    """The embedding model failed on these texts; if memory is short, lower MILLRACE_EMBEDDING__MAX_BATCH_TOKENS."""


class BoughtElsewhere(Transient):
    """Another piece of work buys these texts already; this one goes on when they are there."""


class BudgetExhausted(Transient):
    """No more may be spent; raise the budget (`millrace cost --set-budget`) and resume the job (`millrace resume`)."""


class BacklogFull(Transient):
    """Too much is on its way already; try again when workers have caught up, or wait for them (`--when-full wait`)."""


class LeaseLost(Transient):
    """This work was taken over by another worker; its result here is dropped."""


class DutyHeld(Transient):
    """Another process runs this duty; `millrace duties` shows which, and when it is done."""


class WaitTimeout(Transient):
    """The job did not finish in the time given; it goes on. Look at it with `millrace job ID`."""


class InvalidDocument(Permanent):
    """This document cannot be indexed."""


class UnsupportedFormat(InvalidDocument):
    """No extractor knows this format. Convert the document to text, Markdown, HTML or PDF."""


class ExtractionFailed(InvalidDocument):
    """No text could be taken from this document; check that it opens in another program."""


class ExtractionOverLimit(InvalidDocument):
    """The document took more than it may; raise the limit in section extraction of the settings, or split it."""


class EmptyDocument(InvalidDocument):
    """The document has no text. Leave it out, or delete it from the collection if it should be gone."""


class DocumentTooLarge(InvalidDocument):
    """The document is over the limit. Raise MILLRACE_SOURCES__MAX_BYTES or split it."""


class SourceRefused(Permanent):
    """A guard refused this source; see docs/configuration.md, section sources."""


class InvalidRequest(Permanent):
    """The request cannot be carried out as it is."""


class InvalidSettings(InvalidRequest):
    """A setting has a value that it cannot have; see docs/configuration.md."""


class InvalidFilter(InvalidRequest):
    """A filter must be KEY=VALUE on a declared field of the collection."""


class UnknownCollection(InvalidRequest):
    """There is no such collection; `millrace collections` lists them, `millrace ingest` makes one."""


class UnknownJob(InvalidRequest):
    """There is no such job; `millrace jobs` lists them."""


class UnknownDeadLetter(InvalidRequest):
    """There is no such dead letter; `millrace dead` lists them. Resolved ones are dropped after a week."""


class UnknownDuty(InvalidRequest):
    """There is no duty of this name; `millrace duties` lists them."""


class UnknownBatch(InvalidRequest):
    """There is no such batch of the Batch API; `millrace batches` lists them."""


class CollectionMismatch(InvalidRequest):
    """The collection was made with another model; use that model, or another collection."""


class IdempotencyConflict(InvalidRequest):
    """This idempotency key was used for another request; choose a new key."""


class WebhookRejected(InvalidRequest):
    """This is no webhook of ours: its signature does not fit, or it is too old. Answer it with status 400."""


class DeletionRefused(InvalidRequest):
    """More than half of the documents would be deleted; pass force (`--force`) if that is meant."""


class IllegalTransition(Permanent):
    """A state machine has no such step."""


class SchemaMismatch(Permanent):
    """The database schema is not the one that this version needs; run `millrace migrate`."""


class ModelUnavailable(Permanent):
    """The embedding model cannot be loaded; see docs/configuration.md, section embedding."""


class InvalidVectors(Permanent):
    """The embedding provider returned something that is not a vector of this model."""


class VectorsRejected(Permanent):
    """Qdrant refused the request."""


class StackError(Permanent):
    """The embedded stack could not do that."""


class StackRunning(StackError):
    """A stack is running on this home already; `millrace status` shows it, `millrace down` stops it."""


class StackNotRunning(StackError):
    """No stack is running on this home; start it with `millrace up`."""


class NotDrillable(StackError):
    """This stack was not started to be drilled; `millrace up --drillable` marks one whose parts may be killed."""


class PartFailed(StackError):
    """A part of the stack did not start; its log says why."""
