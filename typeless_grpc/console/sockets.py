"""Calls over WebSocket, for streams of requests: `StreamTranscribe` and `UploadAudio`.

A text message is one request or response in protobuf JSON, a binary message the raw bytes of a request (audio). An
empty text message half-closes the call. A call that fails ends with `{"error": Status}` and the close code 4000 plus
the number of its gRPC code.

Messages are not buffered. A message is read only when gRPC has taken the one before, and a response is read only when
the socket has taken the one before; both sides then stop by their flow control.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import code_pb2
from starlette.websockets import WebSocket, WebSocketDisconnect

from typeless_grpc.console.calls import PROTOCOL, metadata, timeout_s
from typeless_grpc.console.contract import Method
from typeless_grpc.console.messages import Json, as_dict, failure
from typeless_grpc.errors import InvalidInput, TypelessError, WrongState

CLOSE_CODES_FROM = 4000
NORMAL_CLOSURE = 1000


class _Left(Exception):
    """The peer closed the socket, or does not read."""


@dataclass(frozen=True)
class SocketCalls:
    """Carries the calls of sockets."""

    channel: grpc.aio.Channel
    json: Json

    async def serve(self, socket: WebSocket, method: Method) -> None:
        """Run one call for one socket, until either of them ends. If the peer leaves, the call is cancelled."""
        protocol = PROTOCOL if PROTOCOL in socket.scope["subprotocols"] else None
        await socket.accept(subprotocol=protocol)
        carrier = _Carrier(socket, method, self.json)
        with contextlib.suppress(_Left):
            try:
                call = method.on(self.channel)(metadata=metadata(socket.scope), timeout=timeout_s(socket.scope))
                await carrier.carry(call)
            except (TypelessError, grpc.aio.AioRpcError) as error:
                await carrier.fail(error)
            else:
                await carrier.close(NORMAL_CLOSURE)


class _Carrier:
    """One socket and its call."""

    def __init__(self, socket: WebSocket, method: Method, json: Json) -> None:
        self._socket = socket
        self._method = method
        self._json = json

    async def carry(self, call: Any) -> None:
        """Carry messages both ways until the call ends. Raises AioRpcError, InvalidInput, WrongState or _Left."""
        up, down = asyncio.create_task(self._requests(call)), asyncio.create_task(self._responses(call))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            # `up` ends only by an error. If both have ended, the status of the call says more.
            await (down if down.done() else up)
        finally:
            call.cancel()
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _requests(self, call: Any) -> None:
        """Pass messages of the socket to the call. Ends only by an error."""
        is_half_closed = False
        while True:
            message = await self._receive()
            if is_half_closed:
                raise WrongState("An empty message has ended the requests already.", reason="REQUESTS_ENDED")
            if message == "":
                is_half_closed = True
                await call.done_writing()
                continue
            request = await self._request(message)
            try:
                await call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await asyncio.Event().wait()  # the call has ended, and `_responses` has its status

    async def _responses(self, call: Any) -> None:
        """Pass responses of the call to the socket. Raises AioRpcError if the call fails."""
        if not self._method.streams_responses:
            await self._send(await self._json.text(await call))
            return
        while (response := await call.read()) is not grpc.aio.EOF:
            await self._send(await self._json.text(response))
        if (code := await call.code()) is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(
                code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
            )

    async def _request(self, message: str | bytes) -> Any:
        if isinstance(message, str):
            return await self._json.parse(message, self._method.request)
        if not self._method.data_field:
            raise InvalidInput("", "This call has no raw bytes: send JSON as text.", reason="JSON_INVALID")
        return self._method.request(**{self._method.data_field: message})

    async def _receive(self) -> str | bytes:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise _Left
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if text is None else text

    async def _send(self, text: str) -> None:
        try:
            await self._socket.send_text(text)
        except WebSocketDisconnect as error:
            raise _Left from error

    async def fail(self, error: TypelessError | grpc.aio.AioRpcError) -> None:
        """Send how the call failed, and close. Raises _Left."""
        status = failure(error)
        await self._send(json.dumps({"error": as_dict(status)}, ensure_ascii=False))
        await self.close(CLOSE_CODES_FROM + status.code, code_pb2.Code.Name(status.code))

    async def close(self, code: int, reason: str = "") -> None:
        """Close the socket. Raises _Left."""
        try:
            await self._socket.close(code, reason)
        except WebSocketDisconnect as error:
            raise _Left from error
