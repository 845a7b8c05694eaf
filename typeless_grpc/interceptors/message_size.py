"""Refuses request messages that are too large or malformed, with a reason.

gRPC itself enforces a slightly higher limit, and its error has no reason: see `server.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.message import DecodeError, Message

from typeless_grpc.errors import InvalidInput, TooLarge
from typeless_grpc.interceptors.seam import Call, Handler, Interceptor


class MessageSizeInterceptor(Interceptor):
    """Checks every request message, including those of streams."""

    def __init__(self, max_message_bytes: int) -> None:
        self._max_bytes = max_message_bytes

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
