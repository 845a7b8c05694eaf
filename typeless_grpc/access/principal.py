"""Who makes a call."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a caller may do: a user everything but the calls that need an admin."""

    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True)
class Principal:
    """A caller, as far as it is known.

    id: whose quota and whose turn a call takes: "key:ID", "token:SUBJECT", or "address:ADDRESS" for a caller without a
    key. owner: under whom jobs, uploads and sessions are filed; the same as id, but "" for everyone where keys are off.
    key_id: set for the callers of an API key. expires_s: the moment (Unix time) from which the key is no longer good.
    is_local: it calls from this machine to a server without keys, and no proxy said that it calls for another.
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
        """Whether it may make the calls of an admin, and see every caller's jobs."""
        return self.role is Role.ADMIN

    @property
    def is_shared(self) -> bool:
        """Whether others, whom nothing tells from this caller, are filed under the same owner.

        Such a caller touches what it can name, by an id that cannot be guessed, and nothing else.
        """
        return self.is_anonymous and not self.is_local


# Outside of a call, and where nobody asks who calls.
NOBODY = Principal(id="", owner="", is_anonymous=True)

_current: ContextVar[Principal] = ContextVar("principal", default=NOBODY)


def current() -> Principal:
    """The caller of the call that this code works for."""
    return _current.get()


def enter(principal: Principal) -> object:
    """Make principal the current one; hand what this returns to `leave`."""
    return _current.set(principal)


def leave(token: object) -> None:
    """Undo `enter`, in the same context."""
    _current.reset(token)  # type: ignore[arg-type]
