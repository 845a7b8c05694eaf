"""The options of callers: the format of raw samples, and options of transcriptions and streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum

from google.protobuf.duration_pb2 import Duration

from typeless_grpc.pb.v1 import audio_pb2, transcript_pb2, transcription_pb2


@dataclass(frozen=True)
class RawFormat:
    """The format of samples without a header. encoding: "pcm_s16le", "pcm_f32le", "mulaw" or "alaw"."""

    encoding: str
    sample_rate_hz: int
    n_channels: int = 1

    def message(self) -> audio_pb2.AudioFormat:
        """Convert to the message. Raises ValueError for an unknown encoding."""
        return audio_pb2.AudioFormat(
            encoding=audio_pb2.AudioEncoding.Value(f"AUDIO_ENCODING_{self.encoding.upper()}"),
            sample_rate_hertz=self.sample_rate_hz,
            channel_count=self.n_channels,
        )


@dataclass(frozen=True)
class Options:
    """The options of a transcription; see TranscriptionOptions in the protos.

    The server chooses those that are not set.

    language: a BCP-47 tag; "" detects it, among allowed_languages if there are any. task: "transcribe", or "translate"
    into English. hotwords: names and phrases to expect. temperatures: tried in turn, each in [0, 1]. chunking: "auto",
    "whole", "fixed", "vad" or "hybrid". channels: "mix" or "separate". post_processing: "none", "basic" or "standard".
    replacements: maps a phrase of the text to the one to write instead. output_formats: any of "text", "srt", "webvtt",
    "json", "tsv". The rest tunes voice activity detection; see VoiceActivityOptions.
    """

    model: str = ""
    language: str = ""
    task: str = "transcribe"
    prompt: str = ""
    hotwords: Sequence[str] = ()
    word_timestamps: bool = False
    beam_size: int = 0
    temperatures: Sequence[float] = field(default=())
    allowed_languages: Sequence[str] = ()
    chunking: str = "auto"
    channels: str = "mix"
    post_processing: str = "none"
    replacements: Mapping[str, str] = field(default_factory=dict)
    mask_profanity: bool = False
    output_formats: Sequence[str] = ()
    speech_threshold: float = 0.0
    end_silence_s: float | None = None
    speech_padding_s: float | None = None
    max_utterance_s: float | None = None

    def message(self) -> transcription_pb2.TranscriptionOptions:
        """Convert to the message. Raises ValueError for an unknown name."""
        message = transcription_pb2.TranscriptionOptions(
            model=self.model,
            language=self.language,
            allowed_languages=self.allowed_languages,
            task=transcription_pb2.Task.Value(f"TASK_{self.task.upper()}"),
            prompt=self.prompt,
            hotwords=self.hotwords,
            word_timestamps=self.word_timestamps,
            output_formats=[
                transcript_pb2.OutputFormat.Value(f"OUTPUT_FORMAT_{name.upper()}") for name in self.output_formats
            ],
            decoding=transcription_pb2.DecodingOptions(beam_size=self.beam_size, temperatures=self.temperatures),
        )
        # Defaults stay unset, so that a logged request shows only what the caller chose.
        if self.chunking != "auto":
            message.chunking = transcription_pb2.ChunkingStrategy.Value(f"CHUNKING_STRATEGY_{self.chunking.upper()}")
        if self.channels != "mix":
            message.channel_mode = transcription_pb2.ChannelMode.Value(f"CHANNEL_MODE_{self.channels.upper()}")
        if post := self._post_processing():
            message.post_processing.CopyFrom(post)
        if voice := self._voice_activity():
            message.voice_activity.CopyFrom(voice)
        return message

    def _post_processing(self) -> transcription_pb2.PostProcessing | None:
        if self.post_processing == "none" and not self.replacements and not self.mask_profanity:
            return None
        mode = transcription_pb2.PostProcessingMode.Value(f"POST_PROCESSING_MODE_{self.post_processing.upper()}")
        return transcription_pb2.PostProcessing(
            mode=mode, replacements=self.replacements, mask_profanity=self.mask_profanity
        )

    def _voice_activity(self) -> transcription_pb2.VoiceActivityOptions | None:
        seconds_by_field = {
            "end_silence": self.end_silence_s,
            "speech_padding": self.speech_padding_s,
            "max_utterance": self.max_utterance_s,
        }
        durations = {name: timedelta(seconds=value) for name, value in seconds_by_field.items() if value is not None}
        if not durations and not self.speech_threshold:
            return None
        message = transcription_pb2.VoiceActivityOptions(threshold=self.speech_threshold)
        for name, value in durations.items():
            getattr(message, name).FromTimedelta(value)
        return message


class Control(Enum):
    """A control between two blocks of audio; see StreamControl in the protos."""

    FINALIZE = "finalize"
    KEEP_ALIVE = "keep_alive"
    END = "end"


# What a stream consists of: audio, controls, and options that replace those in force.
Item = bytes | bytearray | memoryview | Control | Options


@dataclass(frozen=True)
class StreamOptions:
    """The options of a stream; see StreamConfig in the protos. The server chooses those that are not set.

    mode: "live" or "file". interim_interval_s: the shortest time between interims, 0 for the server's choice.
    max_kept_bytes: how much audio to keep that the server has not acknowledged; the stream then reads no more.
    reconnect: resume after a broken connection, and continue on another server if the server stops; False raises
    CallFailed.
    """

    options: Options = field(default_factory=Options)
    raw_format: RawFormat | None = None
    mode: str = "live"
    interim_results: bool = False
    interim_interval_s: float = 0.0
    max_kept_bytes: int = 64 * 1024 * 1024
    reconnect: bool = True

    def message(self) -> transcription_pb2.StreamConfig:
        """Convert to the message. Raises ValueError for an unknown mode."""
        message = transcription_pb2.StreamConfig(
            format=self.raw_format.message() if self.raw_format else None,
            options=self.options.message(),
            mode=transcription_pb2.StreamMode.Value(f"STREAM_MODE_{self.mode.upper()}"),
            interim_results=self.interim_results,
        )
        if self.interim_interval_s:
            whole = int(self.interim_interval_s)
            nanos = round((self.interim_interval_s - whole) * 1e9)
            message.interim_interval.CopyFrom(Duration(seconds=whole, nanos=nanos))
        return message
