"""Refuses request messages that are too large, have too many fields or are malformed, with a reason.

gRPC itself enforces a slightly higher limit, and its error has no reason: see `server.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.message import DecodeError, Message

from typeless_grpc.errors import InvalidInput, TooLarge
from typeless_grpc.interceptors.seam import Call, Handler, Interceptor
from typeless_grpc.interceptors.wire_format import has_more_fields

# Bounds the memory of a parsed message; the largest useful request, a batch with all its options, has fewer.
MAX_FIELDS = 100_000


class MessageSizeInterceptor(Interceptor):
    """Checks every request message, including those of streams."""

    def __init__(self, max_message_bytes: int) -> None:
        self._max_bytes = max_message_bytes

    def deserializer(self, inner: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        """Count a message's fields before it is parsed."""
        kind = getattr(inner, "__self__", None)  # `FromString` is bound to its message class
        if not (isinstance(kind, type) and issubclass(kind, Message)):
            return inner  # a method whose requests are not messages
        descriptor: Any = kind.DESCRIPTOR

        def deserialize(data: bytes) -> Any:
            if has_more_fields(data, descriptor, MAX_FIELDS):
                text = f"The request has more than {MAX_FIELDS} fields, the most that are accepted."
                raise TooLarge(text, reason="TOO_MANY_FIELDS")
            return inner(data)

        return deserialize

    async def run(self, handler: Handler, requests: AsyncIterator[Any], call: Call) -> Any:
        """Check requests as they are read."""
        return await handler(self._checked(requests), call)

    async def _checked(self, requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        try:
            async for request in requests:
                self._check(request)
                yield request
        except DecodeError as error:
            raise InvalidInput(
                "", "The request is not a valid message of its type.", reason="MESSAGE_MALFORMED"
            ) from error

    def _check(self, request: Message) -> None:
        if (size_bytes := request.ByteSize()) > self._max_bytes:
            raise TooLarge(
                f"The request has {size_bytes} bytes; at most {self._max_bytes} are accepted. Send larger audio with "
                "UploadService or StreamTranscribe.",
                reason="MESSAGE_TOO_LARGE",
            )
