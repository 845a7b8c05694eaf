"""The log lines about why a database fails. Callers get only that it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

REPEAT_S = 60.0


class Causes:
    """Logs a cause when it is not that of the last failure, and once a minute. Threads may share it."""

    def __init__(self, database: str, clock: Callable[[], float] = time.monotonic) -> None:
        """database: what fails, for the log."""
        self._database, self._clock = database, clock
        self._lock = threading.Lock()
        self._last, self._logged_s = "", 0.0

    def note(self, error: Exception) -> None:
        """Log why a statement or a connection failed."""
        cause = next(iter(str(error.orig if isinstance(error, DBAPIError) else error).splitlines()), "")
        with self._lock:
            now_s = self._clock()
            if cause == self._last and now_s - self._logged_s < REPEAT_S:
                return
            self._last, self._logged_s = cause, now_s
        log.warning("a database failed", database=self._database, why=cause)
