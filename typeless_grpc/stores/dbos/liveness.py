"""Detects which workers are alive: on this machine by a lock, on any machine by heartbeats."""

from __future__ import annotations

import fcntl
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from typeless_grpc.disk import make_directory


def new_worker_id() -> str:
    """Return a unique id for this start of this process."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


class LivenessLock:
    """A locked file of a worker. The kernel releases the lock when the process ends, however it ends."""

    def __init__(self, directory: Path, worker_id: str) -> None:
        make_directory(directory)
        self._path = directory / worker_id
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Release the lock and delete the file."""
        self._path.unlink(missing_ok=True)
        self._file.close()

    @staticmethod
    def is_dead(directory: Path, worker_id: str) -> bool:
        """Whether the worker ran on this machine and has ended; False if unknown."""
        try:
            file = (directory / worker_id).open("r")
        except OSError:
            return False
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return False
            return True


class OwnHeartbeat:
    """The heartbeats of this worker, which decide whether it may treat silent workers as dead.

    If it could not send one for a while (the database was unavailable, or the machine slept), other workers may not
    have been able to either. They then get one timeout to send their next one. Otherwise the first worker to recover
    would reassign all running jobs, and each would count as a crash.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start to measure the time without a heartbeat."""
        self._timeout_s, self._clock = timeout_s, clock
        self._last_s = self._trusts_from_s = clock()

    def sent(self) -> None:
        """Note that a heartbeat was sent. Send four of them in each timeout."""
        now_s = self._clock()
        if now_s - self._last_s > self._timeout_s / 2:
            self._trusts_from_s = now_s + self._timeout_s
        self._last_s = now_s

    @property
    def trusts_silence(self) -> bool:
        """Whether a worker without heartbeats is dead."""
        return self._clock() >= self._trusts_from_s


class PeerHeartbeats:
    """How long each worker has been silent, by this machine's own clock.

    Only a change of a heartbeat counts, not its value, because the clock that wrote it may have been set. A worker that
    is seen for the first time has one timeout to change it.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s, self._clock = timeout_s, clock
        self._seen: dict[str, tuple[float, float]] = {}

    def silent(self, heartbeats: Mapping[str, float]) -> set[str]:
        """Return the workers whose heartbeat has not changed for a timeout. Call it several times in each timeout."""
        now_s = self._clock()
        unseen = (None, now_s)
        self._seen = {
            worker: self._seen[worker] if self._seen.get(worker, unseen)[0] == heartbeat else (heartbeat, now_s)
            for worker, heartbeat in heartbeats.items()
        }
        return {worker for worker, (_, since_s) in self._seen.items() if now_s - since_s >= self._timeout_s}
