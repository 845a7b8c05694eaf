"""Messages as protobuf JSON, and how a call ended as `google.rpc.Status` in JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
from concurrent.futures import Executor
from typing import Any, TypeVar

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from typeless_grpc.errors import InvalidInput, TypelessError
from typeless_grpc.interceptors.status import DETAILS_TRAILER, status_of

M = TypeVar("M", bound=Message)

# Larger messages are converted in threads: a transcript of an hour takes a second.
INLINE_BYTES = 4 * 1024

# As grpc-gateway maps them.
HTTP_STATUS = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class Json:
    """Converts messages, large ones in threads."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads

    async def parse(self, text: str | bytes, message: type[M]) -> M:
        """Return the message. Raises InvalidInput if text is not its JSON."""
        if len(text) <= INLINE_BYTES:
            return _parse(text, message)
        return await asyncio.get_running_loop().run_in_executor(self._threads, _parse, text, message)

    async def text(self, message: Message) -> str:
        """Return the message as JSON on one line."""
        if message.ByteSize() <= INLINE_BYTES:
            return _text(message)
        return await asyncio.get_running_loop().run_in_executor(self._threads, _text, message)


def _parse(text: str | bytes, message: type[M]) -> M:
    try:
        return json_format.Parse(text, message())
    except (json_format.ParseError, ValueError, RecursionError) as error:
        why = f"This is not the JSON of {message.DESCRIPTOR.full_name}: {error}"
        raise InvalidInput("", why, reason="JSON_INVALID") from error


def _text(message: Message) -> str:
    return json.dumps(json_format.MessageToDict(message), ensure_ascii=False, separators=(",", ":"))


def failure(error: TypelessError | grpc.aio.AioRpcError) -> status_pb2.Status:
    """Return how a call ended, as the caller would get it over gRPC."""
    if isinstance(error, TypelessError):
        return status_of(error)
    for name, value in error.trailing_metadata() or ():
        if name == DETAILS_TRAILER and isinstance(value, bytes):
            with contextlib.suppress(DecodeError):
                return status_pb2.Status.FromString(value)
    return status_pb2.Status(code=error.code().value[0], message=error.details() or "")


def as_dict(status: status_pb2.Status) -> dict[str, Any]:
    """Return a status as JSON has it: code, message, and details, each with its "@type"."""
    try:
        found = json_format.MessageToDict(status)
    except TypeError:  # a detail of a type that this server does not know
        found = {"code": status.code, "message": status.message}
    return found


def http_status(status: status_pb2.Status) -> int:
    """Return the HTTP status for a google.rpc.Status."""
    return HTTP_STATUS.get(_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN), 500)
