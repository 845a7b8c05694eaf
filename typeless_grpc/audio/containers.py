"""Audio out of files: any container and codec that FFmpeg reads and that cannot reach beyond the bytes given.

FFmpeg's demuxers for playlists (hls, concat, dash, sdp, ...) open other files and addresses. So only those in
DEMUXERS may be chosen, and no protocol at all; the file's name is withheld, since FFmpeg takes hints from it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.audio.plane import AudioPlane
from av.stream import Disposition

from typeless_grpc.audio import completeness, structures
from typeless_grpc.audio.formats import Audio, AudioFormat
from typeless_grpc.audio.level import FullScale
from typeless_grpc.errors import InvalidInput

# What people record with, and what it is stored in; each reads nothing but the bytes it is handed.
DEMUXERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,gsm,ircam,loas,matroska,mov,mp3,mpc,mpc8,"
    "mpeg,mpegts,nistsphere,nut,ogg,qcp,rm,sox,tak,tta,voc,w64,wav,wv"
)
# The codecs of audio in them, and none of video, pictures or subtitles: what is not named is neither opened nor probed.
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
_MAX_IDLE_PACKETS = 20_000  # in a row, without one sample

# Containers whose frames have times of their own. A recorder that sends nothing while nobody speaks leaves gaps there.
_TIMED = frozenset({"matroska,webm", "asf", "flv"})
_SMALLEST_GAP_S = 0.2  # above what rounding, priming and a changed frame size make of times

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
    """What audio was before decoding: FFmpeg's names of container ("raw" if none) and codec, rate, channels."""

    container: str
    codec: str
    sample_rate_hz: int
    n_channels: int


@dataclass(frozen=True)
class Block:
    """A piece of a source, float32 of shape (n_channels, n_samples), at the source's own rate."""

    samples: Audio
    rate_hz: int


def check_size(file: BinaryIO, *, field: str) -> int:
    """How many bytes are missing at the file's end, by its own account; the file is left at its start.

    Raises InvalidInput (AUDIO_TRUNCATED) if that is more than a careless writer's mistake.
    """
    n_bytes = file.seek(0, io.SEEK_END)
    n_missing = structures.missing_bytes(file, n_bytes=n_bytes)
    if completeness.is_much(n_missing, n_bytes):
        raise truncated(n_missing, field)
    return n_missing


def truncated(n_missing: int, field: str) -> InvalidInput:
    """The error of a recording that ends before its own structure says."""
    why = f"it ends too early: by its own account at least {n_missing} bytes are missing"
    return InvalidInput(f"{field}.content", why, reason="AUDIO_TRUNCATED")


class ContainerReader:
    """One file's audio: the track that it marks as its default, or else the first one."""

    def __init__(
        self,
        file: BinaryIO,
        format: AudioFormat,
        *,
        field: str,
        cancelled: Callable[[], bool],
        options: Mapping[str, str] | None = None,
    ) -> None:
        """file: read from its start; may be a pipe, whose completeness is then not judged. options: FFmpeg's own.

        Raises InvalidInput: AUDIO_UNDECODABLE, AUDIO_TRUNCATED, or the rate or channels of format are not the file's.
        """
        self._field, self._cancelled = field, cancelled
        self._options = dict(options or {})
        self._is_seekable = file.seekable()
        self._full_scale = FullScale()
        self._heard_s: float | None = None  # where the last frame ended, by the container's clock
        self._container = self._opened(file)
        try:
            self._check_holes(file)
            self._stream = self._first_stream()
            codec = self._stream.codec_context
            codec.options = {"max_samples": str(_MAX_FRAME_SAMPLES)}
            self.source = SourceInfo(self._container.format.name, codec.name, codec.sample_rate, codec.channels)
            self._check_source(format)
        except BaseException:
            self._container.close()
            raise

    def close(self) -> None:
        """Let go of the decoder; the file stays open."""
        self._container.close()

    def blocks(self) -> Iterator[Block]:
        """All audio, a codec's frame at a time. Raises InvalidInput, DecodeCancelled."""
        result, n_idle = completeness.Yield(), 0
        for packet in self._packets():
            if self._cancelled():
                raise DecodeCancelled
            n_idle += 1
            result.packet_bytes += packet.size
            try:
                frames = packet.decode()
            except (av.FFmpegError, ValueError):  # One broken packet is no broken file: check() weighs them.
                result.lost_bytes += packet.size
                frames = []
            for frame in frames:
                if isinstance(frame, av.AudioFrame) and frame.samples:
                    n_idle = 0
                    block = self._block(frame)
                    yield from self._silence_before(frame, block)
                    result.decoded_s += frame.samples / block.rate_hz
                    yield block
            if n_idle > _MAX_IDLE_PACKETS:
                raise self._refusal(f"{n_idle} packets in a row hold no audio")
        declared_s = self._declared_s() if self._is_seekable else None
        completeness.check(result, container=self.source.container, declared_s=declared_s, field=self._field)

    def _opened(self, file: BinaryIO) -> av.container.InputContainer:
        n_missing = check_size(file, field=self._field) if self._is_seekable else 0
        options = {
            **self._options,
            "format_whitelist": DEMUXERS,
            "protocol_whitelist": "none",
            "codec_whitelist": DECODERS,
        }
        try:
            return av.open(_Nameless(file), mode="r", options=options, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            if n_missing:
                raise truncated(n_missing, self._field) from error
            raise self._refusal("this is no audio file that can be read here") from error

    def _check_holes(self, file: BinaryIO) -> None:
        if not self._is_seekable or self._container.format.name != "ogg":
            return
        position = file.tell()  # the decoder has read ahead, and goes on from there
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
        if format.sample_rate_hz and format.sample_rate_hz != source.sample_rate_hz:
            why = f"{format.sample_rate_hz} Hz was said, the file says {source.sample_rate_hz}; leave it out"
            raise InvalidInput(f"{self._field}.format.sample_rate_hertz", why)
        if format.n_channels and format.n_channels != source.n_channels:
            why = f"{format.n_channels} was said, the file says {source.n_channels}; leave it out"
            raise InvalidInput(f"{self._field}.format.channel_count", why)
        if source.n_channels:  # 0: not known until the first frame is decoded
            self._check_shape(source.sample_rate_hz, source.n_channels)

    def _check_shape(self, rate_hz: int, n_channels: int) -> None:
        if not _MIN_RATE_HZ <= rate_hz <= _MAX_RATE_HZ:
            raise self._refusal(f"its sample rate of {rate_hz} Hz is not in {_MIN_RATE_HZ} to {_MAX_RATE_HZ}")
        if not 1 <= n_channels <= _MAX_CHANNELS:
            raise self._refusal(f"it has {n_channels} channels, not 1 to {_MAX_CHANNELS}")

    def _packets(self) -> Iterator[av.Packet[av.AudioStream]]:
        packets = iter(self._container.demux(self._stream))
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, ValueError) as error:
                why = "it ends in the middle, or is damaged"
                raise InvalidInput(f"{self._field}.content", why, reason="AUDIO_TRUNCATED") from error
            if packet is None:
                return
            yield packet

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

    def _silence_before(self, frame: av.AudioFrame, block: Block) -> Iterator[Block]:
        """What was left out before this frame, by the times in the container: silence, or what is damaged.

        Without it, all that follows would be heard too early, and words run together that were far apart.
        """
        if frame.time is None or self.source.container not in _TIMED:
            return
        gap_s = frame.time - (frame.time if self._heard_s is None else self._heard_s)
        self._heard_s = frame.time + frame.samples / block.rate_hz
        declared_s = self._declared_s()
        if gap_s < _SMALLEST_GAP_S or declared_s is None or self._heard_s > declared_s + _SMALLEST_GAP_S:
            return  # None, or a clock that jumps: no recording is longer than it says.
        n_left = round(gap_s * block.rate_hz)
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
    """A frame, shape (n_channels, n_samples), float32 in [-1, 1] or floats as they are; None if some are not finite."""
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


class _Nameless:
    """A file as PyAV wants it, and no more: without a name, and never more bytes than asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, n_bytes: int) -> bytes:
        data = self._file.read(n_bytes)
        if len(data) > n_bytes:  # PyAV copies what it gets into a buffer of n_bytes, unchecked.
            raise ValueError(f"asked for {n_bytes} bytes, got {len(data)}")
        return data
