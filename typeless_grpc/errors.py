"""The error family, which is independent of gRPC.

Inner code raises these classes; only `interceptors/status.py` maps them to status codes and `google.rpc` details. Each
error has a stable `reason` for programs, a message for people, and whether a retry can succeed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class TypelessError(Exception):
    """The base class of all errors that this package raises on purpose.

    reason: stable, in upper snake case, "AUDIO_TOO_LONG". message: a sentence that is safe to send to callers.
    retry_after_s: seconds after which the same request may succeed, None if waiting does not help.
    """

    def __init__(self, message: str, *, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.retry_after_s = retry_after_s

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.retry_after_s is not None


@dataclass(frozen=True)
class FieldViolation:
    """One thing wrong with a request: the field's path in the message ("options.language") and why."""

    field: str
    why: str


class InvalidInput(TypelessError):
    """The request is invalid: it fails again whenever and wherever it is sent."""

    def __init__(self, field: str, why: str, *, reason: str = "INVALID_FIELD") -> None:
        super().__init__(f"{field}: {why}" if field else why, reason=reason)
        self.violations: tuple[FieldViolation, ...] = (FieldViolation(field, why),)

    @classmethod
    def of(cls, violations: list[FieldViolation], *, reason: str = "INVALID_FIELD") -> InvalidInput:
        """Return one error for all problems of a request; there must be at least one."""
        first = violations[0]
        error = cls(first.field, first.why, reason=reason)
        if len(violations) > 1:
            error.message = "; ".join(f"{v.field}: {v.why}" for v in violations)
            error.args = (error.message,)
        error.violations = tuple(violations)
        return error

    def moved(self, place: Callable[[str], str]) -> InvalidInput:
        """Return the same error with other field paths. place: maps a field that inner code names to its path."""
        violations = [FieldViolation(place(one.field), one.why) for one in self.violations]
        return InvalidInput.of(violations, reason=self.reason)


class Unauthenticated(TypelessError):
    """The caller gave no credentials, or invalid ones."""


class PermissionDenied(TypelessError):
    """The caller is known, but may not do this."""


class NotFound(TypelessError):
    """The resource does not exist, or not for this caller."""


class AlreadyExists(TypelessError):
    """The resource exists already and differs from the request."""


class WrongState(TypelessError):
    """The state of the resource does not allow this now."""


class RateLimited(TypelessError):
    """The caller's quota is used up; other callers are not affected.

    subject: the owner of the quota ("key:k1"). quota: its description ("10 calls in 60 s").
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "RATE_LIMITED",
        retry_after_s: float | None = None,
        subject: str = "",
        quota: str = "",
    ) -> None:
        super().__init__(message, reason=reason, retry_after_s=retry_after_s)
        self.subject = subject
        self.quota = quota


class TooLarge(TypelessError):
    """The request exceeds a size limit; a smaller one would be accepted."""


class Overloaded(TypelessError):
    """This server's capacity is used up, or it is draining; another replica may accept the call."""

    def __init__(self, message: str, *, reason: str = "OVERLOADED", retry_after_s: float = 1.0) -> None:
        super().__init__(message, reason=reason, retry_after_s=retry_after_s)


class DeadlineExceeded(TypelessError):
    """The caller's deadline has passed, or would pass before the result."""

    def __init__(self, message: str, *, reason: str = "DEADLINE_CANNOT_BE_MET") -> None:
        super().__init__(message, reason=reason)


class EngineFailed(TypelessError):
    """The model or its runtime failed on valid input."""

    def __init__(self, message: str, *, reason: str = "ENGINE_FAILED", retry_after_s: float | None = None) -> None:
        super().__init__(message, reason=reason, retry_after_s=retry_after_s)


class SourceUnavailable(TypelessError):
    """Something that this server depends on (a model's source, a store) is unavailable."""


class Aborted(TypelessError):
    """The server ended the call, but nothing is wrong with its request: the caller should begin a new call."""


class OutOfRange(TypelessError):
    """A stream went on beyond what one stream may have: the caller should begin a new one."""


class NotImplementedHere(TypelessError):
    """The contract has this method, but this server does not implement it."""
