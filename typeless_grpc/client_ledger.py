"""What both kinds of stream keep so that a broken connection loses nothing; no I/O.

Everything sent stays here until the server has acknowledged the audio behind it. After a break the session is taken
up: the server repeats the events that did not arrive, and says from which byte on it needs the audio again. Events that
came twice are dropped, so the caller sees one sequence.

A server that is about to stop ends the session before its caller does, and says which audio it took. The rest goes into
a new session, on whichever server the channel finds; the caller still sees one session (`client_continued.py`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from google.protobuf.duration_pb2 import Duration

from typeless_grpc.client import Options, RawFormat
from typeless_grpc.client_continued import Earlier
from typeless_grpc.pb.v1 import transcription_pb2
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeRequest, StreamTranscribeResponse

_MAX_PIECE_BYTES = 256 * 1024  # of audio in one request: well below any server's message limit
_MAX_SAMPLE_BYTES = 32  # of 8 channels in 32 bits
_SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}


class Control(Enum):
    """What can be asked for in the middle of the audio; see StreamControl in the contract."""

    FINALIZE = "finalize"
    KEEP_ALIVE = "keep_alive"
    END = "end"


# What a stream is made of: audio, controls, and options that replace those in force.
Item = bytes | bytearray | memoryview | Control | Options


@dataclass(frozen=True)
class StreamOptions:
    """How to stream; what is left out is the server's choice. See StreamConfig in the contract.

    mode: "live" or "file". interim_interval_s: how often at most; 0 is the server's choice. max_kept_bytes: audio kept
    until the server has acknowledged it; beyond it no more is read. reconnect: take up a session whose connection
    broke, and go on in a new one where a server that stops ended it; False raises CallFailed instead.
    """

    options: Options = field(default_factory=Options)
    raw_format: RawFormat | None = None
    mode: str = "live"
    interim_results: bool = False
    interim_interval_s: float = 0.0
    max_kept_bytes: int = 64 * 1024 * 1024
    reconnect: bool = True

    def message(self) -> transcription_pb2.StreamConfig:
        """The contract's form. Raises ValueError for an unknown mode."""
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


@dataclass(frozen=True)
class _Kept:
    """A request, and how many bytes of audio there were with it."""

    request: StreamTranscribeRequest
    end: int


class Ledger:
    """One session, as the caller's side knows it."""

    # Audio without an event that acknowledges it, as in a long silence: an update that changes nothing asks for one.
    _ASK_AFTER_BYTES = 4 * 1024 * 1024

    def __init__(self, options: StreamOptions) -> None:
        self._options = options
        self._kept: deque[_Kept] = deque()
        self._n_forgotten = 0
        self._n_bytes = self._acknowledged = self._asked_at = 0
        self._in_force = options.options
        self._effective: bytes | None = None
        self._last_sequence = 0
        self.session_id = ""
        self.resume_window_s = 60.0
        self.has_ended = self.is_complete = False
        self.failure = ""  # why a stream is complete for its server and not for its caller
        self._tail = b""  # of the audio that is acknowledged, as much as a sample may have
        self._taken_options: transcription_pb2.TranscriptionOptions | None = None  # the last that the server has
        self._earlier = Earlier()
        self._is_continued = False

    @property
    def is_begun(self) -> bool:
        """Whether there is something to lose: a session is open, or one is to go on in a new one."""
        return bool(self.session_id) or self._is_continued

    @property
    def has_room(self) -> bool:
        """Whether more may be added."""
        return self._n_bytes - self._acknowledged < self._options.max_kept_bytes

    def opening(self) -> StreamTranscribeRequest:
        """The first request of a call: a new session, or this one again."""
        if not self.session_id:
            config = self._options.message()
            if self._taken_options is not None:
                config.options.CopyFrom(self._taken_options)
            return StreamTranscribeRequest(config=config)
        config = transcription_pb2.StreamConfig(
            resume_session_id=self.session_id, resume_after_sequence=self._last_sequence
        )
        return StreamTranscribeRequest(config=config)

    def add(self, item: Item) -> None:
        """Send this next. Nothing may follow END. Raises TypeError for what is no Item."""
        match item:
            case bytes() | bytearray() | memoryview():
                data = bytes(item)
                for start in range(0, len(data), _MAX_PIECE_BYTES):
                    piece = data[start : start + _MAX_PIECE_BYTES]
                    self._n_bytes += len(piece)
                    self._keep(StreamTranscribeRequest(audio=piece))
                if self._n_bytes - max(self._acknowledged, self._asked_at) > self._ASK_AFTER_BYTES:
                    self._asked_at = self._n_bytes
                    self._keep(StreamTranscribeRequest(update=self._in_force.message()))
            case Control():
                control = transcription_pb2.StreamControl.Value(f"STREAM_CONTROL_{item.name}")
                self._keep(StreamTranscribeRequest(control=control))
                self.has_ended = item is Control.END
            case Options():
                self._in_force = item
                self._keep(StreamTranscribeRequest(update=item.message()))
            case _:
                kind = type(item).__name__
                raise TypeError(f"a stream is made of bytes, bytearray, memoryview, Control and Options, not of {kind}")

    def first(self) -> int:
        """Where a call begins to send: the place of the first request that is kept."""
        return self._n_forgotten

    def at(self, place: int) -> tuple[StreamTranscribeRequest, int] | None:
        """The request at a place and the place after it; None where there is none yet.

        One that is forgotten was acknowledged: it is the first that is kept, then. Both are told at once, since by the
        time a request is written the server may have acknowledged it, and the place of the next has no other clue.
        """
        index = max(0, place - self._n_forgotten)
        return (self._kept[index].request, self._n_forgotten + index + 1) if index < len(self._kept) else None

    def take(self, response: StreamTranscribeResponse) -> bool:
        """Learn from an event, and put it in its place among all that the caller sees; whether it sees this one."""
        is_wanted = self._learn(response)
        self._earlier.move(response)
        if self.is_complete and response.completed.end_reason == transcription_pb2.STREAM_END_REASON_DRAINING:
            return self._ended_by_server(response)
        return is_wanted

    def _learn(self, response: StreamTranscribeResponse) -> bool:
        kind = response.WhichOneof("event")
        is_new = response.sequence > self._last_sequence
        if kind == "started":
            self.session_id = response.started.session_id
            window = response.started.resume_window
            self.resume_window_s = window.seconds + window.nanos / 1e9
            if response.started.resumed:
                self._acknowledge(response.acknowledged_bytes, cut=True)
                return False
            self._effective = response.started.effective_config.options.SerializeToString(deterministic=True)
            if self._is_continued:
                self._last_sequence = response.sequence
                return False
        self._last_sequence = max(self._last_sequence, response.sequence)
        self._acknowledge(response.acknowledged_bytes)
        self.is_complete = self.is_complete or kind == "completed"
        if kind == "configured":
            effective = response.configured.effective_options.SerializeToString(deterministic=True)
            is_ours, self._effective = bool(self._asked_at) and effective == self._effective, effective
            return is_new and not is_ours
        return is_new

    def _ended_by_server(self, last: StreamTranscribeResponse) -> bool:
        """Go on in a new session with the audio that this one did not take, if there is any or will be."""
        self._acknowledge(self._acknowledged, cut=True)
        if self.has_ended and all(kept.request.WhichOneof("request") != "audio" for kept in self._kept):
            last.completed.end_reason = transcription_pb2.STREAM_END_REASON_CALLER
            return True
        raw = self._options.raw_format
        sample_bytes = _SAMPLE_BYTES.get(raw.encoding, 0) * raw.n_channels if raw else 0
        if raw is None or not sample_bytes or last.completed.transcript.renditions or not self._options.reconnect:
            taken = f"it took {last.acknowledged_bytes} bytes of the audio"
            self.failure = f"The server is going away: {taken}, and the rest is for another."
            return True
        n_over = self._acknowledged % sample_bytes  # half a sample is of no use there
        n_taken = self._acknowledged - n_over
        seconds_ns = n_taken // sample_bytes * 1_000_000_000 // raw.sample_rate_hz
        self._earlier.add(last, n_bytes=n_taken, audio_ns=seconds_ns)
        self._kept = deque(_Kept(kept.request, kept.end - n_taken) for kept in self._kept)
        if n_over:
            self._kept.appendleft(_Kept(StreamTranscribeRequest(audio=self._tail[-n_over:]), n_over))
            self._n_forgotten -= 1
        self._n_bytes -= n_taken
        self._asked_at = max(0, self._asked_at - n_taken)
        self._acknowledged = self._last_sequence = 0
        self.session_id, self.is_complete, self._is_continued = "", False, True
        return False

    def _keep(self, request: StreamTranscribeRequest) -> None:
        self._kept.append(_Kept(request, self._n_bytes))

    def _acknowledge(self, n_bytes: int, *, cut: bool = False) -> None:
        """Forget what the server has. A control where the acknowledged audio ends may not have arrived: it stays.

        cut: also the part of a request that it has.
        """
        self._acknowledged = max(self._acknowledged, n_bytes)
        while self._kept and self._is_known(self._kept[0]):
            known = self._kept.popleft().request
            self._n_forgotten += 1
            self._tail = (self._tail + known.audio[-_MAX_SAMPLE_BYTES:])[-_MAX_SAMPLE_BYTES:]
            if known.HasField("update"):
                self._taken_options = known.update
        if cut and self._kept and self._kept[0].request.WhichOneof("request") == "audio":
            kept = self._kept[0]
            n_known = len(kept.request.audio) - (kept.end - self._acknowledged)
            missing = kept.request.audio[n_known:]
            self._tail = (self._tail + kept.request.audio[:n_known])[-_MAX_SAMPLE_BYTES:]
            self._kept[0] = _Kept(StreamTranscribeRequest(audio=missing), kept.end)

    def _is_known(self, kept: _Kept) -> bool:
        if kept.request.WhichOneof("request") == "audio":
            return kept.end <= self._acknowledged
        return kept.end < self._acknowledged
