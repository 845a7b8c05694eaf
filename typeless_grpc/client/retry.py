"""Decides when to repeat a failed call, for the whole client. No I/O and no sleeping.

gRPC itself repeats the calls in SERVICE_CONFIG. A `RetryState` decides for all others: streams, jobs and uploads, and
the command line, which shows that it waits.

A failure is worth another attempt if it is

- transient: UNAVAILABLE, or a broken connection, which ends a call without a reason from the server. The wait doubles
  with each failure in a row.
- a quota, for which the server gives the time of the next attempt (RetryInfo).
- an upload offset that the server has moved past since the caller read it. The caller reads it again at once.

No wait is shorter than RetryInfo, except while a server drains: another one may take the call at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from typeless_grpc.client.errors import CallFailed

# The status of a call whose connection broke, or that a stopping server cut; such a call has no reason.
_BROKEN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    }
)
_QUOTA_REASONS = frozenset({"RATE_LIMITED", "SHARE_USED_UP", "TOO_MANY_STREAMS"})
_BACKOFF_FACTOR = 2.0


@dataclass(frozen=True)
class RetryPolicy:
    """Bounds on repeating one operation.

    max_attempts: in a row without progress, None for no bound. max_quota_attempts: the same while a quota is used up.
    first_delay_s, max_delay_s: the exponential backoff. max_quota_s: the longest wait for a quota that the server may
    request. max_total_s: from the first failure in a row to the last attempt. jitter: each wait is longer by a random
    part of itself, at most this, so that clients do not come back together.
    """

    max_attempts: int | None = 10
    max_quota_attempts: int | None = 10
    first_delay_s: float = 0.2
    max_delay_s: float = 5.0
    max_quota_s: float = 60.0
    max_total_s: float | None = None
    jitter: float = 0.2


UNARY = RetryPolicy(max_attempts=4)
"""What gRPC does by itself, with its own jitter and within the deadline of the call."""

# Calls that change nothing but quotas. gRPC waits as long as the server says (grpc-retry-pushback-ms).
_SAFE_TO_REPEAT = {
    "typeless.v1.TranscriptionService": ("Transcribe", "BatchTranscribe"),
    "typeless.v1.ServerService": ("GetServerInfo",),
    "typeless.v1.ModelService": ("ListModels",),
}
SERVICE_CONFIG: dict[str, Any] = {
    "methodConfig": [
        {
            "name": [
                {"service": service, "method": method}
                for service, methods in _SAFE_TO_REPEAT.items()
                for method in methods
            ],
            "retryPolicy": {
                "maxAttempts": UNARY.max_attempts,
                "initialBackoff": f"{UNARY.first_delay_s:g}s",
                "maxBackoff": f"{UNARY.max_delay_s:g}s",
                "backoffMultiplier": _BACKOFF_FACTOR,
                # CANCELLED: a server that stops, or that has more calls than gRPC keeps, has reset the call.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
    # If most calls fail, repeating them only adds load. While one of two servers stops, about half of them may fail.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 1.0},
}


class RetryState:
    """The failures in a row of one operation. It belongs to one thread or task."""

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        random_fraction: Callable[[], float] = random.random,
    ) -> None:
        """clock: seconds from any origin. random_fraction: uniform in [0, 1)."""
        self._policy = policy or RetryPolicy()
        self._clock, self._random_fraction = clock, random_fraction
        self._n_failures = self._n_quota_failures = 0
        self._failing_since_s = 0.0

    def progressed(self) -> None:
        """Forget the failures, because the operation has progressed."""
        self._n_failures = self._n_quota_failures = 0

    def wait_s(self, failed: CallFailed, policy: RetryPolicy | None = None) -> float:
        """Count a failure and return the seconds until the next attempt. Raises failed if there is none.

        policy: replaces that of the constructor.
        """
        policy = policy or self._policy
        now_s = self._clock()
        if self._n_failures + self._n_quota_failures == 0:
            self._failing_since_s = now_s
        delay_s = self._delay_s(failed, policy)
        if delay_s is None:
            raise failed
        jittered_s = delay_s * (1 + policy.jitter * self._random_fraction())
        if policy.max_total_s is None:
            return jittered_s
        left_s = policy.max_total_s - (now_s - self._failing_since_s)
        if delay_s > left_s:
            raise failed
        return min(jittered_s, left_s)

    def _delay_s(self, failed: CallFailed, policy: RetryPolicy) -> float | None:
        """Return how long to wait before the next attempt, or None if there is to be none."""
        retry_after_s = failed.retry_after_s or 0.0
        if is_quota(failed):
            self._n_quota_failures += 1
            has_attempts = _is_below(self._n_quota_failures, policy.max_quota_attempts)
            return retry_after_s if has_attempts and retry_after_s <= policy.max_quota_s else None
        self._n_failures += 1
        if not _is_below(self._n_failures, policy.max_attempts):
            return None
        if failed.reason == "UPLOAD_OFFSET_MISMATCH":
            return 0.0
        if not is_transient(failed):
            return None
        backoff_s = min(policy.first_delay_s * _BACKOFF_FACTOR ** min(self._n_failures - 1, 30), policy.max_delay_s)
        return backoff_s if failed.reason == "DRAINING" else max(backoff_s, retry_after_s)


def is_transient(failed: CallFailed) -> bool:
    """Whether the same call may succeed on another attempt or another server."""
    return failed.code is grpc.StatusCode.UNAVAILABLE or (failed.code in _BROKEN and not failed.reason)


def is_quota(failed: CallFailed) -> bool:
    """Whether the caller has used up a quota that refills, at a time that the server gives."""
    return failed.reason in _QUOTA_REASONS and failed.retry_after_s is not None


def _is_below(n_failures: int, max_attempts: int | None) -> bool:
    return max_attempts is None or n_failures < max_attempts
