"""The Open Inference Protocol over gRPC, by KServe's own servicer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from kubevox.errors import BusyError
from kubevox.serving.library import (
    DataPlane,
    InferenceServicer,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    add_GRPCInferenceServiceServicer_to_server,
    logger,
)

__all__ = ["GrpcServer"]

_CLOSED = ("RepositoryModelLoad", "RepositoryModelUnload")


class GrpcServer:
    """KServe's gRPC service on an address of our choice, without the calls that would unload the model.

    KServe's own server listens on all addresses, prints a traceback for every bad request, and knows no full queue.

    Args:
        dataplane: what answers.
        host: the address to listen on.
        port: the port.
        most_bytes: the largest message.
        most_calls: that are received or answered at once; more are RESOURCE_EXHAUSTED.
    """

    def __init__(self, dataplane: DataPlane, host: str, port: int, most_bytes: int, most_calls: int) -> None:
        self._server = aio.server(
            interceptors=(_Statuses(),),
            maximum_concurrent_rpcs=most_calls,
            options=[("grpc.max_receive_message_length", most_bytes), ("grpc.max_send_message_length", most_bytes)],
        )
        add_GRPCInferenceServiceServicer_to_server(InferenceServicer(dataplane, None), self._server)
        self._server.add_insecure_port(f"{host}:{port}")

    async def start(self) -> None:
        """Listen."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take nothing new; return when what is in flight is answered, or the grace is over."""
        await self._server.stop(grace_s)


class _Statuses(aio.ServerInterceptor):
    """What goes wrong, as gRPC's statuses: a client's errors INVALID_ARGUMENT, a full queue RESOURCE_EXHAUSTED."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        closed = details.method.rpartition("/")[2] in _CLOSED
        answer = handler.unary_unary

        async def checked(request: Any, context: aio.ServicerContext) -> Any:
            if closed:
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not served here")
            try:
                return await answer(request, context)
            except InvalidInput as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except BusyError as error:
                context.set_trailing_metadata((("retry-after", f"{error.retry_after_s:.0f}"),))
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            except ModelNotFound as error:
                await context.abort(grpc.StatusCode.NOT_FOUND, str(error.reason))
            except ModelNotReady as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                # Whatever the fields of a client's message make KServe's parsers raise.
                logger.info("grpc: %s: %.200s", type(error).__name__, error)
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, f"not a request that can be read: {type(error).__name__}"
                )

        return grpc.unary_unary_rpc_method_handler(
            checked, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )
