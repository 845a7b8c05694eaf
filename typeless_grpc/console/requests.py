"""Calls with a single request over HTTP: `POST /v1/JobsService/GetJob` with protobuf JSON.

One response is JSON. A stream of responses is JSON by lines, `{"result": …}`, as grpc-gateway has it, and `{"error":
Status}` is the last line if it fails. A call that fails before its first response has a Status as body, and the HTTP
status of its code.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from typeless_grpc.console.calls import metadata, timeout_s
from typeless_grpc.console.contract import Method
from typeless_grpc.console.messages import Json, as_dict, failure, http_status
from typeless_grpc.console.peers import SHARE, Peers
from typeless_grpc.errors import DeadlineExceeded, InvalidInput, Overloaded, TooLarge, TypelessError

JSON = "application/json"
LINES = "application/x-ndjson"
# Trailers of a call that become headers of the answer.
_SHOWN = ("x-request-id", "retry-after")


class Bodies:
    """Bounds the bodies of requests, in bytes: each, those of one visitor, and all that are in memory together."""

    def __init__(self, max_body_bytes: int, max_total_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._max_total_bytes = max_total_bytes
        self._used_bytes = 0
        self._by_visitor = Counter[str]()

    @contextmanager
    def body(self, visitor: str) -> Iterator[Body]:
        """Return an empty body; its bytes count until the context ends. visitor: see `Peers.visitor`."""
        body = Body(self, visitor)
        try:
            yield body
        finally:
            self._used_bytes -= len(body.data)
            self._by_visitor[visitor] -= len(body.data)
            if not self._by_visitor[visitor]:
                del self._by_visitor[visitor]

    def take(self, visitor: str, n_bytes: int, n_before: int) -> None:
        """Count the next bytes of a body. Raises TooLarge or Overloaded."""
        if n_before + n_bytes > self._max_body_bytes:
            raise TooLarge(
                f"The body has more than {self._max_body_bytes} bytes. Send large recordings to "
                "/v1/UploadService/UploadAudio, and name them by their uri.",
                reason="MESSAGE_TOO_LARGE",
            )
        share = self._max_total_bytes if visitor == "" else self._max_total_bytes // SHARE
        if self._used_bytes + n_bytes > self._max_total_bytes or self._by_visitor[visitor] + n_bytes > share:
            raise Overloaded("Too many large requests are under way.")
        self._used_bytes += n_bytes
        self._by_visitor[visitor] += n_bytes


@dataclass
class Body:
    """The bytes of one request, as they arrive."""

    bodies: Bodies
    visitor: str
    data: bytearray = field(default_factory=bytearray)

    def add(self, data: bytes) -> None:
        """Add the next bytes. Raises TooLarge or Overloaded."""
        self.bodies.take(self.visitor, len(data), len(self.data))
        self.data += data


@dataclass(frozen=True)
class RequestCalls:
    """Carries the calls of HTTP requests. arrival_timeout_s: for a body to arrive."""

    channel: grpc.aio.Channel
    json: Json
    peers: Peers
    bodies: Bodies
    arrival_timeout_s: float

    async def serve(self, request: Request, method: Method) -> Response:
        """Make the call, and return its answer. If the peer leaves, the call is cancelled."""
        try:
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
                raise InvalidInput("content-type", f"must be {JSON}", reason="HEADER_INVALID")
            message = await self._message(request, method)
            call = method.on(self.channel)(message, metadata=metadata(request.scope), timeout=timeout_s(request.scope))
            del message
            if method.streams_responses:
                return await self._lines(call)
            return await self._answer(request, call)
        except (TypelessError, grpc.aio.AioRpcError) as error:
            return error_response(error)

    async def _message(self, request: Request, method: Method) -> Any:
        """Read the body, within the bounds, and return the message that it is."""
        visitor = self.peers.visitor(request.client.host) if request.client else ""
        with self.bodies.body(visitor) as body:
            try:
                async with asyncio.timeout(self.arrival_timeout_s):
                    async for data in request.stream():
                        body.add(data)
            except TimeoutError as error:
                why = f"The request did not arrive within {self.arrival_timeout_s:g} s."
                raise DeadlineExceeded(why, reason="REQUEST_UNFINISHED") from error
            return await self.json.parse(bytes(body.data) or b"{}", method.request)

    async def _answer(self, request: Request, call: Any) -> Response:
        """Return the one response of a call. If the peer leaves before it, cancel the call."""
        leaving = asyncio.create_task(_left(request))
        answer = asyncio.ensure_future(call)
        try:
            await asyncio.wait({leaving, answer}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                call.cancel()
                return Response(status_code=499)  # as nginx has it; nobody reads it
            text = await self.json.text(await answer)
        finally:
            leaving.cancel()
            call.cancel()
        return Response(text, media_type=JSON, headers=_shown(await call.trailing_metadata()))

    async def _lines(self, call: Any) -> Response:
        """Return a stream of responses, once the first one is there: until then, a failure is an HTTP status."""
        try:
            first = await call.read()
        except BaseException:
            call.cancel()
            raise
        return StreamingResponse(self._written(call, first), media_type=LINES, headers={"x-accel-buffering": "no"})

    async def _written(self, call: Any, response: Any) -> AsyncIterator[str]:
        try:
            while response is not grpc.aio.EOF:
                yield f'{{"result":{await self.json.text(response)}}}\n'
                response = await call.read()
        except grpc.aio.AioRpcError as error:
            yield json.dumps({"error": as_dict(failure(error))}) + "\n"
        finally:
            call.cancel()


def error_response(error: TypelessError | grpc.aio.AioRpcError) -> Response:
    """Return the answer to a call that failed."""
    status = failure(error)
    trailers = error.trailing_metadata() if isinstance(error, grpc.aio.AioRpcError) else ()
    return JSONResponse(as_dict(status), http_status(status), headers=_shown(trailers))


def _shown(trailers: Iterable[tuple[str, str | bytes]] | None) -> Mapping[str, str]:
    return {name: value for name, value in trailers or () if name in _SHOWN and isinstance(value, str)}


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
