"""The caller of a call."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """The role of a caller: a user may make all calls except those that need an admin."""

    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True)
class Principal:
    """A caller, as far as it is known.

    id: the caller of quotas and turns: "key:ID", "token:SUBJECT", or "address:ADDRESS" without a key. owner: of jobs,
    uploads and sessions; the same as id, but "" for all callers if keys are off. key_id: set for callers with an API
    key. expires_s: Unix time at which the key expires. is_local: the call comes from this machine to a server without
    keys, and no proxy sent it for another.
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
        """Whether it may make the calls of an admin, and see the jobs of all callers."""
        return self.role is Role.ADMIN

    @property
    def is_shared(self) -> bool:
        """Whether other callers, which cannot be distinguished from this one, have the same owner.

        Such a caller may use only what it can name, by an unguessable id.
        """
        return self.is_anonymous and not self.is_local


# Outside of a call, and on servers without access control.
NOBODY = Principal(id="", owner="", is_anonymous=True)

_current: ContextVar[Principal] = ContextVar("principal", default=NOBODY)


def current() -> Principal:
    """Return the caller of the current call."""
    return _current.get()


def enter(principal: Principal) -> object:
    """Make principal the current one; pass the result to `leave`."""
    return _current.set(principal)


def leave(token: object) -> None:
    """Undo `enter`, in the same context."""
    _current.reset(token)  # type: ignore[arg-type]
