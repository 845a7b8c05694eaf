"""ServerService: the version and the limits in force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from typeless_grpc.pb.v1 import server_pb2, server_pb2_grpc
from typeless_grpc.servicers.convert import duration


@dataclass(frozen=True)
class ServerFacts:
    """The fields of GetServerInfoResponse.

    max_upload_bytes: 0 if this server accepts no uploads. uri_schemes: the schemes that AudioSource.uri may have.
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
    """Returns the same facts to every caller; a reload of the settings may change them."""

    NAME = "typeless.v1.ServerService"

    def __init__(self, facts: ServerFacts) -> None:
        self._facts = facts

    def use(self, facts: ServerFacts) -> None:
        """Answer with these facts from now on."""
        self._facts = facts

    def register(self, server: grpc.aio.Server) -> None:
        """Register this service with a server."""
        server_pb2_grpc.add_ServerServiceServicer_to_server(self, server)

    async def GetServerInfo(
        self, request: server_pb2.GetServerInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> server_pb2.GetServerInfoResponse:
        """Return the version and the limits in force."""
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
