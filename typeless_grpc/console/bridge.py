"""The ASGI app: the page, and the bridge beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from typeless_grpc.console.activity import Activity
from typeless_grpc.console.calls import metadata
from typeless_grpc.console.contract import METHODS, Method
from typeless_grpc.console.messages import Json
from typeless_grpc.console.peers import Peers
from typeless_grpc.console.requests import Bodies, RequestCalls, error_response
from typeless_grpc.console.sockets import SocketCalls
from typeless_grpc.console.visitors import CheckedVisitors, Visitors
from typeless_grpc.errors import NotImplementedHere, TypelessError
from typeless_grpc.pb.v1 import models_pb2, models_pb2_grpc

PAGE = Path(__file__).with_name("page")
STREAM = METHODS["TranscriptionService", "StreamTranscribe"]
HEALTH_TIMEOUT_S = 5.0
CORS_MAX_AGE_S = 600


@dataclass(frozen=True)
class BridgeOptions:
    """Bounds of the bridge.

    origins: of other pages that may use it. max_body_bytes: of a request; max_bodies_bytes: of all that are in memory.
    arrival_timeout_s: for a request to arrive.
    """

    origins: Sequence[str]
    max_body_bytes: int
    max_bodies_bytes: int
    arrival_timeout_s: float


class Bridge:
    """Carries HTTP and WebSocket calls over a channel to this server's gRPC. `app` is its ASGI application."""

    def __init__(
        self, channel: grpc.aio.Channel, threads: Executor, peers: Peers, options: BridgeOptions, activity: Activity
    ) -> None:
        """threads: convert large messages. activity: see `activity.activity`."""
        json = Json(threads)
        self._sockets = SocketCalls(channel, json)
        self._activity = activity
        self._models = models_pb2_grpc.ModelServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)
        self._requests = RequestCalls(
            channel=channel,
            json=json,
            peers=peers,
            bodies=Bodies(options.max_body_bytes, options.max_bodies_bytes),
            arrival_timeout_s=options.arrival_timeout_s,
        )
        self._n_open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.app = Starlette(
            routes=[
                Route("/health", self._serve_health),
                Route("/v1/activity", self._serve_activity),
                Route("/v1/{service}/{method}", self._serve_request, methods=["POST"]),
                WebSocketRoute("/v1/stream", self._serve_stream),
                WebSocketRoute("/v1/{service}/{method}", self._serve_socket),
                Mount("/", _Page(directory=PAGE, html=True)),
            ],
            middleware=[
                Middleware(CheckedVisitors, visitors=Visitors(options.origins)),
                Middleware(
                    CORSMiddleware,
                    allow_origins=list(options.origins),
                    allow_methods=["POST"],
                    allow_headers=["content-type", "authorization", "x-api-key", "x-request-id", "grpc-timeout"],
                    expose_headers=["x-request-id", "retry-after"],
                    max_age=CORS_MAX_AGE_S,
                ),
            ],
        )

    async def idle(self) -> None:
        """Wait until no call is carried."""
        await self._idle.wait()

    async def _serve_request(self, request: Request) -> Response:
        method = METHODS.get((request.path_params["service"], request.path_params["method"]))
        if method is None:
            return error_response(_unknown(request.url.path))
        if method.streams_requests:
            return error_response(_unknown(request.url.path, "takes a stream of requests: open a WebSocket here"))
        return await self._requests.serve(request, method)

    async def _serve_stream(self, socket: WebSocket) -> None:
        await self._carry(socket, STREAM)

    async def _serve_socket(self, socket: WebSocket) -> None:
        method = METHODS.get((socket.path_params["service"], socket.path_params["method"]))
        if method is None:
            await socket.send_denial_response(error_response(_unknown(socket.url.path)))
        elif not method.streams_requests:
            why = "takes a single request: POST it here"
            await socket.send_denial_response(error_response(_unknown(socket.url.path, why)))
        else:
            await self._carry(socket, method)

    async def _carry(self, socket: WebSocket, method: Method) -> None:
        self._n_open += 1
        self._idle.clear()
        try:
            await self._sockets.serve(socket, method)
        finally:
            self._n_open -= 1
            if not self._n_open:
                self._idle.set()

    async def _serve_activity(self, request: Request) -> Response:
        """Answer callers that may list the models, and charge them for that call."""
        try:
            await self._models.ListModels(models_pb2.ListModelsRequest(), metadata=metadata(request.scope))
        except (TypelessError, grpc.aio.AioRpcError) as error:
            return error_response(error)
        return JSONResponse(self._activity())

    async def _serve_health(self, request: Request) -> Response:
        try:
            answer = await self._health.Check(
                health_pb2.HealthCheckRequest(), metadata=metadata(request.scope), timeout=HEALTH_TIMEOUT_S
            )
        except (TypelessError, grpc.aio.AioRpcError) as error:
            return error_response(error)
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return JSONResponse({"status": name}, 200 if name == "SERVING" else 503)


class _Page(StaticFiles):
    """The files of the page. Browsers check each time whether they changed, so that a new version is used at once."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        return response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(error_response(_unknown(scope["path"])))
            return
        await super().__call__(scope, receive, send)


def _unknown(path: str, why: str = "is no call of this server") -> NotImplementedHere:
    return NotImplementedHere(f"{path} {why}.", reason="NOT_IMPLEMENTED")
