"""Messages to domain values and back. Parsing is validation: errors name the field's path in the message.

Pure functions. A path prefix ("options", "items[3].options") comes with every message, because the same message stands
in several requests.
"""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.engine.interface import DecodeOptions, Recognition, Task, VoiceActivity
from typeless_grpc.engine.transcript import Segment, Suppressed, SuppressionReason, Transcript, Word
from typeless_grpc.errors import InvalidInput
from typeless_grpc.pb.v1 import audio_pb2, transcript_pb2, transcription_pb2

# Seconds that a Duration can hold and a float can mean.
MAX_OPTION_S = 3600.0
MAX_PROMPT_CHARACTERS = 4096
MAX_HOTWORDS = 256
MAX_HOTWORD_CHARACTERS = 128

# Options of the contract that this version cannot honour: rejected, so that nobody believes they worked.
NOT_YET = ("allowed_languages", "channel_mode", "post_processing", "output_formats")

ENCODINGS = {
    audio_pb2.AUDIO_ENCODING_UNSPECIFIED: Encoding.CONTAINER,
    audio_pb2.AUDIO_ENCODING_PCM_S16LE: Encoding.PCM_S16LE,
    audio_pb2.AUDIO_ENCODING_PCM_F32LE: Encoding.PCM_F32LE,
    audio_pb2.AUDIO_ENCODING_MULAW: Encoding.MULAW,
    audio_pb2.AUDIO_ENCODING_ALAW: Encoding.ALAW,
}
TASKS = {
    transcription_pb2.TASK_UNSPECIFIED: Task.TRANSCRIBE,
    transcription_pb2.TASK_TRANSCRIBE: Task.TRANSCRIBE,
    transcription_pb2.TASK_TRANSLATE: Task.TRANSLATE,
}
SUPPRESSION_REASONS = {
    SuppressionReason.NO_SPEECH: transcript_pb2.SUPPRESSION_REASON_NO_SPEECH,
    SuppressionReason.REPETITION: transcript_pb2.SUPPRESSION_REASON_REPETITION,
    SuppressionReason.LOW_CONFIDENCE: transcript_pb2.SUPPRESSION_REASON_LOW_CONFIDENCE,
}


# ---- requests -------------------------------------------------------------------------------------------------


def audio_content(source: audio_pb2.AudioSource, field: str) -> bytes:
    """The bytes of inline audio."""
    if source.WhichOneof("source") == "uri":
        scheme = source.uri.partition(":")[0]
        raise InvalidInput(f"{field}.uri", f"scheme '{scheme}' is not taken here", reason="URI_SCHEME_NOT_ALLOWED")
    if not source.content:
        raise InvalidInput(f"{field}.content", "there is no audio", reason="AUDIO_MISSING")
    return source.content


def audio_format(message: audio_pb2.AudioFormat, field: str) -> AudioFormat:
    """How the bytes are to be read; `field` is the path of the format itself."""
    if message.encoding not in ENCODINGS:
        raise InvalidInput(f"{field}.encoding", f"{message.encoding} is no known encoding", reason="UNKNOWN_ENCODING")
    return AudioFormat(
        encoding=ENCODINGS[message.encoding],
        sample_rate_hz=message.sample_rate_hertz or None,
        n_channels=message.channel_count or None,
    )


def decode_options(message: transcription_pb2.TranscriptionOptions, field: str) -> DecodeOptions:
    """Everything a caller may ask of a transcription, checked as far as it can be without a model."""
    _reject_what_is_not_yet(message, field)
    return DecodeOptions(
        model=message.model,
        language=_language(message.language, f"{field}.language"),
        task=_task(message.task, f"{field}.task"),
        prompt=_at_most(message.prompt, MAX_PROMPT_CHARACTERS, f"{field}.prompt"),
        hotwords=_hotwords(list(message.hotwords), f"{field}.hotwords"),
        word_timestamps=message.word_timestamps,
        beam_size=_beam_size(message.decoding.beam_size, f"{field}.decoding.beam_size"),
        temperatures=_temperatures(list(message.decoding.temperatures), f"{field}.decoding.temperatures"),
        voice_activity=_voice_activity(message.voice_activity, f"{field}.voice_activity"),
    )


def _reject_what_is_not_yet(message: transcription_pb2.TranscriptionOptions, field: str) -> None:
    asked = {descriptor.name for descriptor, _ in message.ListFields()}
    for name in NOT_YET:
        if name in asked:
            raise InvalidInput(f"{field}.{name}", "this version cannot do it yet", reason="NOT_SUPPORTED")
    if message.chunking not in (
        transcription_pb2.CHUNKING_STRATEGY_UNSPECIFIED,
        transcription_pb2.CHUNKING_STRATEGY_AUTO,
    ):
        raise InvalidInput(f"{field}.chunking", "this version knows AUTO only", reason="NOT_SUPPORTED")


def _language(tag: str, field: str) -> str | None:
    """Whisper's code for a BCP-47 tag: the primary subtag; a region changes nothing about what is recognized."""
    if not tag:
        return None
    primary, *rest = tag.replace("_", "-").lower().split("-")
    if not (primary.isascii() and primary.isalpha() and 2 <= len(primary) <= 3):
        raise InvalidInput(field, f"'{tag[:40]}' is no BCP-47 language tag", reason="LANGUAGE_NOT_SUPPORTED")
    if any(len(subtag) == 4 and subtag.isalpha() for subtag in rest):
        raise InvalidInput(field, "this version cannot choose a script yet", reason="NOT_SUPPORTED")
    return primary


def _task(value: int, field: str) -> Task:
    if value not in TASKS:
        raise InvalidInput(field, f"{value} is no known task")
    return TASKS[transcription_pb2.Task.ValueType(value)]


def _at_most(text: str, n_characters: int, field: str) -> str:
    if len(text) > n_characters:
        raise InvalidInput(field, f"{len(text)} characters; at most {n_characters} are taken")
    return text


def _hotwords(words: list[str], field: str) -> tuple[str, ...]:
    if len(words) > MAX_HOTWORDS:
        raise InvalidInput(field, f"{len(words)} phrases; at most {MAX_HOTWORDS} are taken")
    for index, word in enumerate(words):
        if not word.strip():
            raise InvalidInput(f"{field}[{index}]", "is empty")
        _at_most(word, MAX_HOTWORD_CHARACTERS, f"{field}[{index}]")
    return tuple(word.strip() for word in words)


def _beam_size(value: int, field: str) -> int | None:
    if not 0 <= value <= 10:
        raise InvalidInput(field, f"{value} is not in 1 to 10")
    return value or None


def _temperatures(values: list[float], field: str) -> tuple[float, ...]:
    for index, value in enumerate(values):
        if not 0.0 <= value <= 1.0:
            raise InvalidInput(f"{field}[{index}]", f"{value} is not in 0 to 1")
    if len(values) > 10:
        raise InvalidInput(field, f"{len(values)} temperatures; at most 10 are taken")
    return tuple(round(value, 6) for value in values)


def _voice_activity(message: transcription_pb2.VoiceActivityOptions, field: str) -> VoiceActivity:
    if not (0.0 <= message.threshold < 1.0):
        raise InvalidInput(f"{field}.threshold", f"{message.threshold} is not between 0 and 1")
    padding_s = _seconds(message, "speech_padding", field)
    end_silence_s = _seconds(message, "end_silence", field)
    max_utterance_s = _seconds(message, "max_utterance", field)
    if end_silence_s is not None and end_silence_s == 0:
        raise InvalidInput(f"{field}.end_silence", "must be above 0")
    if max_utterance_s is not None and not 1.0 <= max_utterance_s <= 30.0:
        raise InvalidInput(f"{field}.max_utterance", f"{max_utterance_s} s is not in 1 to 30 s")
    return VoiceActivity(
        threshold=message.threshold or None,
        end_silence_s=end_silence_s,
        speech_padding_s=padding_s,
        max_utterance_s=max_utterance_s,
    )


def _seconds(message: transcription_pb2.VoiceActivityOptions, name: str, field: str) -> float | None:
    if not message.HasField(name):  # type: ignore[arg-type]
        return None
    value: Duration = getattr(message, name)
    seconds = value.seconds + value.nanos / 1e9
    if not 0.0 <= seconds <= MAX_OPTION_S or abs(value.nanos) > 999_999_999:
        raise InvalidInput(f"{field}.{name}", f"{seconds} s is not in 0 to {MAX_OPTION_S:.0f} s")
    return seconds


# ---- responses ------------------------------------------------------------------------------------------------


def duration(seconds: float) -> Duration:
    """A Duration, to the microsecond."""
    message = Duration()
    message.FromTimedelta(timedelta(seconds=seconds))
    return message


def transcript(value: Transcript) -> transcript_pb2.Transcript:
    """The transcript with everything in it."""
    return transcript_pb2.Transcript(
        text=value.text,
        segments=[segment(one, index) for index, one in enumerate(value.segments)],
        language=value.language,
        language_probability=value.language_probability,
        audio_duration=duration(value.audio_s),
        speech_duration=duration(value.speech_s),
        model=value.model,
        suppressed=[_suppressed(one, index) for index, one in enumerate(value.suppressed)],
    )


def segment(value: Segment, index: int) -> transcript_pb2.Segment:
    """A segment; index: its place among those that are final."""
    return transcript_pb2.Segment(
        index=index,
        start_offset=duration(value.start_s),
        end_offset=duration(value.end_s),
        text=value.text,
        words=[_word(word) for word in value.words],
        channel=value.channel,
        language=value.language,
        confidence=value.confidence,
        no_speech_probability=value.no_speech_probability,
    )


def _word(value: Word) -> transcript_pb2.Word:
    return transcript_pb2.Word(
        text=value.text,
        start_offset=duration(value.start_s),
        end_offset=duration(value.end_s),
        confidence=value.confidence,
    )


def _suppressed(value: Suppressed, index: int) -> transcript_pb2.SuppressedSegment:
    return transcript_pb2.SuppressedSegment(
        segment=segment(value.segment, index), reason=SUPPRESSION_REASONS[value.reason]
    )


def stats(recognition: Recognition, *, processing_s: float) -> transcription_pb2.ProcessingStats:
    """What the call took; processing_s: from the request's arrival until now."""
    audio_s = recognition.transcript.audio_s
    return transcription_pb2.ProcessingStats(
        processing_time=duration(processing_s),
        queue_time=duration(recognition.queue_s),
        realtime_factor=audio_s / processing_s if processing_s > 0 else 0.0,
        chunking=(
            transcription_pb2.CHUNKING_STRATEGY_WHOLE
            if recognition.n_chunks <= 1
            else transcription_pb2.CHUNKING_STRATEGY_HYBRID
        ),
        chunk_count=recognition.n_chunks,
    )
