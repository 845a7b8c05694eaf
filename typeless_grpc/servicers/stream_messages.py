"""Converts the messages of a stream to domain values and back: pure functions, as in `convert.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from google.protobuf.duration_pb2 import Duration

from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.engine.interface import Chunking, DecodeOptions, VoiceActivityOptions
from typeless_grpc.errors import InvalidInput, TypelessError
from typeless_grpc.pb.v1 import audio_pb2, failure_pb2, transcription_pb2
from typeless_grpc.servicers import convert
from typeless_grpc.streaming import events
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.planner import PlanOptions
from typeless_grpc.streaming.requests import Control, Request, SegmentationOptions, Update

CONTROLS = {
    transcription_pb2.STREAM_CONTROL_FINALIZE: Control.FINALIZE,
    transcription_pb2.STREAM_CONTROL_KEEP_ALIVE: Control.KEEP_ALIVE,
    transcription_pb2.STREAM_CONTROL_END: Control.END,
}
MIN_INTERIM_INTERVAL_S, MAX_INTERIM_INTERVAL_S = 0.1, 60.0
MIN_END_SILENCE_S = 0.032  # one frame of the voice activity model
MAX_PADDING_S = 15.0  # on each side; both together fill a window. Audio that may become padding is held in memory.


@dataclass(frozen=True)
class StreamDefaults:
    """The server's defaults. temperatures: of the engine. The rest is in seconds."""

    model: str
    beam_size: int = 1
    temperatures: tuple[float, ...] = ()
    live: EndpointOptions = field(default_factory=EndpointOptions)
    file: PlanOptions = field(default_factory=PlanOptions)
    interim_interval_s: float = 1.0

    def segmentation(self, requested: VoiceActivityOptions, *, is_file: bool) -> SegmentationOptions:
        """Return the options of a stream's segmentation: the requested ones, and the server's defaults."""
        return self._file(requested) if is_file else self._live(requested)

    def _live(self, requested: VoiceActivityOptions) -> EndpointOptions:
        end_silence_s = max(MIN_END_SILENCE_S, _or(requested.end_silence_s, self.live.end_silence_s))
        has_own_silence = requested.end_silence_s is not None
        return EndpointOptions(
            threshold=_or(requested.threshold, self.live.threshold),
            end_silence_s=end_silence_s,
            low_confidence_silence_s=end_silence_s if has_own_silence else self.live.low_confidence_silence_s,
            padding_s=_or(requested.speech_padding_s, self.live.padding_s),
            context_s=_or(requested.speech_padding_s, self.live.context_s),
            max_utterance_s=_or(requested.max_utterance_s, self.live.max_utterance_s),
        )

    def _file(self, requested: VoiceActivityOptions) -> PlanOptions:
        return PlanOptions(_or(requested.threshold, self.file.threshold), self.file.policy.with_overrides(requested))


@dataclass(frozen=True)
class StreamConfig:
    """The configuration of a session. requested: its options as sent. interim_interval_s: None for no interims."""

    format: AudioFormat
    options: DecodeOptions
    requested: transcription_pb2.TranscriptionOptions
    is_file: bool
    interim_interval_s: float | None


# ---- requests -------------------------------------------------------------------------------------------------


def stream_config(message: transcription_pb2.StreamConfig, defaults: StreamDefaults) -> StreamConfig:
    """Return the configuration of a new session. Raises InvalidInput."""
    if message.resume_after_sequence:
        raise InvalidInput("config.resume_after_sequence", "means nothing without resume_session_id")
    if message.mode not in transcription_pb2.StreamMode.values():
        raise InvalidInput("config.mode", f"{message.mode} is no known mode")
    is_file = message.mode == transcription_pb2.STREAM_MODE_FILE
    return StreamConfig(
        convert.audio_format(message.format, "config.format").validated("config"),
        stream_options(message.options, "config.options"),
        message.options,
        is_file,
        _interim_interval_s(message, defaults, is_file=is_file),
    )


def stream_options(message: transcription_pb2.TranscriptionOptions, field: str) -> DecodeOptions:
    """Return the options of a stream. Raises InvalidInput, also for options that need the whole recording."""
    options = convert.decode_options(message, field)
    if options.chunking not in (Chunking.AUTO, Chunking.VAD):
        raise InvalidInput(f"{field}.chunking", "a stream is cut at pauses: AUTO or VAD")
    if options.separate_channels:
        raise InvalidInput(f"{field}.channel_mode", "a stream's channels are mixed: a stream for each keeps them apart")
    if (options.voice_activity.speech_padding_s or 0.0) > MAX_PADDING_S:
        why = f"a stream keeps at most {MAX_PADDING_S:g} s on both sides of speech"
        raise InvalidInput(f"{field}.voice_activity.speech_padding", why)
    return options


def _interim_interval_s(
    message: transcription_pb2.StreamConfig, defaults: StreamDefaults, *, is_file: bool
) -> float | None:
    """Return the interval of interims, or None if the stream has none."""
    if is_file and message.interim_results:
        raise InvalidInput("config.interim_results", "a FILE stream has no interims")
    if not message.HasField("interim_interval") or message.interim_interval == Duration():
        return defaults.interim_interval_s if message.interim_results else None
    if not message.interim_results:
        raise InvalidInput("config.interim_interval", "means nothing without interim_results")
    seconds = message.interim_interval.seconds + message.interim_interval.nanos / 1e9
    if not MIN_INTERIM_INTERVAL_S <= seconds <= MAX_INTERIM_INTERVAL_S:
        why = f"{seconds:g} s is not in {MIN_INTERIM_INTERVAL_S:g} to {MAX_INTERIM_INTERVAL_S:g} s"
        raise InvalidInput("config.interim_interval", why)
    return seconds


def check_resume(message: transcription_pb2.StreamConfig) -> None:
    """Refuse a configuration in a request that resumes a session, which keeps its own. Raises InvalidInput."""
    for name in ("format", "options", "interim_interval"):
        if message.HasField(name):
            raise InvalidInput(f"config.{name}", "must be left out with resume_session_id")
    for name in ("mode", "interim_results"):
        if getattr(message, name):
            raise InvalidInput(f"config.{name}", "must be left out with resume_session_id")


def stream_request(
    message: transcription_pb2.StreamTranscribeRequest, defaults: StreamDefaults, *, is_file: bool
) -> Request:
    """Return any request after the first. Raises InvalidInput."""
    match message.WhichOneof("request"):
        case "audio":
            return message.audio
        case "control" if message.control in CONTROLS:
            return CONTROLS[message.control]
        case "control":
            raise InvalidInput("control", f"{message.control} asks for nothing that is known")
        case "update":
            return _update(message.update, defaults, is_file=is_file)
        case "config":
            raise InvalidInput("config", "comes first and only once", reason="STREAM_ORDER")
        case _:
            raise InvalidInput("request", "nothing is set", reason="STREAM_ORDER")


class UpdateMessages:
    """Updates as bytes, for the store of sessions; see `durable_records.UpdateCodec`."""

    def __init__(self, defaults: StreamDefaults) -> None:
        self._defaults = defaults

    def use(self, defaults: StreamDefaults) -> None:
        """Apply these defaults from now on."""
        self._defaults = defaults

    def encode(self, update: Update) -> bytes:
        """Return a byte for the mode, and the message of the update."""
        assert isinstance(update.requested, transcription_pb2.TranscriptionOptions)
        mode = b"F" if isinstance(update.segmentation, PlanOptions) else b"L"
        return mode + update.requested.SerializeToString()

    def decode(self, data: bytes) -> Update:
        """Return the update that has these bytes, with this server's defaults."""
        message = transcription_pb2.TranscriptionOptions.FromString(data[1:])
        return _update(message, self._defaults, is_file=data[:1] == b"F")


def _update(message: transcription_pb2.TranscriptionOptions, defaults: StreamDefaults, *, is_file: bool) -> Update:
    options = stream_options(message, "update")
    return Update(options, defaults.segmentation(options.voice_activity, is_file=is_file), message)


# ---- responses ------------------------------------------------------------------------------------------------


def effective_config(config: StreamConfig, defaults: StreamDefaults) -> transcription_pb2.StreamConfig:
    """Return the configuration in force, with the server's defaults."""
    message = transcription_pb2.StreamConfig(
        format=_format(config.format),
        options=effective_options(config.requested, config.options, defaults, is_file=config.is_file),
        mode=transcription_pb2.STREAM_MODE_FILE if config.is_file else transcription_pb2.STREAM_MODE_LIVE,
        interim_results=config.interim_interval_s is not None,
    )
    if config.interim_interval_s is not None:
        message.interim_interval.CopyFrom(convert.duration(config.interim_interval_s))
    return message


def _format(format: AudioFormat) -> audio_pb2.AudioFormat:
    encoding = next(number for number, known in convert.ENCODINGS.items() if known is format.encoding)
    rate_hz, n_channels = format.sample_rate_hz or 0, format.n_channels or 0
    if format.encoding is Encoding.CONTAINER:
        return audio_pb2.AudioFormat(sample_rate_hertz=rate_hz, channel_count=n_channels)
    return audio_pb2.AudioFormat(encoding=encoding, sample_rate_hertz=rate_hz, channel_count=n_channels or 1)


def effective_options(
    requested: transcription_pb2.TranscriptionOptions,
    options: DecodeOptions,
    defaults: StreamDefaults,
    *,
    is_file: bool,
) -> transcription_pb2.TranscriptionOptions:
    """Return the options in force: the requested ones and our defaults. A language to be detected stays empty."""
    message = transcription_pb2.TranscriptionOptions()
    message.CopyFrom(requested)
    message.model = options.model or defaults.model
    message.task = requested.task or transcription_pb2.TASK_TRANSCRIBE
    message.chunking = requested.chunking or transcription_pb2.CHUNKING_STRATEGY_AUTO
    message.channel_mode = transcription_pb2.CHANNEL_MODE_MIX
    message.decoding.beam_size = options.beam_size or defaults.beam_size
    if not requested.decoding.temperatures:
        message.decoding.temperatures.extend(defaults.temperatures)
    message.voice_activity.CopyFrom(_voice_activity(defaults.segmentation(options.voice_activity, is_file=is_file)))
    return message


def _voice_activity(segmentation: SegmentationOptions) -> transcription_pb2.VoiceActivityOptions:
    if isinstance(segmentation, EndpointOptions):
        seconds = (segmentation.end_silence_s, segmentation.padding_s, segmentation.max_utterance_s)
    else:
        seconds = (segmentation.policy.silence_s, segmentation.policy.padding_s, segmentation.policy.longest_s)
    end_silence, padding, max_utterance = map(convert.duration, seconds)
    return transcription_pb2.VoiceActivityOptions(
        threshold=segmentation.threshold, end_silence=end_silence, speech_padding=padding, max_utterance=max_utterance
    )


class EventMessages:
    """Converts one session's events to messages. code_of: returns the google.rpc.Code of an error."""

    def __init__(self, config: StreamConfig, defaults: StreamDefaults, code_of: Callable[[TypelessError], int]) -> None:
        self._config, self._defaults, self._code_of = config, defaults, code_of

    def message(
        self, entry: events.Entry, started: transcription_pb2.StreamStarted
    ) -> transcription_pb2.StreamTranscribeResponse:
        """Return an event's message. started: the content of the first one."""
        response = transcription_pb2.StreamTranscribeResponse(
            sequence=entry.sequence, cursors=cursors(entry.cursors), acknowledged_bytes=entry.acknowledged_bytes
        )
        match entry.event:
            case events.Started():
                response.started.CopyFrom(started)
            case events.SpeechStart(offset_s):
                response.speech_activity.type = transcription_pb2.SPEECH_ACTIVITY_TYPE_SPEECH_START
                response.speech_activity.offset.CopyFrom(convert.duration(offset_s))
            case events.SpeechEnd(offset_s):
                response.speech_activity.type = transcription_pb2.SPEECH_ACTIVITY_TYPE_SPEECH_END
                response.speech_activity.offset.CopyFrom(convert.duration(offset_s))
            case events.Interim():
                response.interim.CopyFrom(_interim(entry.event))
            case events.Final(index, segment):
                response.segment.CopyFrom(convert.segment(segment, index))
            case events.Progress():
                response.progress.CopyFrom(_progress(entry.event))
            case events.Completed():
                response.completed.CopyFrom(self._completed(entry.event))
            case events.Warned(error):
                response.warning.CopyFrom(self._warning(error))
            case events.Configured(options, requested):
                assert isinstance(requested, transcription_pb2.TranscriptionOptions)
                effective = effective_options(requested, options, self._defaults, is_file=self._config.is_file)
                response.configured.effective_options.CopyFrom(effective)
        return response

    def _completed(self, event: events.Completed) -> transcription_pb2.StreamCompleted:
        value = replace(event.transcript, model=event.transcript.model or self._defaults.model)
        audio_s, processing_s = value.audio_s, event.processing_s
        return transcription_pb2.StreamCompleted(
            end_reason=transcription_pb2.StreamEndReason.Value(f"STREAM_END_REASON_{event.end_reason.name}"),
            transcript=convert.transcript(value),
            stats=transcription_pb2.ProcessingStats(
                processing_time=convert.duration(processing_s),
                queue_time=convert.duration(event.queue_s),
                realtime_factor=audio_s / processing_s if processing_s > 0 else 0.0,
                chunking=transcription_pb2.CHUNKING_STRATEGY_VAD,
                chunk_count=event.n_chunks,
            ),
        )

    def _warning(self, error: TypelessError) -> failure_pb2.Failure:
        message = failure_pb2.Failure(code=self._code_of(error), reason=error.reason, message=error.message)
        if error.retry_after_s is not None:
            message.retry_delay.CopyFrom(convert.duration(error.retry_after_s))
        return message


def cursors(value: events.Cursors) -> transcription_pb2.AudioCursors:
    """Return how far each stage is."""
    message = transcription_pb2.AudioCursors(
        received=convert.duration(value.received_s),
        processed=convert.duration(value.processed_s),
        dropped=convert.duration(value.dropped_s),
    )
    message.final.CopyFrom(convert.duration(value.final_s))
    return message


def _interim(event: events.Interim) -> transcription_pb2.InterimResult:
    return transcription_pb2.InterimResult(
        stable_text=event.stable_text,
        unstable_text=event.unstable_text,
        start_offset=convert.duration(event.start_s),
        end_offset=convert.duration(event.end_s),
        confidence=event.confidence,
    )


def _progress(event: events.Progress) -> transcription_pb2.StreamProgress:
    return transcription_pb2.StreamProgress(
        fraction=event.fraction,
        chunks_done=event.chunks_done,
        chunks_total=event.chunks_total,
        audio_done=convert.duration(event.audio_done_s),
        audio_received=convert.duration(event.audio_received_s),
        message=event.message,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
