"""Decodes audio while it arrives: takes bytes, cut anywhere, and returns samples as soon as possible.

Raw samples are read directly, also those of most WAV files (`wav.py`). FFmpeg decodes any other container
(`live_container.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from typeless_grpc.audio.formats import Audio, AudioFormat
from typeless_grpc.audio.joined import FileStarts
from typeless_grpc.audio.live_container import (
    AUDIO_FIELD,
    ContainerLiveReader,
    LiveReader,
    OpenLiveContainer,
    of_the_stream,
)
from typeless_grpc.audio.pcm import PcmReader
from typeless_grpc.audio.wav import NotForUs, WavHeader, WavParser
from typeless_grpc.errors import InvalidInput

__all__ = ["LOST_AT_THE_END", "LiveReader", "RawLiveReader", "live_reader"]

LOST_AT_THE_END = frozenset({"AUDIO_TRUNCATED", "AUDIO_EMPTY"})  # reasons: what was decoded before can be used
_STEP_BYTES = 1 << 16  # fed to the reader of raw samples at once; at most 8 s of audio (8 kHz, one byte a sample)


def live_reader(
    format: AudioFormat,
    *,
    field: str,
    is_live: bool = True,
    open_container: OpenLiveContainer = ContainerLiveReader,
) -> LiveReader:
    """Return the reader for a format. field: path of the message that holds `format`. Raises InvalidInput about it.

    is_live: return samples as soon as their bytes arrive; otherwise they may wait for the next few seconds.
    open_container: makes the reader of what FFmpeg has to decode.
    """
    format = format.validated(field)
    if format.is_raw:
        return RawLiveReader(format, field=field, is_live=is_live)
    return _JoinedReader(format, field=field, is_live=is_live, open_container=open_container)


class _JoinedReader:
    """Files that follow one another, each with a reader of its own."""

    def __init__(self, format: AudioFormat, *, field: str, is_live: bool, open_container: OpenLiveContainer) -> None:
        self._format, self._field, self._is_live = format, field, is_live
        self._open_container = open_container
        self._finder = FileStarts()
        self._held = bytearray()  # from `_n_passed` on: may belong to the next file
        self._n_passed = 0
        self._reader = self._sniffing()

    @property
    def declared_s(self) -> float | None:
        """See `LiveReader`."""
        return self._reader.declared_s

    async def feed(self, data: bytes) -> AsyncIterator[Audio]:
        """See `LiveReader`."""
        starts = self._finder.feed(data, self._n_passed + len(self._held))
        self._held += data
        for start in starts:
            async for block in self._passed_on(start - self._n_passed):
                yield block
            async for block in self._next_file():
                yield block
        async for block in self._passed_on(len(self._held) - self._finder.n_waiting):
            yield block

    async def finish(self) -> AsyncIterator[Audio]:
        """See `LiveReader`."""
        async for block in self._passed_on(len(self._held)):
            yield block
        async for block in self._reader.finish():
            yield block

    def close(self) -> None:
        """See `LiveReader`."""
        self._reader.close()

    async def _passed_on(self, n_bytes: int) -> AsyncIterator[Audio]:
        data = bytes(self._held[:n_bytes])
        del self._held[:n_bytes]
        self._n_passed += len(data)
        async for block in self._reader.feed(data):
            yield block

    async def _next_file(self) -> AsyncIterator[Audio]:
        try:
            async for block in self._reader.finish():
                yield block
        except InvalidInput as error:
            if error.reason != "AUDIO_EMPTY":  # the others may have some
                raise
        self._reader.close()
        self._reader = self._sniffing()

    def _sniffing(self) -> _SniffingReader:
        return _SniffingReader(
            self._format, field=self._field, is_live=self._is_live, open_container=self._open_container
        )


class _SniffingReader:
    """Reads a container: common kinds of WAV as raw samples after the header, everything else with FFmpeg.

    WAV files may follow one another.
    """

    def __init__(self, format: AudioFormat, *, field: str, is_live: bool, open_container: OpenLiveContainer) -> None:
        self._format, self._field, self._is_live = format, field, is_live
        self._open_container = open_container
        self._wavs: WavParser | None = WavParser()
        self._reader: LiveReader | None = None
        self._raw_format: AudioFormat | None = None

    @property
    def declared_s(self) -> float | None:
        """See `LiveReader`."""
        return self._reader.declared_s if self._reader is not None else None

    async def feed(self, data: bytes) -> AsyncIterator[Audio]:
        """See `LiveReader`."""
        try:
            if self._wavs is not None:
                async for block in self._passed_on(self._wavs.feed(data)):
                    yield block
                return
        except NotForUs:
            data = self._left_to_ffmpeg()
        if self._reader is not None:
            async for block in self._reader.feed(data):
                yield block

    async def finish(self) -> AsyncIterator[Audio]:
        """See `LiveReader`."""
        try:
            if self._wavs is not None:
                async for block in self._passed_on(self._wavs.finish()):
                    yield block
        except NotForUs:
            pass
        if self._reader is None and self._wavs is not None and self._wavs.waiting:
            head = self._left_to_ffmpeg()
            assert self._reader is not None
            async for block in self._reader.feed(head):
                yield block
        if self._reader is not None:
            async for block in self._reader.finish():
                yield block

    def close(self) -> None:
        """See `LiveReader`."""
        if self._reader is not None:
            self._reader.close()

    def _left_to_ffmpeg(self) -> bytes:
        """Read with FFmpeg from now on, because this is no WAV; return the bytes that it has not had yet."""
        assert self._wavs is not None
        head, self._wavs = bytes(self._wavs.waiting), None
        self._reader = self._open_container(self._format, field=self._field, is_live=self._is_live)
        return head

    async def _passed_on(self, items: Iterator[WavHeader | bytes]) -> AsyncIterator[Audio]:
        for item in items:
            data = item
            if isinstance(item, WavHeader):
                async for block in self._begun(item):
                    yield block
                data = b"" if item.format is not None else item.head
            assert self._reader is not None
            assert isinstance(data, bytes)
            async for block in self._reader.feed(data):
                yield block

    async def _begun(self, header: WavHeader) -> AsyncIterator[Audio]:
        """Choose a reader for the file that begins; yield the rest of the file before it."""
        if header.format is not None:
            found = header.format
            self._format.check_file(found.sample_rate_hz, found.n_channels, field=self._field)
        if isinstance(self._reader, RawLiveReader) and header.format == self._raw_format:
            self._reader.begin_anew()
            return
        if self._reader is not None:
            async for block in self._reader.finish():
                yield block
            self._reader.close()
        self._raw_format = header.format
        if header.format is None:
            self._reader = self._open_container(self._format, field=self._field, is_live=self._is_live)
        else:
            self._reader = RawLiveReader(header.format, field=self._field, is_live=self._is_live, may_end_anywhere=True)


class RawLiveReader:
    """A `LiveReader` of bare samples, without a header."""

    declared_s = None

    def __init__(self, format: AudioFormat, *, field: str, is_live: bool, may_end_anywhere: bool = False) -> None:
        """may_end_anywhere: an incomplete sample at the end is dropped, and is no error."""
        self._may_end_anywhere = may_end_anywhere
        self._reader = PcmReader(format, field=field, is_live=is_live, checks_encoding=not may_end_anywhere)
        self._field = field

    async def feed(self, data: bytes) -> AsyncIterator[Audio]:
        """See `LiveReader`."""
        for start in range(0, len(data), _STEP_BYTES):
            try:
                block = self._reader.feed(data[start : start + _STEP_BYTES])
            except InvalidInput as error:
                raise of_the_stream(error, self._field) from error
            if len(block):
                yield block

    async def finish(self) -> AsyncIterator[Audio]:
        """See `LiveReader`. Raises InvalidInput (AUDIO_TRUNCATED) if the bytes end within a sample."""
        if len(block := self._reader.flush()):
            yield block
        if (n_over := self._reader.n_pending_bytes) and not self._may_end_anywhere:
            ends = f"it ends {n_over} byte{'s' if n_over > 1 else ''} into a sample"
            raise InvalidInput(AUDIO_FIELD, ends, reason="AUDIO_TRUNCATED")

    def begin_anew(self) -> None:
        """Drop an incomplete sample: the next data begins with a whole one."""
        self._reader.begin_anew()

    def close(self) -> None:
        """See `LiveReader`."""
