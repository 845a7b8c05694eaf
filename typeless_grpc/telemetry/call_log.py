"""One log line for each finished call."""

from __future__ import annotations

import logging
from typing import Any

from typeless_grpc.account import CallAccount
from typeless_grpc.telemetry.calls import CallRecord, Method
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)


class CallLog:
    """A `CallObserver` that writes calls of our contract at INFO, and health checks and reflection at DEBUG."""

    def call_started(self, method: Method, account: CallAccount) -> None:
        """See `CallObserver`."""

    def call_ended(self, record: CallRecord) -> None:
        """See `CallObserver`."""
        level = logging.INFO if record.method.is_ours else logging.DEBUG
        if logging.getLogger(__name__).isEnabledFor(level):
            log.log(level, "call ended", **fields(record))


def fields(record: CallRecord) -> dict[str, Any]:
    """Return the fields of a call's line; those that do not apply are left out. Times are in seconds."""
    account = record.account
    found: dict[str, Any] = {
        "method": record.method.path,
        "code": record.code,
        "reason": account.reason,
        "duration_s": round(record.duration_s, 4),
        "caller": account.caller,
        "audio_s": round(account.audio_s, 3),
        "queue_s": round(account.queue_s, 4),
        "processing_s": round(account.processing_s, 4),
        "jobs": account.n_jobs,
        "text": " ".join(account.texts),
    }
    return {name: value for name, value in found.items() if value or name == "duration_s"}
