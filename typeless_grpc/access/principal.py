"""The caller of a call."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a caller may do. A user may make every call that does not need an admin."""

    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True)
class Principal:
    """A caller.

    id: for quotas and fairness: "key:ID", "token:SUBJECT", or "address:ADDRESS" for a caller without a key. owner: the
    owner of its jobs, uploads and sessions; the same as id, but "" for everyone if keys are off. key_id: set for the
    callers of an API key. expires_s: when the key expires (Unix time). is_local: the server has no keys, and the call
    comes from this machine and not through a proxy for another address.
    """

    id: str
    owner: str
    role: Role = Role.USER
    key_id: str = ""
    expires_s: float | None = None
    is_anonymous: bool = False
    is_local: bool = False

    @property
    def is_admin(self) -> bool:
        """Whether it may make an admin's calls, and see every caller's jobs."""
        return self.role is Role.ADMIN

    @property
    def is_shared(self) -> bool:
        """Whether other callers that cannot be distinguished from this one have the same owner.

        Such a caller reaches only data whose id it knows; ids are random.
        """
        return self.is_anonymous and not self.is_local


# The principal outside of a call, and if callers are not identified.
NOBODY = Principal(id="", owner="", is_anonymous=True)

_current: ContextVar[Principal] = ContextVar("principal", default=NOBODY)


def current() -> Principal:
    """Return the caller of the current call."""
    return _current.get()


def enter(principal: Principal) -> object:
    """Make principal the current one. Pass the returned token to `leave`."""
    return _current.set(principal)


def leave(token: object) -> None:
    """Undo `enter`, in the same context."""
    _current.reset(token)  # type: ignore[arg-type]
