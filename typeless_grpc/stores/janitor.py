"""Deletes expired jobs and uploads, and files that belong to neither."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.stores.maintenance import JobMaintenance
from typeless_grpc.stores.uploads import SqlUploadStore
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

# Files of a job are written before its row, within one call. Files without a row after this time never get one.
# It is also the interval of sweeps.
ORPHAN_S = 3600.0
_AT_ONCE = 500  # expired jobs, and uploads, that one round deletes


class Janitor:
    """A maintenance loop in a thread; every server may have one."""

    def __init__(
        self,
        jobs: JobMaintenance,
        uploads: SqlUploadStore,
        *,
        interval_s: float = 5.0,
        may_sweep: Callable[[], bool] = lambda: True,
    ) -> None:
        """may_sweep: whether the storage belongs to the database, so that files without a row are orphans."""
        self._jobs, self._uploads, self._interval_s = jobs, uploads, interval_s
        self._may_sweep = may_sweep
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._tidy, name="jobs-janitor", daemon=True)
        self._orphans_due_s = time.monotonic()

    def start(self) -> None:
        """Start, with the first round at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def tidy_once(self) -> int:
        """Run one round; return how many jobs and uploads it deleted. Raises SourceUnavailable."""
        n_deleted = self._jobs.delete_expired(_AT_ONCE) + self._uploads.delete_expired(_AT_ONCE)
        self._jobs.drop_audio()
        if time.monotonic() >= self._orphans_due_s:
            self._orphans_due_s = time.monotonic() + ORPHAN_S
            self._jobs.delete_old_usage()
            if not self._may_sweep():
                log.error("the storage no longer belongs to the database: orphans stay; restart to see why")
                return n_deleted
            before_s = time.time() - ORPHAN_S
            self._jobs.delete_orphans(before_s)
            self._uploads.delete_orphans(before_s)
        return n_deleted

    def _tidy(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.tidy_once() >= _AT_ONCE:
                    continue  # the round was full: more may have expired
            except SourceUnavailable as error:
                log.warning("the store of jobs is unavailable; deletions are retried", reason=error.reason)
            except Exception:
                log.exception("unforeseen error while deleting expired data")
            self._stopping.wait(self._interval_s)
