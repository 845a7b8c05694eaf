"""ServerService: what a caller may want to know before it calls."""

from __future__ import annotations

from typing import Any

import grpc

from typeless_grpc.pb.v1 import server_pb2, server_pb2_grpc


class ServerServicer(server_pb2_grpc.ServerServiceServicer):
    """Answers the same to everyone: the facts are fixed when the server starts."""

    def __init__(self, info: server_pb2.GetServerInfoResponse) -> None:
        self._info = info

    async def GetServerInfo(
        self, request: server_pb2.GetServerInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> server_pb2.GetServerInfoResponse:
        """The version and the limits in force."""
        return self._info
