"""The log lines about why a database or the storage fails. Callers get only that it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

REPEAT_S = 60.0
SHORTEST_S = 1.0


class Causes:
    """Logs a cause when it is not that of the last failure, once a second at most, and once a minute.

    Threads may share it.
    """

    def __init__(self, store: str, clock: Callable[[], float] = time.monotonic) -> None:
        """store: what fails, for the log."""
        self._store, self._clock = store, clock
        self._lock = threading.Lock()
        self._last, self._logged_s = "", -REPEAT_S

    def note(self, error: Exception) -> None:
        """Log why something failed."""
        cause = _text(error)
        with self._lock:
            now_s = self._clock()
            if now_s - self._logged_s < (REPEAT_S if cause == self._last else SHORTEST_S):
                return
            self._last, self._logged_s = cause, now_s
        log.warning("a store failed", store=self._store, why=cause)


def _text(error: Exception) -> str:
    """Return the first line of an error, without the statement or the path that belong to one call."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error.orig if isinstance(error, DBAPIError) else error).splitlines()), "")
