"""Audio and video files in many containers, with tones at known times, as FFmpeg writes them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio

TONES_S = (0.5, 1.5, 3.5)  # where they begin, before a file moves them; each is 0.1 s long
_TONE_S, _FRAME_RATE = 0.1, 25


@dataclass(frozen=True)
class Kind:
    """A container and what is in it; no video codec where the container takes none."""

    container: str
    codec: str
    video_codec: str = ""
    rate_hz: int = 48_000
    options: tuple[tuple[str, str], ...] = ()


KINDS = {
    "mp4": Kind("mp4", "aac", "mpeg4", options=(("movflags", "faststart"),)),
    "fragmented mp4": Kind("mp4", "aac", "mpeg4", options=(("movflags", "frag_keyframe+empty_moov"),)),
    "mov": Kind("mov", "aac", "mpeg4", options=(("movflags", "faststart"),)),
    "mov, PCM": Kind("mov", "pcm_s16le", "mpeg4", options=(("movflags", "faststart"),)),
    "3gp": Kind("3gp", "libopencore_amrnb", "mpeg4", 8_000, options=(("movflags", "faststart"),)),
    "mkv": Kind("matroska", "aac", "mpeg4"),
    "mkv, PCM": Kind("matroska", "pcm_s16le", "mpeg4"),
    "mkv, live": Kind("matroska", "libopus", "mpeg4", options=(("live", "1"),)),
    "webm": Kind("webm", "libopus", "libvpx"),
    "avi": Kind("avi", "libmp3lame", "mpeg4"),
    "avi, PCM": Kind("avi", "pcm_s16le", "mpeg4"),
    "flv": Kind("flv", "aac", "flv", 44_100),
    "flv, MP3": Kind("flv", "libmp3lame", "flv", 44_100),
    "mpegts": Kind("mpegts", "aac", "mpeg2video"),
    "mpeg": Kind("mpeg", "mp2", "mpeg1video"),
    "vob": Kind("vob", "ac3", "mpeg2video"),
    "nut": Kind("nut", "libmp3lame", "mpeg4"),
    "nut, PCM": Kind("nut", "pcm_s16le", "mpeg4"),
    "asf": Kind("asf", "wmav2", "wmv2", 44_100),
    "ogg": Kind("ogg", "libopus"),
    "ogg, FLAC": Kind("ogg", "flac"),
    "mp3": Kind("mp3", "libmp3lame", rate_hz=44_100),
    "adts": Kind("adts", "aac", rate_hz=44_100),
    "ac3": Kind("ac3", "ac3"),
    "flac": Kind("flac", "flac"),
    "tta": Kind("tta", "tta"),
    "caf": Kind("caf", "pcm_s16be"),
    "aiff": Kind("aiff", "pcm_s16be"),
    "au": Kind("au", "pcm_mulaw", rate_hz=8_000),
    "w64": Kind("w64", "pcm_s16le"),
    "wav": Kind("wav", "pcm_s16le"),
}


def tones(rate_hz: int, *, seconds: float = 4.5, at_s: tuple[float, ...] = TONES_S, hertz: float = 1000) -> Audio:
    """Faint noise, with loud tones in it."""
    samples = np.random.default_rng(1).standard_normal(round(rate_hz * seconds)).astype(np.float32) * 1e-3
    tone = 0.6 * np.sin(2 * np.pi * hertz * np.arange(round(_TONE_S * rate_hz)) / rate_hz).astype(np.float32)
    for start_s in at_s:
        start = round(start_s * rate_hz)
        samples[start : start + len(tone)] += tone
    return samples


def media(
    kind: Kind,
    samples: Audio | None = None,
    *,
    moved: Callable[[float], float] = lambda at_s: at_s,
    with_video: bool = False,
) -> bytes:
    """A file of samples (`tones` unless given). moved: when a packet is, by when it would be. Video starts at 0."""
    samples = tones(kind.rate_hz) if samples is None else samples
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        with av.open(str(path), "w", format=kind.container, options=dict(kind.options)) as output:
            audio = output.add_stream(kind.codec, rate=kind.rate_hz, layout="mono")
            assert isinstance(audio, av.AudioStream)
            if kind.codec not in {"libopencore_amrnb", "ac3"}:
                audio.bit_rate = 64_000
            video = output.add_stream(kind.video_codec, rate=_FRAME_RATE) if with_video else None
            packets = _moved(_audio_packets(audio, samples, kind.rate_hz), moved)
            if video is not None:
                assert isinstance(video, av.VideoStream)
                packets += _video_packets(video, moved(len(samples) / kind.rate_hz))
            for packet in sorted(packets, key=lambda one: one.dts * one.time_base):
                output.mux(packet)
        return path.read_bytes()


def onsets_s(samples: Audio) -> list[float]:
    """When the tones begin."""
    loud = np.flatnonzero(np.abs(samples) > 0.2) / SAMPLE_RATE_HZ
    return [float(at_s) for at_s, gap_s in zip(loud, np.diff(loud, prepend=-1.0), strict=True) if gap_s > _TONE_S / 2]


def _audio_packets(stream: av.AudioStream, samples: Audio, rate_hz: int) -> list[av.Packet]:
    stream.codec_context.open(strict=False)
    n_frame = stream.codec_context.frame_size or 1024
    packets: list[av.Packet] = []
    for start in range(0, len(samples), n_frame):
        values = (samples[start : start + n_frame] * 32767).astype("<i2")
        frame = av.AudioFrame.from_ndarray(values[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
        packets += stream.encode(frame)
    return [*packets, *stream.encode(None)]


def _moved(packets: list[av.Packet], moved: Callable[[float], float]) -> list[av.Packet]:
    for packet in packets:
        assert packet.pts is not None
        at_s = float(packet.pts * packet.time_base)
        packet.pts += round((moved(at_s) - at_s) / packet.time_base)
        packet.dts = packet.pts
    return packets


def _video_packets(stream: av.VideoStream, seconds: float) -> list[av.Packet]:
    stream.width = stream.height = 64
    stream.pix_fmt, stream.bit_rate = "yuv420p", 50_000
    if stream.codec_context.codec.name == "libvpx":
        stream.codec_context.options = {"deadline": "realtime", "cpu-used": "8"}
    packets: list[av.Packet] = []
    for index in range(round(seconds * _FRAME_RATE)):
        frame = av.VideoFrame(64, 64, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes([index * 7 % 255]) * plane.buffer_size)
        frame.pts, frame.time_base = index, Fraction(1, _FRAME_RATE)
        packets += stream.encode(frame)
    return [*packets, *stream.encode(None)]


def damaged(data: bytes, start_s: float, end_s: float) -> bytes:
    """The file with zeros in place of the audio packets between two times."""
    spoiled = bytearray(data)
    with av.open(io.BytesIO(data)) as container:
        for packet in container.demux(container.streams.audio[0]):
            if packet.pts is not None and packet.pos is not None and start_s <= packet.pts * packet.time_base < end_s:
                at = data.find(bytes(packet)[:16], packet.pos)
                if at >= 0:
                    spoiled[at : at + packet.size] = bytes(packet.size)
    return bytes(spoiled)
