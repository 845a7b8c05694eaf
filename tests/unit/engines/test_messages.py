"""Errors, options and reports cross the boundary unchanged."""

from __future__ import annotations

from contextvars import Context

import pytest

from typeless_grpc import errors
from typeless_grpc.engine.interface import Lane
from typeless_grpc.engine.observer import BatchReport, NoObserver, Stage, WindowReport
from typeless_grpc.engines.messages import Replay, UnforeseenError, batch_message, error_message, error_of
from typeless_grpc.pb.engine.v1 import engine_pb2 as pb

ERRORS = [
    errors.InvalidInput.of(
        [errors.FieldViolation("options.language", "is odd"), errors.FieldViolation("audio", "is long")], reason="ODD"
    ),
    errors.NotFound("No.", reason="MODEL_NOT_FOUND"),
    errors.WrongState("No.", reason="MODEL_TOO_LARGE"),
    errors.RateLimited("No.", reason="SHARE_USED_UP", retry_after_s=0.5, subject="key:1", quota="slots"),
    errors.Overloaded("No.", reason="DRAINING", retry_after_s=2.5),
    errors.SourceUnavailable("No.", reason="MODEL_UNAVAILABLE"),
    errors.DeadlineExceeded("No."),
    errors.EngineFailed("No.", reason="MODEL_LOAD_FAILED"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_crosses_with_all_its_fields(error: errors.TypelessError):
    crossed = error_of(pb.EngineError.FromString(error_message(error).SerializeToString()))
    assert type(crossed) is type(error)
    assert vars(crossed) == vars(error)
    assert str(crossed) == str(error)


def test_an_unforeseen_error_crosses_without_its_text():
    crossed = error_of(error_message(ValueError("a secret")))
    assert isinstance(crossed, UnforeseenError)
    assert "a secret" not in str(crossed)


def test_every_error_of_the_family_can_cross():
    family = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.TypelessError)]
    lacking = {one.__name__ for one in family} - {errors.TypelessError.__name__}
    for kind in family:
        if kind not in (errors.TypelessError, errors.InvalidInput, errors.Unauthenticated):
            lacking.discard(type(error_of(error_message(kind("No.", reason="R")))).__name__)
    assert lacking == {"InvalidInput", "Unauthenticated"}  # tested above; not an engine's


def test_reports_are_replayed_on_the_clock_of_the_front():
    class Seen(NoObserver):
        def __init__(self) -> None:
            self.batches: list[BatchReport] = []
            self.others: list[object] = []

        def batch_ended(self, batch: BatchReport) -> None:
            self.batches.append(batch)

        def refused(self, lane: Lane, reason: str) -> None:
            self.others.append((lane, reason))

        def decoded_again(self, reason: str) -> None:
            self.others.append(reason)

    mine, other = Context(), Context()
    windows = [WindowReport(Lane.JOBS, 1.0, mine, is_done=True), WindowReport(Lane.UNARY, 1.5, other, is_done=False)]
    batch = BatchReport(windows, 2.0, 3.0, [Stage("encode", 2.0, 0.25)])
    message = batch_message(batch, lambda context: 7 if context is mine else 0)
    seen = Seen()
    reports = [
        pb.Report(batch_ended=message),
        pb.Report(refused=pb.Refused(lane=Lane.BATCH, reason="OVERLOADED")),
        pb.Report(decoded_again="hints"),
    ]
    Replay(seen, 100.0, {7: mine, 0: other}.__getitem__).report(reports)
    assert seen.batches == [
        BatchReport(
            [WindowReport(Lane.JOBS, 101.0, mine, is_done=True), WindowReport(Lane.UNARY, 101.5, other, is_done=False)],
            102.0,
            103.0,
            [Stage("encode", 102.0, 0.25)],
        )
    ]
    assert seen.others == [(Lane.BATCH, "OVERLOADED"), "hints"]
