"""Reports calls to the recorder of usage."""

from __future__ import annotations

from typeless_grpc.access.usage import UsageRecorder
from typeless_grpc.account import CallAccount
from typeless_grpc.telemetry.calls import CallRecord, Method

# CANCELLED is no failure: the caller decided it.
NOT_FAILED = ("OK", "CANCELLED")


class UsageObserver:
    """A `CallObserver` that reports the calls of our contract. Health checks and reflection do not count as usage."""

    def __init__(self, recorder: UsageRecorder) -> None:
        self._recorder = recorder

    def call_started(self, method: Method, account: CallAccount) -> None:
        """See `CallObserver`."""
        if method.is_ours:
            self._recorder.call_started(account)

    def call_ended(self, record: CallRecord) -> None:
        """See `CallObserver`."""
        self._recorder.call_ended(record.account, is_failed=record.code not in NOT_FAILED)
