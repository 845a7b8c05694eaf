"""The common part of Recognize and of the calls in the background: one recording and its configuration."""

from __future__ import annotations

from typing import Any

from typeless_grpc.audio.joined import HEAD_BYTES
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2
from typeless_grpc.servicers.compat.options import NamedModels
from typeless_grpc.servicers.google.messages import Version
from typeless_grpc.servicers.google.options import Wanted, wanted


class Configurations:
    """Converts configurations, with the models of this server."""

    def __init__(self, models: NamedModels) -> None:
        self._models = models

    async def options(self, wanted: Wanted) -> transcription_pb2.TranscriptionOptions:
        """Return our options for what a configuration requests."""
        options = transcription_pb2.TranscriptionOptions()
        options.CopyFrom(wanted.options)
        options.model = await self._models.model(wanted.model)
        return options

    async def recording(
        self, version: Version, config: Any, content: bytes, uri: str
    ) -> tuple[Wanted, audio_pb2.AudioSource, transcription_pb2.TranscriptionOptions]:
        """Return what a request with a whole recording wants, its audio, and our options. Raises InvalidInput."""
        found = wanted(version, config)
        options = await self.options(found)
        if found.separates_channels:
            options.channel_mode = transcription_pb2.CHANNEL_MODE_SEPARATE
        source = audio_pb2.AudioSource(format=found.audio.format(None if uri else content[:HEAD_BYTES]))
        if uri:
            source.uri = uri
        else:
            source.content = content
        return found, source, options
