"""Converts our transcripts and events to Riva's responses: pure functions."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration

from typeless_grpc.pb.v1 import transcript_pb2, transcription_pb2
from typeless_grpc.servicers.riva import messages
from typeless_grpc.speech.transcript import joined


def recognized(transcript: transcript_pb2.Transcript) -> Any:
    """Return the response with a recording's transcript: a result for each segment, or one with an empty text."""
    audio_s = _seconds(transcript.audio_duration)
    response = messages.RecognizeResponse()
    for segment in transcript.segments or [transcript_pb2.Segment(language=transcript.language)]:
        response.results.add(alternatives=[_final(segment)], channel_tag=segment.channel + 1, audio_processed=audio_s)
    return response


def final(segment: transcript_pb2.Segment) -> Any:
    """Return the response with a final segment of a stream."""
    response = messages.StreamingRecognizeResponse()
    end_s = _seconds(segment.end_offset)
    response.results.add(alternatives=[_final(segment)], is_final=True, channel_tag=1, audio_processed=end_s)
    return response


def interim(result: transcription_pb2.InterimResult) -> Any:
    """Return the response with an interim."""
    text = result.stable_text + result.unstable_text
    alternative = messages.Alternative(transcript=text, confidence=result.confidence)
    response = messages.StreamingRecognizeResponse()
    response.results.add(
        alternatives=[alternative],
        stability=len(result.stable_text) / max(1, len(text)),
        channel_tag=1,
        audio_processed=_seconds(result.end_offset),
    )
    return response


def _final(segment: transcript_pb2.Segment) -> Any:
    """Return a segment as an alternative."""
    words = [
        messages.WordInfo(
            start_time=round(_seconds(word.start_offset) * 1000),
            end_time=round(_seconds(word.end_offset) * 1000),
            word=word.text,
            confidence=word.confidence,
            language_code=segment.language,
        )
        for word in segment.words
    ]
    return messages.Alternative(
        transcript=_to_be_joined(segment.text),
        confidence=segment.confidence,
        words=words,
        language_code=[segment.language] if segment.language else [],
    )


def _to_be_joined(text: str) -> str:
    """Return the text with a space at its end, because clients join texts as they are."""
    text = text.strip()
    return f"{text} " if joined([text, "."]) == f"{text} ." else text


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
