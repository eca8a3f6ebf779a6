"""gRPC around plain functions: every method of a service works or answers UNIMPLEMENTED with its own name."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from pipeline.observe import logger
from workers.embedded.vector_server.errors import Refused, ServiceError, Unsupported, is_panic, translate

log = logger("vector_server.rpc")

Call = Callable[[Any], Any]  # request -> response, raising Refused or an error of the engine

# As on the real server, anybody may ask whether it is alive.
OPEN_METHODS = frozenset({"/qdrant.Qdrant/HealthCheck"})


def service_handler(service: ServiceDescriptor, calls: Mapping[str, Call]) -> grpc.GenericRpcHandler[Any, Any]:
    """A handler for all methods of a service; those that `calls` does not name are refused by name."""
    unknown = set(calls) - {method.name for method in service.methods}
    if unknown:
        raise LookupError(f"{service.full_name} has no {sorted(unknown)}")
    handlers = {}
    for method in service.methods:
        full_name = f"{service.full_name}/{method.name}"
        call = calls.get(method.name) or _unsupported(full_name)
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(
            _serve(full_name, call),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _unsupported(full_name: str) -> Call:
    def refuse(_: Any) -> Any:
        raise Unsupported(f"{full_name} is not implemented by the embedded vector server")

    return refuse


def _serve(full_name: str, call: Call) -> Callable[[Any, grpc.ServicerContext], Any]:
    def handle(request: Any, context: grpc.ServicerContext) -> Any:
        started = time.perf_counter()
        try:
            response = call(request)
        except BaseException as error:  # noqa: BLE001 - a panic of the engine is none of Exception
            refused = _refusal(full_name, error)
        else:
            if "time" in response.DESCRIPTOR.fields_by_name:
                response.time = time.perf_counter() - started
            return response
        context.abort(refused.status, str(refused))

    return handle


def _refusal(full_name: str, error: BaseException) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, Exception):
        refused = translate(error)
        if isinstance(refused, ServiceError):
            log.error("%s failed", full_name, exc_info=error)
        return refused
    if is_panic(error):
        log.error("%s: the engine panicked", full_name, exc_info=error)
        return ServiceError(f"Service internal error: the engine panicked: {error}")
    raise error


class KeyCheck(grpc.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs alone
    """Lets in who sends the API key, as `api-key` or as bearer token."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def intercept_service(self, continuation: Any, call: Any) -> Any:
        if call.method in OPEN_METHODS:
            return continuation(call)
        headers = {name: value for name, value in call.invocation_metadata or () if isinstance(value, str)}
        sent = headers.get("api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(sent.encode(), self._key):
            return continuation(call)
        return _deny("Invalid API key or JWT" if sent else "Must provide an API key or an Authorization bearer token")


def _deny(reason: str) -> grpc.RpcMethodHandler[Any, Any]:
    def refuse(_: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

    return grpc.unary_unary_rpc_method_handler(refuse)
