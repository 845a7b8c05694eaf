"""The `DurableStore` protocol and its values: what servers share of a session, so that it survives its server.

A session is stored as its configuration, its audio, and the inputs of its state machine (`session.py`). The same inputs
give the same session again. Its `Lease` has a token that grows with each server that takes the session. A write with an
old token fails, so a server that was frozen cannot contradict its successor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Lease:
    """The right to write a session, until another server takes it."""

    session_id: str
    token: int


@dataclass(frozen=True)
class Batch:
    """The content of one write. number: 0, 1, 2, … in each session; a batch that is written twice counts once.

    records: encoded inputs. state: replaces the stored one. audio: continues the stored audio.
    """

    number: int
    records: bytes
    state: bytes
    audio: bytes = b""


@dataclass(frozen=True)
class StoredSession:
    """A session as it is stored.

    config: as its first server stored it. records: those of all batches, in order. audio: names of the parts, for
    `DurableStore.audio`. audio_bytes: the sum of all parts.
    """

    lease: Lease
    config: bytes
    state: bytes
    n_batches: int
    records: Sequence[bytes]
    audio: Sequence[str]
    audio_bytes: int


class DurableStore(Protocol):
    """Sessions that servers share. Methods block, for a bounded time; they raise SourceUnavailable.

    A session without a write for its time to live is deleted.
    """

    def create(self, session_id: str, owner: str, config: bytes) -> Lease:
        """Store a new session. Raises RateLimited if owner has too much stored audio."""
        ...

    def take(self, session_id: str, owner: str) -> StoredSession | None:
        """Take a session from the server that has it, and return all of it. None if owner has no such session."""
        ...

    def audio(self, name: str) -> bytes:
        """Return a part of a session's audio. Raises NotFound (AUDIO_DAMAGED) if it is not as it was stored."""
        ...

    def append(self, lease: Lease, batch: Batch) -> None:
        """Add a batch. Raises WrongState (SESSION_TAKEN) if the lease is lost, and RateLimited."""
        ...

    def renew(self, lease: Lease) -> None:
        """Extend the session's time to live. Raises WrongState (SESSION_TAKEN) if the lease is lost."""
        ...

    def delete(self, lease: Lease) -> None:
        """Delete a session, unless the lease is lost."""
        ...

    def delete_expired(self) -> int:
        """Delete the sessions whose time to live is over, and return their number."""
        ...
