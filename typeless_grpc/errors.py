"""The error family: what can go wrong, said once, without a word of gRPC.

Inner code raises these; `interceptors/status.py` alone turns a class into a status code and `google.rpc` details.
Each carries a stable `reason` for programs, a sentence for people, and whether trying again can help.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class TypelessError(Exception):
    """Anything this package refuses or fails at, on purpose.

    reason: upper snake case and stable, "AUDIO_TOO_LONG"; message: a sentence for people, safe to send to callers;
    retry_after_s: seconds after which the same request may succeed, None where waiting does not help.
    """

    def __init__(self, message: str, *, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.retry_after_s = retry_after_s

    @property
    def retryable(self) -> bool:
        """Whether the same request, sent again later, may succeed."""
        return self.retry_after_s is not None


@dataclass(frozen=True)
class FieldViolation:
    """One thing wrong with a request: the field's path in the message ("options.language") and why."""

    field: str
    why: str


class InvalidInput(TypelessError):
    """The request is wrong in itself: the same request fails again, whenever and wherever it is sent."""

    def __init__(self, field: str, why: str, *, reason: str = "INVALID_FIELD") -> None:
        super().__init__(f"{field}: {why}" if field else why, reason=reason)
        self.violations: tuple[FieldViolation, ...] = (FieldViolation(field, why),)

    @classmethod
    def of(cls, violations: list[FieldViolation], *, reason: str = "INVALID_FIELD") -> InvalidInput:
        """All problems of one request at once; at least one."""
        first = violations[0]
        error = cls(first.field, first.why, reason=reason)
        if len(violations) > 1:
            error.message = "; ".join(f"{v.field}: {v.why}" for v in violations)
            error.args = (error.message,)
        error.violations = tuple(violations)
        return error

    def moved(self, place: Callable[[str], str]) -> InvalidInput:
        """The same of other fields: place says where in the request a field is that inner code names."""
        violations = [FieldViolation(place(one.field), one.why) for one in self.violations]
        return InvalidInput.of(violations, reason=self.reason)


class Unauthenticated(TypelessError):
    """The caller did not say who it is, or could not prove it."""


class PermissionDenied(TypelessError):
    """The caller is known and may not do this."""


class NotFound(TypelessError):
    """What the request names does not exist, or not for this caller."""


class AlreadyExists(TypelessError):
    """What the request would make is there already, and differs."""


class WrongState(TypelessError):
    """The thing exists, and its state does not allow this now."""


class RateLimited(TypelessError):
    """The caller's quota is used up; another caller's may not be.

    subject: whose quota ("key:k1"); quota: which, for people ("10 calls in 60 s").
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
    """The request is over a limit of size; a smaller one would be taken."""


class Overloaded(TypelessError):
    """This server's capacity is used up, or it is going away; another replica may serve."""

    def __init__(self, message: str, *, reason: str = "OVERLOADED", retry_after_s: float = 1.0) -> None:
        super().__init__(message, reason=reason, retry_after_s=retry_after_s)


class DeadlineExceeded(TypelessError):
    """The caller's deadline has passed, or would pass before an answer could be ready."""

    def __init__(self, message: str, *, reason: str = "DEADLINE_CANNOT_BE_MET") -> None:
        super().__init__(message, reason=reason)


class EngineFailed(TypelessError):
    """The model or what runs it failed on input that looked good."""

    def __init__(self, message: str, *, reason: str = "ENGINE_FAILED", retry_after_s: float | None = None) -> None:
        super().__init__(message, reason=reason, retry_after_s=retry_after_s)


class SourceUnavailable(TypelessError):
    """Something this server depends on (a model's source, a store) cannot be reached now."""


class NotImplementedHere(TypelessError):
    """The contract has this call, and this server does not serve it."""
