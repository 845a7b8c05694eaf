"""What a stream tells its caller. Offsets are seconds from the start of the audio."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.errors import TypelessError
from typeless_grpc.speech.transcript import Segment, Transcript


@dataclass(frozen=True)
class Started:
    """The session is open."""


@dataclass(frozen=True)
class SpeechStart:
    """Speech begins here."""

    offset_s: float


@dataclass(frozen=True)
class SpeechEnd:
    """Speech ended here; the utterance's segment follows."""

    offset_s: float


@dataclass(frozen=True)
class Interim:
    """An utterance so far: stable_text is a prefix of its later interims and of its segment."""

    stable_text: str
    unstable_text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Final:
    """A segment, which never changes. index: its place in the session."""

    index: int
    segment: Segment


@dataclass(frozen=True)
class Progress:
    """How far a FILE stream is. fraction: in [0, 1], never falling, 1 only in the last one."""

    fraction: float
    chunks_done: int
    chunks_total: int
    audio_done_s: float
    audio_received_s: float
    message: str


@dataclass(frozen=True)
class Configured:
    """These options hold from the next utterance on. asked: how the caller said it, for whoever answers."""

    options: DecodeOptions
    asked: object = None


@dataclass(frozen=True)
class Warned:
    """Something was lost, or soon will be; the stream goes on."""

    error: TypelessError


class EndReason(Enum):
    """Why no more audio is taken: the caller ended it, sent nothing for too long, or the server is about to stop."""

    CALLER = "caller"
    IDLE = "idle"
    DRAINING = "draining"


@dataclass(frozen=True)
class Completed:
    """All is said. queue_s: spent waiting for a free engine. processing_s: since the session was opened."""

    transcript: Transcript
    n_chunks: int
    queue_s: float
    processing_s: float = 0.0
    end_reason: EndReason = EndReason.CALLER


Event = Started | SpeechStart | SpeechEnd | Interim | Final | Progress | Configured | Warned | Completed

# Events that the next of their kind makes worthless: not kept for ever.
PASSING = (Interim, Progress, Configured)


@dataclass(frozen=True)
class Cursors:
    """How far each stage has come, in seconds of audio; dropped_s is a length. received >= processed >= final."""

    received_s: float = 0.0
    processed_s: float = 0.0
    final_s: float = 0.0
    dropped_s: float = 0.0


@dataclass(frozen=True)
class Entry:
    """An event in its place. sequence: 1, 2, 3, … over the session. acknowledged_bytes: taken, safe to forget."""

    sequence: int
    event: Event
    cursors: Cursors
    acknowledged_bytes: int
