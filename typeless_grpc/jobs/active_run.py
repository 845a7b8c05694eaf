"""A run that is in progress in this process."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from typing import BinaryIO

from typeless_grpc.engine.admission import Reservation
from typeless_grpc.engine.interface import Recognition
from typeless_grpc.jobs.chunks import ChunkReader
from typeless_grpc.jobs.store import Run
from typeless_grpc.jobs.turns import TIMES_THE_START


class RunStopped(Exception):
    """The worker stops, or the run has lost its lease."""


class ActiveRun:
    """The state of one run.

    Its own thread uses it; any thread may call `stop`. n_failures, language, position: the state before the job's next
    chunk. is_lost: whether the lease is lost.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.n_failures = run.n_failures
        self.language = run.job.language
        self.position = run.job.position
        self.began_s = time.monotonic()
        self.first_chunk_s: float | None = None
        self.reader: ChunkReader | None = None
        self.file: BinaryIO | None = None
        self.reservation: Reservation | None = None
        self.stopped = threading.Event()
        self.is_lost = False
        self._inference: concurrent.futures.Future[Recognition] | None = None
        self._lock = threading.Lock()

    def stop(self, *, is_lost: bool) -> None:
        """End the run at the next opportunity, and its inference at once."""
        with self._lock:
            self.is_lost = self.is_lost or is_lost
            self.stopped.set()
            if self._inference is not None:
                self._inference.cancel()

    def wait(self, seconds: float) -> None:
        """Wait for this long. Raises RunStopped as soon as the run is stopped."""
        if self.stopped.wait(seconds):
            raise RunStopped

    def result(self, inference: concurrent.futures.Future[Recognition]) -> Recognition:
        """Wait for the engine. Raises RunStopped if the run is stopped first."""
        with self._lock:
            self._inference = inference
            if self.stopped.is_set():
                inference.cancel()
        try:
            return inference.result()
        except concurrent.futures.CancelledError as error:
            raise RunStopped from error
        finally:
            with self._lock:
                self._inference = None

    def worked_s(self) -> float | None:
        """Return the seconds since the first new chunk began.

        None before the first chunk, and as long as finding it took a large part of the run's time.
        """
        if self.first_chunk_s is None:
            return None
        worked_s = time.monotonic() - self.first_chunk_s
        return worked_s if worked_s >= TIMES_THE_START * (self.first_chunk_s - self.began_s) else None

    def close(self) -> None:
        """Close the audio."""
        if self.reader is not None:
            self.reader.close()
        if self.file is not None:
            self.file.close()
