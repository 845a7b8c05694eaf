"""Converts the messages of protos/typeless/engine/v1 to values of the engine and back. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass

from pydantic import TypeAdapter

from typeless_grpc import errors
from typeless_grpc.engine.interface import DecodeOptions, Lane, Recognition
from typeless_grpc.engine.observer import BatchReport, EngineObserver, Stage, WindowReport
from typeless_grpc.pb.engine.v1 import engine_pb2 as pb

VERSION = 1  # of the contract; raised by a change that older fronts or engines would misread
MAX_SAMPLES_BYTES = 4 * 1024 * 1024  # of one request; an utterance of 30 s has 1.9 MB

OPTIONS = TypeAdapter(DecodeOptions)
RECOGNITION = TypeAdapter(Recognition)

KINDS: Mapping[str, type[errors.TypelessError]] = {
    kind.__name__: kind
    for kind in (
        errors.InvalidInput,
        errors.NotFound,
        errors.AlreadyExists,
        errors.WrongState,
        errors.Aborted,
        errors.PermissionDenied,
        errors.TooLarge,
        errors.RateLimited,
        errors.Overloaded,
        errors.SourceUnavailable,
        errors.DeadlineExceeded,
        errors.EngineFailed,
        errors.OutOfRange,
        errors.NotImplementedHere,
    )
}


class UnforeseenError(Exception):
    """The engine failed in a way that it did not foresee; its log has the details."""


def error_message(error: Exception) -> pb.EngineError:
    """Return the message of an error. It has no details of an unforeseen one."""
    if not isinstance(error, errors.TypelessError):
        return pb.EngineError()
    kind = next(name for name, family in KINDS.items() if isinstance(error, family))
    message = pb.EngineError(kind=kind, reason=error.reason, message=error.message)
    if error.retry_after_s is not None:
        message.retry_after_s = error.retry_after_s
    if isinstance(error, errors.InvalidInput):
        message.fields.extend(pb.WrongField(field=one.field, why=one.why) for one in error.violations)
    if isinstance(error, errors.RateLimited):
        message.subject, message.quota = error.subject, error.quota
    return message


def error_of(message: pb.EngineError) -> Exception:
    """Return the error of a message."""
    kind = KINDS.get(message.kind)
    if kind is None:
        return UnforeseenError("the engine failed in a way that it did not foresee; its log has the details")
    if kind is errors.InvalidInput:
        violations = [errors.FieldViolation(one.field, one.why) for one in message.fields]
        return errors.InvalidInput.of(violations, reason=message.reason)
    if kind is errors.RateLimited:
        error: errors.TypelessError = errors.RateLimited(message.message, subject=message.subject, quota=message.quota)
    elif kind is errors.Overloaded:
        error = errors.Overloaded(message.message)
    else:
        error = kind(message.message, reason=message.reason)
    error.reason = message.reason
    error.retry_after_s = message.retry_after_s if message.HasField("retry_after_s") else None
    return error


def batch_message(batch: BatchReport, call_of: Callable[[Context], int]) -> pb.BatchEnded:
    """Return the message of a batch. call_of: the front's number of the call in a context; 0 for another front's."""
    return pb.BatchEnded(
        windows=[
            pb.BatchWindow(
                call=call_of(window.context),
                lane=window.lane,
                submitted_s=window.submitted_s,
                is_done=window.is_done,
            )
            for window in batch.windows
        ],
        started_s=batch.started_s,
        ended_s=batch.ended_s,
        stages=[pb.BatchStage(name=one.name, started_s=one.started_s, seconds=one.seconds) for one in batch.stages],
    )


@dataclass(frozen=True)
class Replay:
    """Passes an engine's reports to an observer.

    offset_s: difference of the clock here to the engine's. context_of: returns the context of a call of this front.
    """

    observer: EngineObserver
    offset_s: float
    context_of: Callable[[int], Context]

    def report(self, reports: Sequence[pb.Report]) -> None:
        """Pass on all reports, in order."""
        for report in reports:
            event = report.WhichOneof("event")
            if event == "batch_ended":
                self.observer.batch_ended(self._batch(report.batch_ended))
            elif event == "refused":
                self.observer.refused(Lane(report.refused.lane), report.refused.reason)
            elif event == "decoded_again":
                self.observer.decoded_again(report.decoded_again)
            elif event == "suppressed":
                self.observer.suppressed(report.suppressed)

    def _batch(self, message: pb.BatchEnded) -> BatchReport:
        return BatchReport(
            windows=[
                WindowReport(
                    Lane(one.lane), one.submitted_s + self.offset_s, self.context_of(one.call), is_done=one.is_done
                )
                for one in message.windows
            ],
            started_s=message.started_s + self.offset_s,
            ended_s=message.ended_s + self.offset_s,
            stages=[Stage(one.name, one.started_s + self.offset_s, one.seconds) for one in message.stages],
        )
