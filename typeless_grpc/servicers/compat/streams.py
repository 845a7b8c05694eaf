"""Streams of other contracts, as calls of `StreamService`."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from typeless_grpc.audio.joined import HEAD_BYTES
from typeless_grpc.errors import Aborted, DeadlineExceeded, InvalidInput, Overloaded
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2

Request = transcription_pb2.StreamTranscribeRequest
# Of a stream that ends before any audio: no audio has any format.
_NO_AUDIO = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000)


class CompatRequests(ABC):
    """The requests of a stream, translated to those of StreamTranscribe. Subclasses know the messages."""

    def __init__(self, incoming: AsyncIterator[Any]) -> None:
        self._incoming = incoming
        self._reading: asyncio.Timeout | None = None
        self._has_ended = False

    @abstractmethod
    async def opened(self, first: Any) -> None:
        """Take the first request, which has the configuration. Raises InvalidInput."""

    @abstractmethod
    def config(self, head: bytes) -> transcription_pb2.StreamConfig:
        """Return the stream's configuration, for audio that begins with head."""

    @abstractmethod
    def audio(self, request: Any) -> bytes:
        """Return the audio of any request but the first; b"" if it has none."""

    def is_finalize(self, request: Any) -> bool:
        """Whether a request ends the utterance after its audio."""
        return False

    def end(self) -> None:
        """End the audio here, as if the caller had."""
        self._has_ended = True
        if self._reading is not None:
            self._reading.reschedule(asyncio.get_running_loop().time())

    async def translated(self) -> AsyncIterator[Request]:
        """Yield the configuration once the audio's first bytes tell its format, then the audio and what follows."""
        first = await self._next()
        if first is None or not _is_configuration(first):
            raise _out_of_order("must be the first request")
        await self.opened(first)
        head = b""
        while len(head) < HEAD_BYTES and (request := await self._next()) is not None:
            head += self._audio(request)
        config = self.config(head)
        if not head:
            config.format.CopyFrom(_NO_AUDIO)
        yield Request(config=config)
        if head:
            yield Request(audio=head)
        while (request := await self._next()) is not None:
            audio = self._audio(request)
            if audio:
                yield Request(audio=audio)
            if self.is_finalize(request):
                yield Request(control=transcription_pb2.STREAM_CONTROL_FINALIZE)
            elif not audio:
                yield Request(control=transcription_pb2.STREAM_CONTROL_KEEP_ALIVE)

    def _audio(self, request: Any) -> bytes:
        if _is_configuration(request):
            raise _out_of_order("comes first and only once")
        return self.audio(request)

    async def _next(self) -> Any | None:
        """Return the next request; None once the audio has ended."""
        if self._has_ended:
            return None
        try:
            async with asyncio.timeout(None) as self._reading:
                return await anext(self._incoming, None)
        except TimeoutError:
            if not self._has_ended:
                raise
            return None


def refuse_separate_channels(n_channels: int) -> None:
    """Raise InvalidInput if the channels of a stream are to be kept apart, and it has several."""
    if n_channels > 1:
        why = "a stream's channels are mixed: a stream for each keeps them apart"
        raise InvalidInput("options.channel_mode", why, reason="NOT_SUPPORTED")


def check_end(completed: transcription_pb2.StreamCompleted) -> None:
    """Raise Overloaded or Aborted if the server ended the audio, so that the caller begins a new stream."""
    if completed.end_reason == transcription_pb2.STREAM_END_REASON_DRAINING:
        raise Overloaded("This server stops. Begin a new stream with the rest of the audio.", reason="DRAINING")
    if completed.end_reason == transcription_pb2.STREAM_END_REASON_IDLE:
        raise _idle()


@contextmanager
def restartable() -> Iterator[None]:
    """Make a stream whose first audio does not come in time end like one whose caller falls silent later."""
    try:
        yield
    except DeadlineExceeded as error:
        if error.reason != "STREAM_IDLE":
            raise
        raise _idle() from error


def _is_configuration(request: Any) -> bool:
    has_configuration: bool = request.WhichOneof("streaming_request") == "streaming_config"
    return has_configuration


def _out_of_order(why: str) -> InvalidInput:
    return InvalidInput("streaming_config", why, reason="STREAM_ORDER")


def _idle() -> Aborted:
    return Aborted("No audio came for too long. Begin a new stream.", reason="STREAM_IDLE")
