"""What the server answers when it refuses, with the codes and the wording of the real server.

Refused
├── BadRequest          INVALID_ARGUMENT
├── NotFound            NOT_FOUND
├── AlreadyExists       ALREADY_EXISTS
├── Unsupported         UNIMPLEMENTED
├── Stopping            UNAVAILABLE
├── Full                RESOURCE_EXHAUSTED
└── ServiceError        INTERNAL
    └── Broken          this collection is served no more; the others are

The engine raises plain `Exception` with a message, which `translate` maps, here and nowhere else; and a Rust panic as a
`BaseException` of its own.
"""

from __future__ import annotations

import errno

import grpc

# The engine's errors that are its own fault; every other message of the engine blames the request.
_ENGINE_FAULTS = (
    "Service runtime error",
    "Inconsistent storage",
    "Out of memory",
    "Operation cancelled",
    "Can't init WAL",
)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Refused(Exception):
    """The request is not carried out; `status` is the gRPC code and the message is for the caller."""

    status = grpc.StatusCode.UNKNOWN


class BadRequest(Refused):
    """The request is wrong."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(Refused):
    """There is no such collection, alias or point."""

    status = grpc.StatusCode.NOT_FOUND


class AlreadyExists(Refused):
    """There is such a collection already."""

    status = grpc.StatusCode.ALREADY_EXISTS


class Unsupported(Refused):
    """The real server can do this and the embedded one cannot."""

    status = grpc.StatusCode.UNIMPLEMENTED


class Stopping(Refused):
    """The server is about to end; the collection is still there for the next one."""

    status = grpc.StatusCode.UNAVAILABLE


class Full(Refused):
    """The disk has no room for more."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class ServiceError(Refused):
    """The engine failed."""

    status = grpc.StatusCode.INTERNAL


class Broken(ServiceError):
    """The collection cannot be served any more."""


def invalid(field: str, problem: str) -> BadRequest:
    """A field has a value that it cannot have, in the real server's words."""
    return BadRequest(f"Validation error in body: [{field}: {problem}]")


def missing_collection(name: str) -> NotFound:
    return NotFound(f"Not found: Collection `{name}` doesn't exist!")


def missing_point(point: object) -> NotFound:
    return NotFound(f"Not found: No point with id {point} found")


def is_panic(error: BaseException) -> bool:
    """True for a Rust panic; its class belongs to no module that can be imported."""
    return type(error).__name__ == "PanicException"


def translate(error: Exception) -> Refused:
    """The answer to an error of the engine. Raises nothing; what it does not know is INTERNAL."""
    message = str(error)
    if (isinstance(error, OSError) and error.errno in _NO_ROOM) or "No space left on device" in message:
        return Full(f"Service internal error: No space left on device: {message}")
    if type(error) is not Exception:
        # Values that do not fit the engine's types (a JSON path, a date, a number) fail while they are converted.
        fits = not isinstance(error, (ValueError, TypeError, OverflowError))
        return ServiceError(f"Service internal error: {error!r}") if fits else BadRequest(f"Wrong input: {message}")
    if message.startswith(_ENGINE_FAULTS):
        return ServiceError(f"Service internal error: {message.removeprefix('Service runtime error: ')}")
    if message.startswith("No point with id "):
        return missing_point(message.removeprefix("No point with id "))
    return BadRequest(f"Wrong input: {message}")
