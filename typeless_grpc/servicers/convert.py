"""Converts messages to domain values and back. Parsing validates: errors name the field's path in the request.

Pure functions. Callers pass a path prefix ("options", "items[3].options"), because several requests contain the same
message.
"""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.engine.interface import Recognition
from typeless_grpc.errors import InvalidInput
from typeless_grpc.pb.v1 import audio_pb2, transcript_pb2, transcription_pb2
from typeless_grpc.servicers.options import CHUNKING, OUTPUT_FORMATS
from typeless_grpc.servicers.options import decode_options as decode_options
from typeless_grpc.speech.transcript import Segment, Suppressed, SuppressionReason, Transcript, Word

ENCODINGS = {
    audio_pb2.AUDIO_ENCODING_UNSPECIFIED: Encoding.CONTAINER,
    audio_pb2.AUDIO_ENCODING_PCM_S16LE: Encoding.PCM_S16LE,
    audio_pb2.AUDIO_ENCODING_PCM_F32LE: Encoding.PCM_F32LE,
    audio_pb2.AUDIO_ENCODING_MULAW: Encoding.MULAW,
    audio_pb2.AUDIO_ENCODING_ALAW: Encoding.ALAW,
}
STRATEGIES = {value: number for number, value in CHUNKING.items()}  # AUTO has two numbers; the later one stays
RENDITION_FORMATS = {value: number for number, value in OUTPUT_FORMATS.items()}
SUPPRESSION_REASONS = {
    SuppressionReason.NO_SPEECH: transcript_pb2.SUPPRESSION_REASON_NO_SPEECH,
    SuppressionReason.REPETITION: transcript_pb2.SUPPRESSION_REASON_REPETITION,
    SuppressionReason.LOW_CONFIDENCE: transcript_pb2.SUPPRESSION_REASON_LOW_CONFIDENCE,
}


# ---- requests -------------------------------------------------------------------------------------------------


def audio_source(source: audio_pb2.AudioSource, field: str) -> bytes | str:
    """Return the bytes of inline audio, or the URI of other audio."""
    if source.WhichOneof("source") == "uri":
        if not source.uri:
            raise InvalidInput(f"{field}.uri", "is empty", reason="AUDIO_MISSING")
        return source.uri
    if not source.content:
        raise InvalidInput(f"{field}.content", "there is no audio", reason="AUDIO_MISSING")
    return source.content


def audio_format(message: audio_pb2.AudioFormat, field: str) -> AudioFormat:
    """Return how to decode the bytes. field: the path of the format itself."""
    if message.encoding not in ENCODINGS:
        raise InvalidInput(
            f"{field}.encoding", f"{message.encoding} is not a known encoding", reason="UNKNOWN_ENCODING"
        )
    return AudioFormat(
        encoding=ENCODINGS[message.encoding],
        sample_rate_hz=message.sample_rate_hertz or None,
        n_channels=message.channel_count or None,
    )


# ---- responses ------------------------------------------------------------------------------------------------


def duration(seconds: float) -> Duration:
    """Return a Duration, to the microsecond."""
    message = Duration()
    message.FromTimedelta(timedelta(seconds=seconds))
    return message


def transcript(value: Transcript) -> transcript_pb2.Transcript:
    """Convert a transcript with all its parts."""
    return transcript_pb2.Transcript(
        text=value.text,
        raw_text=value.raw_text,
        segments=[segment(one, index) for index, one in enumerate(value.segments)],
        language=value.language,
        language_probability=value.language_probability,
        audio_duration=duration(value.audio_s),
        speech_duration=duration(value.speech_s),
        model=value.model,
        suppressed=[_suppressed(one, index) for index, one in enumerate(value.suppressed)],
        renditions=[
            transcript_pb2.Rendition(format=RENDITION_FORMATS[one.format], content=one.content)
            for one in value.renditions
        ],
    )


def segment(value: Segment, index: int) -> transcript_pb2.Segment:
    """Convert a segment. index: its position among the final segments."""
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
    """Return the statistics of a call. processing_s: from the request's arrival until now."""
    audio_s = recognition.transcript.audio_s
    return transcription_pb2.ProcessingStats(
        processing_time=duration(processing_s),
        queue_time=duration(recognition.queue_s),
        realtime_factor=audio_s / processing_s if processing_s > 0 else 0.0,
        chunking=STRATEGIES[recognition.chunking],
        chunk_count=recognition.n_chunks,
    )
