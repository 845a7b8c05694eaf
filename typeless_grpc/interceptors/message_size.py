"""Refuses requests over the message limit, and bytes that are no message, with a reason of their own.

gRPC's core has the last word a little above the limit, and says only "larger than max": see `server.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.message import DecodeError, Message

from typeless_grpc.errors import InvalidInput, TooLarge
from typeless_grpc.interceptors.seam import Call, Handler, Interceptor


class MessageSizeInterceptor(Interceptor):
    """Looks at every request message, also inside a stream."""

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
            raise InvalidInput("", "The request is no message of its type.", reason="MESSAGE_MALFORMED") from error

    def _check(self, request: Message) -> None:
        if (size_bytes := request.ByteSize()) > self._max_bytes:
            raise TooLarge(
                f"The request has {size_bytes} bytes; at most {self._max_bytes} are taken. Larger audio goes through "
                "UploadService or StreamTranscribe.",
                reason="MESSAGE_TOO_LARGE",
            )
