"""The common part of Recognize and of the calls in the background: one recording and its configuration."""

from __future__ import annotations

from typing import Any

from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2
from typeless_grpc.servicers.compat.options import HEAD_BYTES, ModelNames
from typeless_grpc.servicers.google.messages import Version
from typeless_grpc.servicers.google.options import Wanted, wanted
from typeless_grpc.servicers.models import Usable


class Configurations:
    """Converts configurations, with the models of this server."""

    def __init__(self, models: Usable, names: ModelNames) -> None:
        self._models, self._names = models, names

    def use(self, names: ModelNames) -> None:
        """Apply these names of models from the next call on."""
        self._names = names

    async def options(self, wanted: Wanted) -> transcription_pb2.TranscriptionOptions:
        """Return our options for what a configuration requests."""
        is_known = bool(wanted.model) and await self._models.knows(wanted.model)
        return wanted.with_model(self._names, is_known=is_known)

    async def recording(
        self, version: Version, config: Any, content: bytes, uri: str
    ) -> tuple[Wanted, audio_pb2.AudioSource, transcription_pb2.TranscriptionOptions]:
        """Return what a request with a whole recording wants, its audio, and our options. Raises InvalidInput."""
        found = wanted(version, config)
        options = await self.options(found)
        if found.separates_channels:
            options.channel_mode = transcription_pb2.CHANNEL_MODE_SEPARATE
        if uri:
            # Its first bytes are not here. What has its format in its header is read by that; raw samples need theirs.
            return found, audio_pb2.AudioSource(uri=uri, format=found.audio.format(b"")), options
        return found, audio_pb2.AudioSource(content=content, format=found.audio.format(content[:HEAD_BYTES])), options
