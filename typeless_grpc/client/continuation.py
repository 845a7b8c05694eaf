"""Joins the sessions of a stream that a stopping server ended and another one continued; no I/O.

The next session counts its events, its audio and its segments from zero. `PriorSessions` shifts them behind those of
the sessions before, and joins the transcripts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration

from typeless_grpc.pb.v1.transcript_pb2 import Segment, Transcript
from typeless_grpc.pb.v1.transcription_pb2 import StreamCompleted, StreamTranscribeResponse

# The two characters around a join, in scripts that put no space between words.
_NO_SPACE = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]{2}")


class PriorSessions:
    """The totals of the sessions before the current one."""

    def __init__(self) -> None:
        self._n_events = self._n_bytes = self._audio_ns = self._dropped_ns = 0
        self._fraction = 0.0
        self._completed: StreamCompleted | None = None

    def add(self, last: StreamTranscribeResponse, *, n_bytes: int, audio_ns: int) -> None:
        """Add a session: its last event, already shifted, which the caller does not see, and the audio it took."""
        self._n_events = last.sequence - 2  # the caller sees neither it nor the `started` of the next session
        self._n_bytes += n_bytes
        self._audio_ns += audio_ns
        self._dropped_ns = last.cursors.dropped.ToNanoseconds()
        self._completed = last.completed

    def shift(self, response: StreamTranscribeResponse) -> None:
        """Shift an event of the current session, in place, behind all prior sessions."""
        if self._completed is not None:
            response.sequence += self._n_events
            response.acknowledged_bytes += self._n_bytes
            at = response.cursors
            self._shift_offsets(at.received, at.processed, at.final)
            at.dropped.FromNanoseconds(at.dropped.ToNanoseconds() + self._dropped_ns)
            self._shift_event(response, self._completed)
        if response.HasField("progress"):
            self._fraction = response.progress.fraction

    def _shift_event(self, response: StreamTranscribeResponse, earlier: StreamCompleted) -> None:
        """Shift times, indices and counts of an event by what earlier streams have had."""
        match response.WhichOneof("event"):
            case "speech_activity":
                self._shift_offsets(response.speech_activity.offset)
            case "interim":
                self._shift_offsets(response.interim.start_offset, response.interim.end_offset)
            case "segment":
                self._shift_segments([response.segment], len(earlier.transcript.segments))
            case "progress":
                self._shift_offsets(response.progress.audio_done, response.progress.audio_received)
                response.progress.fraction = max(self._fraction, response.progress.fraction)
                response.progress.chunks_done += earlier.stats.chunk_count
                response.progress.chunks_total += earlier.stats.chunk_count
            case "completed":
                self._join(response.completed, earlier)

    def _join(self, current: StreamCompleted, earlier: StreamCompleted) -> None:
        later = Transcript()
        later.CopyFrom(current.transcript)
        self._shift_segments(later.segments, len(earlier.transcript.segments))
        self._shift_segments((one.segment for one in later.suppressed), 0)
        current.transcript.CopyFrom(_joined(earlier.transcript, later))
        for time in ("processing_time", "queue_time"):
            _add(getattr(current.stats, time), getattr(earlier.stats, time))
        current.stats.chunk_count += earlier.stats.chunk_count
        processing_ns = current.stats.processing_time.ToNanoseconds()
        audio_ns = current.transcript.audio_duration.ToNanoseconds()
        current.stats.realtime_factor = audio_ns / processing_ns if processing_ns else 0.0

    def _shift_segments(self, segments: Iterable[Segment], n_earlier: int) -> None:
        for segment in segments:
            segment.index += n_earlier
            self._shift_offsets(segment.start_offset, segment.end_offset)
            for word in segment.words:
                self._shift_offsets(word.start_offset, word.end_offset)

    def _shift_offsets(self, *offsets: Duration) -> None:
        for offset in offsets:
            offset.FromNanoseconds(offset.ToNanoseconds() + self._audio_ns)


def _joined(first: Transcript, second: Transcript) -> Transcript:
    """Join two transcripts. The language is that of the one with more speech."""
    first_is_longer = first.speech_duration.ToNanoseconds() >= second.speech_duration.ToNanoseconds()
    spoken = first if first_is_longer else second
    both = Transcript(
        text=_text(first.text, second.text),
        raw_text=_text(first.raw_text, second.raw_text),
        segments=[*first.segments, *second.segments],
        suppressed=[*first.suppressed, *second.suppressed],
        language=spoken.language or first.language or second.language,
        language_probability=spoken.language_probability,
        model=second.model,
        audio_duration=first.audio_duration,
        speech_duration=first.speech_duration,
    )
    _add(both.audio_duration, second.audio_duration)
    _add(both.speech_duration, second.speech_duration)
    return both


def _text(first: str, second: str) -> str:
    needs_space = first and second and not _NO_SPACE.match(first[-1] + second[0])
    return first + (" " if needs_space else "") + second


def _add(to: Duration, more: Duration) -> None:
    to.FromNanoseconds(to.ToNanoseconds() + more.ToNanoseconds())
