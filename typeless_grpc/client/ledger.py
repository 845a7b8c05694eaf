"""Keeps what a stream needs to lose nothing when its connection breaks; no I/O.

The ledger keeps each request until the server acknowledges the audio up to it. After a break the stream resumes the
session: the server repeats the events that did not arrive, and reports the byte from which it needs the audio again.
The ledger drops events that arrive twice, so that the caller sees one sequence.

A server that is about to stop ends the session early and reports how much audio it took. The rest goes into a new
session on another server; the caller still sees one session (`continuation.py`).
"""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass

from typeless_grpc.client.continuation import PriorSessions
from typeless_grpc.client.options import Control, Item, Options, StreamOptions
from typeless_grpc.pb.v1 import transcription_pb2
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeRequest, StreamTranscribeResponse

AFFINITY = "x-stream-affinity"
_MAX_REQUEST_BYTES = 256 * 1024  # audio in one request; well below the message limit of any server
_MAX_SAMPLE_BYTES = 32  # of 8 channels in 32 bits
_SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}


@dataclass(frozen=True)
class _Kept:
    """A request, and the number of bytes of audio up to its end."""

    request: StreamTranscribeRequest
    end: int


class Ledger:
    """One session, as the client knows it."""

    # The server acknowledges audio in its events, and a long silence has none. After so many bytes, the ledger probes.
    PROBE_AFTER_BYTES = 4 * 1024 * 1024

    def __init__(self, options: StreamOptions) -> None:
        self._options = options
        self._kept: deque[_Kept] = deque()
        self._n_dropped = 0
        self._n_bytes = self._acknowledged = self._probed_at = 0
        self._has_probed = False
        self._in_force = options.options
        self._effective: bytes | None = None
        self._last_sequence = 0
        self.session_id = ""
        self.resume_window_s = 60.0
        self.has_ended = self.is_complete = False
        self.failure = ""  # why the server completed the session although audio is left
        self._tail = b""  # the last acknowledged bytes, at least one sample
        self._acknowledged_options: transcription_pb2.TranscriptionOptions | None = None
        self._prior = PriorSessions()
        self._is_continued = False
        self._affinity = ""
        self._is_refused = False

    def failed(self, reason: str) -> None:
        """A call failed for this reason."""
        self._is_refused = reason == "DRAINING"

    @property
    def is_begun(self) -> bool:
        """Whether a session is open, or continues in a new one, so that giving up would lose it."""
        return bool(self.session_id) or self._is_continued

    @property
    def has_room(self) -> bool:
        """Whether the ledger may keep more audio."""
        return self._n_bytes - self._acknowledged < self._options.max_kept_bytes

    def opening(self) -> StreamTranscribeRequest:
        """Return the first request of a call: it opens a session or resumes this one."""
        if not self.session_id:
            config = self._options.message()
            if self._acknowledged_options is not None:
                config.options.CopyFrom(self._acknowledged_options)
            return StreamTranscribeRequest(config=config)
        config = transcription_pb2.StreamConfig(
            resume_session_id=self.session_id, resume_after_sequence=self._last_sequence
        )
        return StreamTranscribeRequest(config=config)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers of the next call: a balancer that hashes this one sends all calls of a session to one server.

        A session that is not open yet may try another server with each call, and so does one whose server stops.
        """
        if not self.session_id or self._is_refused:
            self._affinity, self._is_refused = uuid.uuid4().hex, False
        return ((AFFINITY, self._affinity),)

    def add(self, item: Item) -> None:
        """Append an item. Nothing may follow END. Raises TypeError for an object that is not an Item."""
        match item:
            case bytes() | bytearray() | memoryview():
                data = bytes(item)
                for start in range(0, len(data), _MAX_REQUEST_BYTES):
                    block = data[start : start + _MAX_REQUEST_BYTES]
                    self._n_bytes += len(block)
                    self._keep(StreamTranscribeRequest(audio=block))
                if self._n_bytes - max(self._acknowledged, self._probed_at) > self.PROBE_AFTER_BYTES:
                    self.probe()
            case Control():
                control = transcription_pb2.StreamControl.Value(f"STREAM_CONTROL_{item.name}")
                self._keep(StreamTranscribeRequest(control=control))
                self.has_ended = item is Control.END
            case Options():
                self._in_force = item
                self._keep(StreamTranscribeRequest(update=item.message()))
            case _:
                kind = type(item).__name__
                raise TypeError(
                    f"a stream consists of bytes, bytearray, memoryview, Control and Options, not of {kind}"
                )

    def probe(self) -> None:
        """Request an event, by an update that changes nothing. Its `configured` is not for the caller."""
        if not self.has_ended:
            self._has_probed, self._probed_at = True, self._n_bytes
            self._keep(StreamTranscribeRequest(update=self._in_force.message()))

    def first(self) -> int:
        """Return the position of the first request that is kept, where a call begins to send."""
        return self._n_dropped

    def at(self, position: int) -> tuple[StreamTranscribeRequest, int] | None:
        """Return the request at a position and the position after it; None if there is no such request yet.

        For an acknowledged request, which is not kept, it is the first one kept. One call returns both: by the time a
        request is written the server may have acknowledged it, which moves the position of the next.
        """
        index = max(0, position - self._n_dropped)
        return (self._kept[index].request, self._n_dropped + index + 1) if index < len(self._kept) else None

    def take(self, response: StreamTranscribeResponse) -> bool:
        """Record an event and move it behind the prior sessions. Returns whether the caller sees it."""
        is_wanted = self._record(response)
        self._prior.shift(response)
        if self.is_complete and response.completed.end_reason == transcription_pb2.STREAM_END_REASON_DRAINING:
            return self._ended_by_server(response)
        return is_wanted

    def _record(self, response: StreamTranscribeResponse) -> bool:
        """Record a response. Return whether the caller should see it: it is new, and no result of our own requests."""
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
            is_ours, self._effective = self._has_probed and effective == self._effective, effective
            return is_new and not is_ours
        return is_new

    def _ended_by_server(self, last: StreamTranscribeResponse) -> bool:
        """Continue in a new session with the audio that is left. Returns whether the stream is complete."""
        self._acknowledge(self._acknowledged, cut=True)
        if self.has_ended and all(kept.request.WhichOneof("request") != "audio" for kept in self._kept):
            last.completed.end_reason = transcription_pb2.STREAM_END_REASON_CALLER
            return True
        raw = self._options.raw_format
        sample_bytes = _SAMPLE_BYTES.get(raw.encoding, 0) * raw.n_channels if raw else 0
        if raw is None or not sample_bytes or last.completed.transcript.renditions or not self._options.reconnect:
            self.failure = (
                f"The server is stopping. It took {last.acknowledged_bytes} bytes of the audio; "
                "send the rest in a new stream."
            )
            return True
        n_over = self._acknowledged % sample_bytes  # the new session begins with a whole sample
        n_taken = self._acknowledged - n_over
        seconds_ns = n_taken // sample_bytes * 1_000_000_000 // raw.sample_rate_hz
        self._prior.add(last, n_bytes=n_taken, audio_ns=seconds_ns)
        self._kept = deque(_Kept(kept.request, kept.end - n_taken) for kept in self._kept)
        if n_over:
            self._kept.appendleft(_Kept(StreamTranscribeRequest(audio=self._tail[-n_over:]), n_over))
            self._n_dropped -= 1
        self._n_bytes -= n_taken
        self._probed_at = max(0, self._probed_at - n_taken)
        self._acknowledged = self._last_sequence = 0
        self.session_id, self.is_complete, self._is_continued = "", False, True
        return False

    def _keep(self, request: StreamTranscribeRequest) -> None:
        self._kept.append(_Kept(request, self._n_bytes))

    def _acknowledge(self, n_bytes: int, *, cut: bool = False) -> None:
        """Drop what the server has acknowledged.

        A control right after the acknowledged audio is kept, because it may not have arrived. cut: also drop the
        acknowledged part of a request.
        """
        self._acknowledged = max(self._acknowledged, n_bytes)
        while self._kept and self._is_acknowledged(self._kept[0]):
            request = self._kept.popleft().request
            self._n_dropped += 1
            self._tail = (self._tail + request.audio[-_MAX_SAMPLE_BYTES:])[-_MAX_SAMPLE_BYTES:]
            if request.HasField("update"):
                self._acknowledged_options = request.update
        if cut and self._kept and self._kept[0].request.WhichOneof("request") == "audio":
            kept = self._kept[0]
            n_acknowledged = len(kept.request.audio) - (kept.end - self._acknowledged)
            missing = kept.request.audio[n_acknowledged:]
            self._tail = (self._tail + kept.request.audio[:n_acknowledged])[-_MAX_SAMPLE_BYTES:]
            self._kept[0] = _Kept(StreamTranscribeRequest(audio=missing), kept.end)

    def _is_acknowledged(self, kept: _Kept) -> bool:
        if kept.request.WhichOneof("request") == "audio":
            return kept.end <= self._acknowledged
        return kept.end < self._acknowledged
