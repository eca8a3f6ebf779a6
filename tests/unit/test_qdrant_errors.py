"""Every error that gRPC or qdrant-client can raise becomes one of ours."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from concurrent.futures import CancelledError

import grpc
import pytest
import qdrant_client
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse

from pipeline.errors import MillraceError, Permanent, Transient, VectorsFailed, VectorsRejected, VectorsUnavailable
from pipeline.vectors.qdrant_errors import BY_STATUS, FOREIGN, is_existing, is_missing, translate

ADDRESS = "127.0.0.1:6334"


class StatusError(grpc.RpcError):
    """As gRPC raises them: an RpcError that is a call too."""

    def __init__(self, code: grpc.StatusCode, details: str = "what the server said") -> None:
        super().__init__()
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


VENDOR_ERRORS: dict[type[BaseException], BaseException] = {
    QdrantException: QdrantException("retry-after is no number"),
    ResourceExhaustedResponse: ResourceExhaustedResponse("too many requests", 3),
}


def vendor_classes() -> Iterator[type[BaseException]]:
    """The exception classes that are defined anywhere in qdrant-client."""
    for module in pkgutil.walk_packages(qdrant_client.__path__, "qdrant_client."):
        if any(part in module.name for part in (".migrate", "fastembed", ".http")):
            continue  # tools, local inference and REST, which the store does not use
        for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(found, BaseException) and found.__module__.startswith("qdrant_client"):
                yield found


def test_every_status_of_grpc_is_mapped() -> None:
    assert set(BY_STATUS) == set(grpc.StatusCode) - {grpc.StatusCode.OK}


def test_every_error_class_of_qdrant_client_is_mapped() -> None:
    assert set(vendor_classes()) == set(VENDOR_ERRORS)
    for error in VENDOR_ERRORS.values():
        assert isinstance(error, FOREIGN)
        assert isinstance(translate(error, "docs", ADDRESS), VectorsUnavailable | VectorsRejected)


def test_every_error_class_of_grpc_is_mapped() -> None:
    classes = [
        found
        for _, found in inspect.getmembers(grpc, inspect.isclass)
        if issubclass(found, Exception) and found.__module__.startswith("grpc")
    ]
    assert classes
    for found in classes:
        assert issubclass(found, FOREIGN)
        assert isinstance(translate(found(), None, ADDRESS), VectorsUnavailable)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, VectorsUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, VectorsUnavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, VectorsUnavailable),
        (grpc.StatusCode.CANCELLED, VectorsUnavailable),
        (grpc.StatusCode.UNAUTHENTICATED, VectorsUnavailable),
        (grpc.StatusCode.INTERNAL, VectorsFailed),
        (grpc.StatusCode.INVALID_ARGUMENT, VectorsRejected),
        (grpc.StatusCode.NOT_FOUND, VectorsRejected),
        (grpc.StatusCode.UNIMPLEMENTED, VectorsRejected),
    ],
)
def test_a_status_says_whether_to_try_again_and_names_the_collection(
    code: grpc.StatusCode, expected: type[MillraceError]
) -> None:
    error = translate(StatusError(code), "docs", ADDRESS)
    assert type(error) is expected
    assert isinstance(error, Permanent if expected is VectorsRejected else Transient)
    assert ADDRESS in str(error)
    assert "'docs'" in str(error)
    assert "what the server said" in str(error)
    assert code.name in str(error)


def test_a_message_over_the_size_limit_is_never_tried_again() -> None:
    details = "CLIENT: Received message larger than max (5 vs. 4)"
    error = translate(StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, details), "docs", ADDRESS)
    assert isinstance(error, VectorsRejected)
    assert "MILLRACE_QDRANT__UPSERT_POINTS" in str(error)


def test_an_error_without_a_text_is_named_by_its_class() -> None:
    assert "CancelledError" in str(translate(CancelledError(), "docs", ADDRESS))


def test_missing_and_existing_collections_are_told_by_status() -> None:
    assert is_missing(StatusError(grpc.StatusCode.NOT_FOUND))
    assert not is_missing(StatusError(grpc.StatusCode.INVALID_ARGUMENT))
    assert not is_missing(ValueError())
    assert is_existing(StatusError(grpc.StatusCode.ALREADY_EXISTS))
    assert is_existing(StatusError(grpc.StatusCode.INVALID_ARGUMENT, "Wrong input: Collection `x` already exists!"))
    assert not is_existing(StatusError(grpc.StatusCode.INVALID_ARGUMENT, "Wrong input: no"))
