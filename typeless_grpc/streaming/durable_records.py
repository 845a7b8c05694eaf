"""The inputs of a session as bytes: compressed JSON, a list for each batch.

Decoding gives equal values, floats included.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from typeless_grpc import errors
from typeless_grpc.audio.vad import DetectorState
from typeless_grpc.engine.interface import Chunking, Recognition
from typeless_grpc.errors import NotFound, TypelessError
from typeless_grpc.speech.transcript import Segment, Suppressed, SuppressionReason, Transcript, Word
from typeless_grpc.streaming.inputs import End, EndpointDecision, Finalize, Frames, Input, InterimDecoded
from typeless_grpc.streaming.release import FinalDecoded, FinalFailed
from typeless_grpc.streaming.requests import Update

_FORMAT = 1  # of records and checkpoints; change it with either


@dataclass(frozen=True)
class Numbered:
    """The next event of the session that is kept has this sequence."""

    sequence: int


@dataclass(frozen=True)
class OwnWarning:
    """A warning that does not come from the session's state machine."""

    sequence: int
    error: TypelessError


Record = Input | Numbered | OwnWarning


class UpdateCodec(Protocol):
    """Converts updates, which contain what their caller sent."""

    def encode(self, update: Update) -> bytes:
        """Return an update as bytes."""
        ...

    def decode(self, data: bytes) -> Update:
        """Return the update that has these bytes."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """The state of a stream besides its session.

    n_bytes: bytes of audio up to the end of the current request. received: samples that the detector processed.
    detector: its state after them. fraction: progress of a FILE stream. charged_s: seconds of audio that were charged.
    end_reason: "" while audio is taken. elapsed_s: seconds since the session was opened. last_sequence: sequence of the
    newest event.
    """

    n_bytes: int = 0
    received: int = 0
    detector: DetectorState | None = None
    fraction: float = 0.0
    charged_s: float = 0.0
    end_reason: str = ""
    elapsed_s: float = 0.0
    last_sequence: int = 0


def encode(records: Iterable[Record], updates: UpdateCodec) -> bytes:
    """Return records as bytes."""
    rows = [_row(record, updates) for record in records]
    return zlib.compress(json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode(), level=1)


def decode(data: bytes, updates: UpdateCodec) -> Iterator[Record]:
    """Yield the records that `encode` was given."""
    for row in json.loads(zlib.decompress(data)):
        yield _record(row, updates)


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint as bytes."""
    row: dict[str, Any] = {name: value for name, value in vars(checkpoint).items() if name != "detector"}
    row["format"] = _FORMAT
    if checkpoint.detector is not None:
        row["detector"] = {name: _floats(array) for name, array in vars(checkpoint.detector).items()}
    return json.dumps(row).encode()


def decode_checkpoint(data: bytes) -> Checkpoint:
    """Return the checkpoint that has these bytes. Raises NotFound if a server of another version stored the session."""
    row = json.loads(data)
    if row.pop("format", None) != _FORMAT:
        message = "A server of another version stored this session, in a form that this one cannot read."
        raise NotFound(message, reason="SESSION_NOT_FOUND")
    state = DetectorState()
    for name, text in row.pop("detector", {}).items():
        setattr(state, name, _array(text).reshape(getattr(state, name).shape if name != "pending" else -1))
    return Checkpoint(**row, detector=state)


def _row(record: Record, updates: UpdateCodec) -> list[Any]:
    """Return a record as JSON can hold it. `_record` reads it."""
    match record:
        case Frames(received, probabilities):
            return ["frames", received, _floats(np.asarray(probabilities, dtype=np.float32))]
        case EndpointDecision(utterance_id, is_endpoint):
            return ["decision", utterance_id, is_endpoint]
        case Finalize():
            return ["finalize"]
        case End():
            return ["end"]
        case Update():
            return ["update", base64.b64encode(updates.encode(record)).decode()]
        case InterimDecoded(utterance_id, text, up_to, confidence):
            return ["interim", utterance_id, text, up_to, confidence]
        case FinalDecoded(utterance_id, recognition):
            return ["final", utterance_id, _recognition_row(recognition)]
        case FinalFailed(utterance_id, error):
            return ["failed", utterance_id, _error_row(error)]
        case Numbered(sequence):
            return ["event", sequence]
        case OwnWarning(sequence, error):
            return ["warning", sequence, _error_row(error)]


def _record(row: list[Any], updates: UpdateCodec) -> Record:
    """Return the record of a row that `_row`, of this or an older version, has written."""
    match row:
        case ["frames", received, text]:
            return Frames(received, _array(text).tolist())
        case ["decision", utterance_id, is_endpoint]:
            return EndpointDecision(utterance_id, is_endpoint)
        case ["finalize"]:
            return Finalize()
        case ["end"]:
            return End()
        case ["update", text]:
            return updates.decode(base64.b64decode(text))
        case ["interim", utterance_id, text, up_to, *confidence]:  # older servers stored none
            return InterimDecoded(utterance_id, text, up_to, *confidence)
        case ["final", utterance_id, recognition]:
            return FinalDecoded(utterance_id, _recognition(recognition))
        case ["failed", utterance_id, error]:
            return FinalFailed(utterance_id, _error(error))
        case ["event", sequence]:
            return Numbered(sequence)
        case ["warning", sequence, error]:
            return OwnWarning(sequence, _error(error))
    raise ValueError(f"a stored session has an unknown record: {row[0]}")


def _recognition_row(recognition: Recognition) -> dict[str, Any]:
    transcript = recognition.transcript
    row = asdict(transcript)
    assert not transcript.renditions, "finals of utterances are not rendered"
    del row["renditions"]
    row["suppressed"] = [[asdict(one.segment), one.reason.value] for one in transcript.suppressed]
    return {
        "transcript": row,
        "queue_s": recognition.queue_s,
        "n_chunks": recognition.n_chunks,
        "chunking": recognition.chunking.value,
    }


def _recognition(row: Mapping[str, Any]) -> Recognition:
    given = dict(row["transcript"])
    given["segments"] = tuple(_segment(one) for one in given["segments"])
    given["suppressed"] = tuple(
        Suppressed(_segment(segment), SuppressionReason(reason)) for segment, reason in given["suppressed"]
    )
    return Recognition(Transcript(**given), row["queue_s"], row["n_chunks"], Chunking(row["chunking"]))


def _segment(row: Mapping[str, Any]) -> Segment:
    return Segment(**{**row, "words": tuple(Word(**word) for word in row["words"])})


def _error_row(error: TypelessError) -> list[Any]:
    return [type(error).__name__, error.message, error.reason, error.retry_after_s]


def _error(row: list[Any]) -> TypelessError:
    """Return an error of the same class, reason and message, which are all that a warning sends."""
    name, message, reason, retry_after_s = row
    kind = getattr(errors, name, TypelessError)
    error: TypelessError = kind.__new__(kind)
    TypelessError.__init__(error, message, reason=reason, retry_after_s=retry_after_s)
    return error


def _floats(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(np.asarray(array, dtype="<f4").tobytes()).decode()


def _array(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)
