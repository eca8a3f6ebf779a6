"""The border for Qdrant's errors: each that qdrant-client or gRPC can raise becomes one of ours, here and only here."""

from __future__ import annotations

from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout

import grpc
from qdrant_client.common.client_exceptions import QdrantException

from pipeline.errors import MillraceError, VectorsFailed, VectorsFull, VectorsRejected, VectorsUnavailable

Translated = type[VectorsUnavailable] | type[VectorsFailed] | type[VectorsRejected]

# A wrong key is a fault of the deployment, not of the documents in hand: they wait until it is put right.
BY_STATUS: dict[grpc.StatusCode, Translated] = {
    grpc.StatusCode.UNAVAILABLE: VectorsUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: VectorsUnavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: VectorsUnavailable,
    grpc.StatusCode.CANCELLED: VectorsUnavailable,
    grpc.StatusCode.ABORTED: VectorsUnavailable,
    grpc.StatusCode.UNAUTHENTICATED: VectorsUnavailable,
    grpc.StatusCode.INTERNAL: VectorsFailed,
    grpc.StatusCode.UNKNOWN: VectorsFailed,
    grpc.StatusCode.DATA_LOSS: VectorsFailed,
    grpc.StatusCode.INVALID_ARGUMENT: VectorsRejected,
    grpc.StatusCode.NOT_FOUND: VectorsRejected,
    grpc.StatusCode.ALREADY_EXISTS: VectorsRejected,
    grpc.StatusCode.PERMISSION_DENIED: VectorsRejected,
    grpc.StatusCode.FAILED_PRECONDITION: VectorsRejected,
    grpc.StatusCode.OUT_OF_RANGE: VectorsRejected,
    grpc.StatusCode.UNIMPLEMENTED: VectorsRejected,
}

# gRPC says RESOURCE_EXHAUSTED for a message over a size limit too; the same message is over it for ever.
_TOO_LARGE = "larger than max"

# In whatever status: the real server says INTERNAL, which is nobody's fault in this case.
_NO_ROOM = ("no space left on device", "out of disk", "not enough space available", "disk quota exceeded")

REMEDIES = {
    grpc.StatusCode.UNAUTHENTICATED: "Check the key in MILLRACE_QDRANT__URL or MILLRACE_QDRANT__API_KEY.",
    grpc.StatusCode.PERMISSION_DENIED: "Check what the key in MILLRACE_QDRANT__API_KEY may do.",
    grpc.StatusCode.DEADLINE_EXCEEDED: "Raise MILLRACE_QDRANT__TIMEOUT where it is only slow.",
    grpc.StatusCode.UNAVAILABLE: "Check MILLRACE_QDRANT__URL; `millrace status` shows what runs.",
}

# Raised by qdrant-client and gRPC when a call is made; anything else is a fault of ours and passes as it is.
FOREIGN = (
    grpc.RpcError,
    grpc.FutureTimeoutError,
    grpc.FutureCancelledError,
    QdrantException,
    CancelledError,
)


def status_of(error: BaseException) -> grpc.StatusCode | None:
    """The gRPC status of an error, None where it has none."""
    code = error.code() if isinstance(error, grpc.RpcError) and callable(getattr(error, "code", None)) else None
    return code if isinstance(code, grpc.StatusCode) else None


def is_silence(error: BaseException) -> bool:
    """Did nobody answer? Then the next call need not be tried at once; any answer, also a refusal, is one."""
    return status_of(error) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def say(error: BaseException) -> str:
    """An error in the words of whoever raised it."""
    return _details(error) or _say(error)


def is_missing(error: BaseException) -> bool:
    """Does the error say that the collection does not exist?"""
    return status_of(error) is grpc.StatusCode.NOT_FOUND


def is_existing(error: BaseException) -> bool:
    """Does the error say that the collection exists already? (Older servers say it with INVALID_ARGUMENT.)"""
    return status_of(error) is grpc.StatusCode.ALREADY_EXISTS or (
        status_of(error) is grpc.StatusCode.INVALID_ARGUMENT and "already exists" in _details(error)
    )


def translate(error: BaseException, collection: str | None, address: str) -> MillraceError:
    """What of ours a foreign error is; `address` must carry no key, for it is shown."""
    code = status_of(error)
    where = f"Qdrant at {address}" + (f", collection {collection!r}" if collection else "")
    if code is not None:
        kind = BY_STATUS[code]
        details = _details(error)
        if any(words in details.lower() for words in _NO_ROOM):
            return VectorsFull(
                f"{where} has no room on its disk: {details}. Work goes on by itself when there is room."
            )
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in details:
            return VectorsRejected(f"{where}: {details}. Lower MILLRACE_QDRANT__UPSERT_POINTS.")
        remedy = REMEDIES.get(code, "")
        return kind(f"{where}: {details or code.name} ({code.name}). {remedy}".rstrip())
    # Too many requests (QdrantException), an RpcError without a status, a future that was cancelled or ran out of time,
    # a channel closed under the call.
    return VectorsUnavailable(f"{where}: {_say(error)}")


def _details(error: BaseException) -> str:
    details = getattr(error, "details", None)
    return str(details() or "") if callable(details) else ""


def _say(error: BaseException) -> str:
    if isinstance(error, FutureTimeout | CancelledError):
        return type(error).__name__
    return str(error) or type(error).__name__
