"""A stream that one server ended as it stopped and another goes on with, as its caller sees it: one session; no I/O.

The second session counts its events, its audio and its segments from nothing. Here they are moved behind those of the
first, and the transcripts become one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration

from typeless_grpc.pb.v1.transcript_pb2 import Segment, Transcript
from typeless_grpc.pb.v1.transcription_pb2 import StreamCompleted, StreamTranscribeResponse

# Both characters beside a seam, where their scripts put no space between words.
_NO_SPACE = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]{2}")


class Earlier:
    """What the sessions before this one came to."""

    def __init__(self) -> None:
        self._n_events = self._n_bytes = self._audio_ns = self._dropped_ns = 0
        self._fraction = 0.0
        self._completed: StreamCompleted | None = None

    def add(self, last: StreamTranscribeResponse, *, n_bytes: int, audio_ns: int) -> None:
        """A session is over: its last event, already moved, which the caller will not see; and how much it took."""
        self._n_events = last.sequence - 2  # neither is the `started` of the next one seen
        self._n_bytes += n_bytes
        self._audio_ns += audio_ns
        self._dropped_ns = last.cursors.dropped.ToNanoseconds()
        self._completed = last.completed

    def move(self, response: StreamTranscribeResponse) -> None:
        """Put an event of this session behind all that was before."""
        if self._completed is not None:
            response.sequence += self._n_events
            response.acknowledged_bytes += self._n_bytes
            at = response.cursors
            self._later(at.received, at.processed, at.final)
            at.dropped.FromNanoseconds(at.dropped.ToNanoseconds() + self._dropped_ns)
            self._move_event(response, self._completed)
        if response.HasField("progress"):
            self._fraction = response.progress.fraction

    def _move_event(self, response: StreamTranscribeResponse, earlier: StreamCompleted) -> None:
        match response.WhichOneof("event"):
            case "speech_activity":
                self._later(response.speech_activity.offset)
            case "interim":
                self._later(response.interim.start_offset, response.interim.end_offset)
            case "segment":
                self._move_segments([response.segment], len(earlier.transcript.segments))
            case "progress":
                self._later(response.progress.audio_done, response.progress.audio_received)
                response.progress.fraction = max(self._fraction, response.progress.fraction)
                response.progress.chunks_done += earlier.stats.chunk_count
                response.progress.chunks_total += earlier.stats.chunk_count
            case "completed":
                self._join(response.completed, earlier)

    def _join(self, now: StreamCompleted, earlier: StreamCompleted) -> None:
        later = Transcript()
        later.CopyFrom(now.transcript)
        self._move_segments(later.segments, len(earlier.transcript.segments))
        self._move_segments((one.segment for one in later.suppressed), 0)
        now.transcript.CopyFrom(_joined(earlier.transcript, later))
        for time in ("processing_time", "queue_time"):
            _add(getattr(now.stats, time), getattr(earlier.stats, time))
        now.stats.chunk_count += earlier.stats.chunk_count
        processing_ns = now.stats.processing_time.ToNanoseconds()
        audio_ns = now.transcript.audio_duration.ToNanoseconds()
        now.stats.realtime_factor = audio_ns / processing_ns if processing_ns else 0.0

    def _move_segments(self, segments: Iterable[Segment], n_earlier: int) -> None:
        for segment in segments:
            segment.index += n_earlier
            self._later(segment.start_offset, segment.end_offset)
            for word in segment.words:
                self._later(word.start_offset, word.end_offset)

    def _later(self, *offsets: Duration) -> None:
        for offset in offsets:
            offset.FromNanoseconds(offset.ToNanoseconds() + self._audio_ns)


def _joined(first: Transcript, second: Transcript) -> Transcript:
    """One transcript of both. The language is that of more speech."""
    is_first = first.speech_duration.ToNanoseconds() >= second.speech_duration.ToNanoseconds()
    spoken = first if is_first else second
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
