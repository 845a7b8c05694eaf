"""ServerService: what a caller may want to know before it calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from typeless_grpc.pb.v1 import server_pb2, server_pb2_grpc
from typeless_grpc.servicers.convert import duration


@dataclass(frozen=True)
class ServerFacts:
    """What is in force here: see GetServerInfoResponse in the contract.

    max_upload_bytes: 0 where this server takes no uploads. uri_schemes: what AudioSource.uri may be here.
    """

    version: str
    default_model: str
    max_message_bytes: int
    max_audio_s: float
    max_stream_s: float
    stream_idle_timeout_s: float
    resume_window_s: float
    max_batch_items: int
    requires_key: bool = False
    max_upload_bytes: int = 0
    uri_schemes: Sequence[str] = ()


class ServerServicer(server_pb2_grpc.ServerServiceServicer):
    """Answers the same to everyone: the facts are fixed when the server starts."""

    NAME = "typeless.v1.ServerService"

    def __init__(self, facts: ServerFacts) -> None:
        self._facts = facts

    def register(self, server: grpc.aio.Server) -> None:
        """Take this service's calls."""
        server_pb2_grpc.add_ServerServiceServicer_to_server(self, server)

    async def GetServerInfo(
        self, request: server_pb2.GetServerInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> server_pb2.GetServerInfoResponse:
        """The version and the limits in force."""
        return server_pb2.GetServerInfoResponse(
            version=self._facts.version,
            default_model=self._facts.default_model,
            max_message_bytes=self._facts.max_message_bytes,
            max_audio_duration=duration(self._facts.max_audio_s),
            max_batch_items=self._facts.max_batch_items,
            max_stream_duration=duration(self._facts.max_stream_s),
            stream_idle_timeout=duration(self._facts.stream_idle_timeout_s),
            resume_window=duration(self._facts.resume_window_s),
            requires_key=self._facts.requires_key,
            max_upload_bytes=self._facts.max_upload_bytes,
            uri_schemes=self._facts.uri_schemes,
        )
