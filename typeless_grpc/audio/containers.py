"""Decodes files: any container and codec that FFmpeg reads and that cannot reach anything but its own bytes.

FFmpeg's demuxers for playlists (hls, concat, dash, sdp, ...) open other files and addresses. So only those in DEMUXERS
may be chosen, and no protocol at all; the file's name is withheld, since FFmpeg takes hints from it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.audio.plane import AudioPlane
from av.stream import Disposition

from typeless_grpc.audio import bare_frames, completeness, structures
from typeless_grpc.audio.bare_frames import BareFrames
from typeless_grpc.audio.formats import Audio, AudioFormat
from typeless_grpc.audio.input_file import InputFile
from typeless_grpc.audio.level import FullScale
from typeless_grpc.audio.timeline import timeline_of
from typeless_grpc.errors import InvalidInput

# The formats that people record and store audio in. None reads anything but the bytes that it is given.
DEMUXERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,gsm,ircam,loas,matroska,mov,mp3,mpc,mpc8,"
    "mpeg,mpegts,nistsphere,nut,ogg,qcp,rm,sox,tak,tta,voc,w64,wav,wv"
)
# Their audio codecs, and none of video, pictures or subtitles. FFmpeg neither opens nor probes a codec not named here.
DECODERS = (
    "aac,aac_latm,ac3,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,adpcm_swf,adpcm_yamaha,alac,als,amrnb,amrwb,"
    "ape,cook,dca,dsd_lsbf,dsd_lsbf_planar,dsd_msbf,dsd_msbf_planar,dst,eac3,evrc,flac,g722,g723_1,"
    "g726,g726le,g729,gsm,gsm_ms,ilbc,libopencore_amrnb,libopencore_amrwb,libopus,mace3,mace6,mlp,"
    "mp1,mp1float,mp2,mp2float,mp3,mp3float,mpc7,mpc8,nellymoser,opus,pcm_alaw,pcm_bluray,pcm_dvd,"
    "pcm_f16le,pcm_f24le,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,pcm_s16be,pcm_s16be_planar,"
    "pcm_s16le,pcm_s16le_planar,pcm_s24be,pcm_s24le,pcm_s24le_planar,pcm_s32be,pcm_s32le,pcm_s32le_planar,"
    "pcm_s64be,pcm_s64le,pcm_s8,pcm_s8_planar,pcm_u16be,pcm_u16le,pcm_u24be,pcm_u24le,pcm_u32be,"
    "pcm_u32le,pcm_u8,pcm_vidc,qcelp,qdm2,qdmc,real_144,real_288,s302m,shorten,sipr,siren,speex,tak,"
    "truehd,tta,vorbis,wavpack,wmalossless,wmapro,wmav1,wmav2,wmavoice"
)
_MIN_RATE_HZ, _MAX_RATE_HZ = 4_000, 768_000
_MAX_CHANNELS = 64
_MAX_FRAME_SAMPLES = 1 << 22  # 4 million: above what any codec in use puts into one frame, and bounded memory
# Formats whose header does not list the tracks: they are known once a packet of each was read.
_UNLISTED_TRACKS = frozenset({"flv", "mpeg", "mpegts"})
_PROBE_BYTES, _PROBE_US, _MAX_PROBE_BYTES = 5_000_000, 5_000_000, 1 << 24  # the first two are FFmpeg's defaults
_MAX_IDLE_PACKETS = 20_000  # in a row, without one sample

_SCALES = {  # FFmpeg's sample formats: numpy type, zero, full scale
    "u8": ("u1", 128, 1 << 7),
    "s16": ("i2", 0, 1 << 15),
    "s32": ("i4", 0, 1 << 31),
    "s64": ("i8", 0, 1 << 63),
    "flt": ("f4", 0, 1),
    "dbl": ("f8", 0, 1),
}


class DecodeCancelled(Exception):
    """The caller no longer wants the audio."""


@dataclass(frozen=True)
class SourceInfo:
    """The format of audio before decoding: container ("raw" if none) and codec as FFmpeg names them, rate, channels."""

    container: str
    codec: str
    sample_rate_hz: int
    n_channels: int


@dataclass(frozen=True)
class Block:
    """Decoded audio, float32 of shape (n_channels, n_samples), at the source's own rate."""

    samples: Audio
    rate_hz: int


def check_size(file: BinaryIO, *, field: str) -> int:
    """Return how many bytes are missing at the file's end, by its own account; the file is left at its start.

    Raises InvalidInput (AUDIO_TRUNCATED) if that is more than a careless writer's mistake.
    """
    n_bytes = file.seek(0, io.SEEK_END)
    n_missing = structures.missing_bytes(file, n_bytes=n_bytes)
    if completeness.is_much(n_missing, n_bytes):
        raise truncated(n_missing, field)
    return n_missing


def truncated(n_missing: int, field: str) -> InvalidInput:
    """Return the error of a recording that ends before its own structure says."""
    why = f"it ends too early: by its own account at least {n_missing} bytes are missing"
    return InvalidInput(f"{field}.content", why, reason="AUDIO_TRUNCATED")


def too_long(max_s: float, field: str) -> InvalidInput:
    """Return the error of a recording of more than max_s."""
    return InvalidInput(f"{field}.content", f"it is longer than {max_s:g} s", reason="AUDIO_TOO_LONG")


class ContainerReader:
    """One file's audio: the track that it marks as its default, or else the first one."""

    def __init__(
        self,
        file: BinaryIO,
        format: AudioFormat,
        *,
        field: str,
        cancelled: Callable[[], bool],
        max_pause_s: float = math.inf,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """file: read from its start; may be a pipe, whose completeness is not checked. options: FFmpeg's own.

        max_pause_s: a longer pause in the file's times is refused (AUDIO_TOO_LONG) before any of it is generated.
        Raises InvalidInput: AUDIO_UNDECODABLE, AUDIO_TRUNCATED, or the rate or channels of format are not the file's.
        """
        self._field, self._cancelled, self._max_pause_s = field, cancelled, max_pause_s
        self._options = dict(options or {})
        self._is_seekable = file.seekable()
        self._file = InputFile(file)
        self._full_scale = FullScale()
        self._container = self._opened(file)
        try:
            self._check_holes(file)
            self._stream = self._first_stream()
            codec = self._stream.codec_context
            codec.thread_count = 1  # a decoder process may start no thread; no format gains from them
            codec.options = {"max_samples": str(_MAX_FRAME_SAMPLES)}
            self.source = SourceInfo(self._container.format.name, codec.name, codec.sample_rate, codec.channels)
            self._check_source(format)
            self._timeline = timeline_of(self._container, self._stream)
            name, time_base = self.source.container, self._stream.time_base
            self._bare_frames = BareFrames(name) if name in bare_frames.CONTAINERS else None
            self._track = self._stream.index
            self._avi_chunk_s = float(time_base) if name == "avi" and time_base is not None else 0.0
        except BaseException:
            self._container.close()
            raise

    def close(self) -> None:
        """Free the decoder; the file stays open."""
        self._container.close()

    def blocks(self) -> Iterator[Block]:
        """Yield all audio, a codec's frame at a time. Raises InvalidInput, DecodeCancelled."""
        result, n_idle = completeness.Yield(), 0
        for packet in self._packets():
            if self._cancelled():
                raise DecodeCancelled
            n_idle += 1
            result.packet_bytes += packet.size
            for frame in self._frames(packet, result):
                n_idle = 0
                block = self._block(frame)
                length_s = frame.samples / block.rate_hz
                silence_s = self._silence_before_s(packet, frame, length_s)
                if silence_s > 0:
                    yield from self._silence(silence_s, block)
                result.decoded_s += length_s
                yield block
            if n_idle > _MAX_IDLE_PACKETS:
                raise self._refusal(f"{n_idle} packets in a row hold no audio")
        declared_s = self._declared_s() if self._is_seekable else None
        completeness.check(result, container=self.source.container, declared_s=declared_s, field=self._field)

    def _opened(self, file: BinaryIO) -> av.container.InputContainer:
        """Open the container, with a longer probe each time as long as no audio track is found."""
        n_missing = check_size(file, field=self._field) if self._is_seekable else 0
        options = {
            **self._options,
            "format_whitelist": DEMUXERS,
            "protocol_whitelist": "none",
            "codec_whitelist": DECODERS,
        }
        n_probe, probe_us = int(options.get("probesize", _PROBE_BYTES)), int(options.get("analyzeduration", _PROBE_US))
        while True:
            try:
                container = av.open(self._file, mode="r", options=options, metadata_errors="replace")
            except (av.FFmpegError, ValueError) as error:
                if n_missing:
                    raise truncated(n_missing, self._field) from error
                raise self._refusal("not an audio file in a format that this server reads") from error
            is_complete = container.streams.audio or container.format.name not in _UNLISTED_TRACKS
            if is_complete or n_probe >= _MAX_PROBE_BYTES:
                self._file.settle()
                return container
            container.close()
            self._file.rewind()
            n_probe, probe_us = 2 * n_probe, 2 * probe_us
            options |= {"probesize": str(n_probe), "analyzeduration": str(probe_us)}

    def _check_holes(self, file: BinaryIO) -> None:
        if not self._is_seekable or self._container.format.name != "ogg":
            return
        position = file.tell()  # the decoder has read ahead, and continues there
        n_bytes = file.seek(0, io.SEEK_END)
        n_lost = structures.ogg_holes_bytes(file, n_bytes=n_bytes)
        file.seek(position)
        if completeness.is_much(n_lost, n_bytes):
            why = f"it has holes: about {n_lost} of its {n_bytes} bytes are damaged or left out"
            raise InvalidInput(f"{self._field}.content", why, reason="AUDIO_TRUNCATED")

    def _first_stream(self) -> av.AudioStream:
        streams = self._container.streams.audio
        if not streams:
            raise self._refusal("the file has no audio track")
        stream = next((one for one in streams if one.disposition & Disposition.default), streams[0])
        # The stubs say that it is never None. A demuxer may name a decoder that was not opened for probing.
        if stream.codec_context is None or stream.codec_context.codec.name not in DECODERS.split(","):
            raise self._refusal("no decoder for its audio is known here")
        return stream

    def _check_source(self, format: AudioFormat) -> None:
        source = self.source
        format.check_file(source.sample_rate_hz, source.n_channels, field=self._field)
        if source.n_channels:  # 0: not known until the first frame is decoded
            self._check_shape(source.sample_rate_hz, source.n_channels)

    def _check_shape(self, rate_hz: int, n_channels: int) -> None:
        if not _MIN_RATE_HZ <= rate_hz <= _MAX_RATE_HZ:
            raise self._refusal(f"its sample rate of {rate_hz} Hz is not in {_MIN_RATE_HZ} to {_MAX_RATE_HZ}")
        if not 1 <= n_channels <= _MAX_CHANNELS:
            raise self._refusal(f"it has {n_channels} channels, not 1 to {_MAX_CHANNELS}")

    def _packets(self) -> Iterator[av.Packet[av.AudioStream]]:
        """Yield the packets of the chosen track. Raises InvalidInput where the file is damaged."""
        packets = iter(self._container.demux(self._stream))
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, ValueError) as error:
                if self._container.format.name == "wv" and self._file.ends_in_a_tag():
                    return  # FFmpeg takes a tag for a block, unless it has found it at the end of a file before
                why = "it ends in the middle, or is damaged"
                raise InvalidInput(f"{self._field}.content", why, reason="AUDIO_TRUNCATED") from error
            except IndexError:  # PyAV 18.1 at the end of a file in which tracks appeared that it did not know
                packet = None
            if packet is None:
                return
            yield packet

    def _frames(self, packet: av.Packet[av.AudioStream], result: completeness.Yield) -> Iterator[av.AudioFrame]:
        try:
            frames = packet.decode()
        except (av.FFmpegError, ValueError):  # One broken packet is no broken file: completeness.check weighs them.
            self._timeline.skip()
            bare = self._bare_frames
            result.lost_bytes += packet.size if bare is None else bare.skip(bytes(packet), packet.pos)
            return
        for frame in frames:
            if isinstance(frame, av.AudioFrame) and frame.samples:
                yield frame

    def _block(self, frame: av.AudioFrame) -> Block:
        self._check_shape(frame.sample_rate, frame.layout.nb_channels)
        name = frame.format.name
        if name.removesuffix("p") not in _SCALES:
            raise self._refusal(f"its samples are of a kind ({name}) that cannot be read here")
        samples = _samples(frame)
        if samples is None:
            raise self._refusal("it holds samples that are not finite numbers")
        if self.source.codec.startswith(("pcm_f32", "pcm_f64")):  # a codec that transforms can only be a bit too loud
            samples = self._scaled(samples)
        return Block(np.clip(samples, -1.0, 1.0).astype(np.float32, copy=False), frame.sample_rate)

    def _scaled(self, samples: npt.NDArray[np.float64] | Audio) -> Audio:
        scaled = self._full_scale.scaled(samples.T.ravel())
        if scaled is None:
            raise self._refusal("its samples are larger than any format has them")
        return scaled.reshape(samples.shape[1], samples.shape[0]).T

    def _silence_before_s(self, packet: av.Packet[av.AudioStream], frame: av.AudioFrame, length_s: float) -> float:
        if self._bare_frames is not None:
            return self._bare_frames.lost_before_s(bytes(packet), packet.pos, length_s)
        start_s = frame.time
        if self._avi_chunk_s and start_s is not None and packet.pos is not None:
            chunks = self._file.avi_chunks(packet.pos)
            if chunks is not None:
                start_s += self._avi_chunk_s * chunks.n_empty_before(packet.pos, self._track)
        return self._timeline.silence_before_s(start_s, length_s)

    def _silence(self, silence_s: float, block: Block) -> Iterator[Block]:
        """Yield silence of the shape of block, in blocks of a second."""
        if silence_s > self._max_pause_s:
            raise too_long(self._max_pause_s, self._field)
        n_left = round(silence_s * block.rate_hz)
        while n_left > 0:
            n_samples = min(n_left, block.rate_hz)
            yield Block(np.zeros((block.samples.shape[0], n_samples), dtype=np.float32), block.rate_hz)
            n_left -= n_samples

    @property
    def declared_s(self) -> float | None:
        """How long the header says the audio is; None where it does not say. It may be wrong."""
        return self._declared_s()

    def _declared_s(self) -> float | None:
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration is not None and len(self._container.streams) == 1:
            return self._container.duration / av.time_base
        return None

    def _refusal(self, why: str) -> InvalidInput:
        return InvalidInput(f"{self._field}.content", why, reason="AUDIO_UNDECODABLE")


def _samples(frame: av.AudioFrame) -> npt.NDArray[np.float64] | Audio | None:
    """Return the samples of a frame, shape (n_channels, n_samples); None if some are not finite.

    They are float32 in [-1, 1]; samples that are floats in the file are as they are there.
    """
    dtype, zero, full_scale = _SCALES[frame.format.name.removesuffix("p")]
    n_channels = frame.layout.nb_channels
    # Not frame.planes: with 8 or more planes it reads beyond FFmpeg's list of them (PyAV 18.1), and crashes.
    if frame.format.is_planar:
        planes = [bytes(AudioPlane(frame, i)) for i in range(n_channels)]
        rows = np.stack([np.frombuffer(plane, dtype, frame.samples) for plane in planes])
    else:
        plane = bytes(AudioPlane(frame, 0))
        rows = np.frombuffer(plane, dtype, frame.samples * n_channels).reshape(-1, n_channels).T
    if full_scale == 1:
        return rows if np.isfinite(rows).all() else None
    scaled: Audio = (rows.astype(np.float32) - np.float32(zero)) / np.float32(full_scale)
    return scaled
