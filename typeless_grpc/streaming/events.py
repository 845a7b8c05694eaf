"""The events of a stream. Offsets are seconds from the start of the audio."""

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
    """Speech ended here. The utterance's segment follows."""

    offset_s: float


@dataclass(frozen=True)
class Interim:
    """The hypothesis for an open utterance.

    stable_text is a prefix of its later interims and of its segment. confidence: that of the whole text, in [0, 1].
    """

    stable_text: str
    unstable_text: str
    start_s: float
    end_s: float
    confidence: float = 0.0


@dataclass(frozen=True)
class Final:
    """A segment that no longer changes. index: its position in the session."""

    index: int
    segment: Segment


@dataclass(frozen=True)
class Progress:
    """The progress of a FILE stream. fraction: in [0, 1]; it never decreases, and is 1 only in the last event."""

    fraction: float
    chunks_done: int
    chunks_total: int
    audio_done_s: float
    audio_received_s: float
    message: str


@dataclass(frozen=True)
class Configured:
    """These options are in force from the next utterance on. requested: as the caller sent them."""

    options: DecodeOptions
    requested: object = None


@dataclass(frozen=True)
class Warned:
    """Something was lost, or soon will be. The stream continues."""

    error: TypelessError


class EndReason(Enum):
    """Why no more audio is taken: the caller ended it, the caller sent nothing for too long, or the server stops."""

    CALLER = "caller"
    IDLE = "idle"
    DRAINING = "draining"


@dataclass(frozen=True)
class Completed:
    """All finals are released. queue_s: in the inference queue. processing_s: since the session was opened."""

    transcript: Transcript
    n_chunks: int
    queue_s: float
    processing_s: float = 0.0
    end_reason: EndReason = EndReason.CALLER


Event = Started | SpeechStart | SpeechEnd | Interim | Final | Progress | Configured | Warned | Completed

# Events that the next one of their kind replaces. The journal prunes them, and durable streams do not store them.
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
    """An event of the journal. sequence: 1, 2, 3, …. acknowledged_bytes: audio that the caller need not send again."""

    sequence: int
    event: Event
    cursors: Cursors
    acknowledged_bytes: int
