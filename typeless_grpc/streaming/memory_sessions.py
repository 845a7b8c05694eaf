"""A `DurableStore` in memory, for tests."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

from typeless_grpc.errors import WrongState
from typeless_grpc.streaming.durable_store import Batch, Lease, StoredSession


@dataclass
class _Row:
    """One session. token: of its newest lease."""

    owner: str
    config: bytes
    token: int = 1
    batches: list[Batch] = field(default_factory=list)


class MemorySessionStore:
    """See `DurableStore`. Its sessions do not expire. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, _Row] = {}

    def create(self, session_id: str, owner: str, config: bytes) -> Lease:
        """See `DurableStore`."""
        with self._lock:
            self._rows[session_id] = _Row(owner, config)
        return Lease(session_id, 1)

    def take(self, session_id: str, owner: str) -> StoredSession | None:
        """See `DurableStore`."""
        with self._lock:
            row = self._rows.get(session_id)
            if row is None or row.owner != owner:
                return None
            row.token += 1
            return StoredSession(
                lease=Lease(session_id, row.token),
                config=row.config,
                state=row.batches[-1].state if row.batches else b"",
                n_batches=len(row.batches),
                records=[batch.records for batch in row.batches],
                audio=[f"{session_id}/{batch.number}" for batch in row.batches if batch.audio],
                audio_bytes=sum(len(batch.audio) for batch in row.batches),
            )

    def audio(self, name: str) -> bytes:
        """See `DurableStore`."""
        session_id, _, number = name.partition("/")
        with self._lock:
            return self._rows[session_id].batches[int(number)].audio

    def append(self, lease: Lease, batch: Batch) -> None:
        """See `DurableStore`."""
        with self._lock:
            row = self._held(lease)
            if batch.number == len(row.batches):
                row.batches.append(replace(batch))
            elif batch.number != len(row.batches) - 1:
                raise _taken_error()

    def renew(self, lease: Lease) -> None:
        """See `DurableStore`."""
        with self._lock:
            self._held(lease)

    def delete(self, lease: Lease) -> None:
        """See `DurableStore`."""
        with self._lock:
            row = self._rows.get(lease.session_id)
            if row is not None and row.token == lease.token:
                del self._rows[lease.session_id]

    def delete_expired(self) -> int:
        """See `DurableStore`."""
        return 0

    def _held(self, lease: Lease) -> _Row:
        row = self._rows.get(lease.session_id)
        if row is None or row.token != lease.token:
            raise _taken_error()
        return row


def _taken_error() -> WrongState:
    return WrongState("Another server has resumed this session.", reason="SESSION_TAKEN")
