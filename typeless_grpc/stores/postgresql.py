"""Connections to PostgreSQL whose waits are bounded, and whose errors contain no stored data.

A connection that is reset fails at once. One whose packets are lost, in a broken network or behind a stuck proxy, does
not: the server's timeouts do not help, because the server never gets the statement, and neither do those of TCP if a
proxy acknowledges what it does not forward. So this process bounds the time to each answer, and closes a connection
that exceeds it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.abc import PQGen

T = TypeVar("T")

# After a failed attempt to connect, no other is made for this long, because its caller would wait as well.
RETRY_S = 1.0
# Interval of probes on a connection that only listens.
QUIET_S = 30.0

# Errors of these classes (SQLSTATE: data, integrity) may contain values of the row.
_WITH_VALUES = ("22", "23")


@dataclass(frozen=True)
class DatabaseTimeouts:
    """Seconds after which a wait for a database ends with an error.

    connect_s: 2 at least, by libpq. lock_s, statement_s, answer_s: in this order, so that a server that is reachable
    is the first to give up, and reports what it waited for. pool_s: for a free connection. idle_transaction_s: how long
    a worker that freezes in a transaction holds its locks. SQLite has lock_s and pool_s only.
    """

    connect_s: float = 5.0
    lock_s: float = 5.0
    statement_s: float = 8.0
    answer_s: float = 10.0
    pool_s: float = 5.0
    idle_transaction_s: float = 5.0


TIMEOUTS = DatabaseTimeouts()


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed, with an OperationalError, if an answer takes longer than `answer_s`."""

    answer_s: float = TIMEOUTS.answer_s
    # Marks a pooled connection for psycopg. SQLAlchemy's pool may leave one that a restarted server has broken to the
    # garbage collector, and psycopg warns of others.
    _pool = None

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """See psycopg. timeout: of a caller that continues after it, as the one that listens does."""
        try:
            return super().wait(gen, interval, self.answer_s if timeout is None else timeout)
        except psycopg.errors._WaitTimeout as error:
            if timeout is not None:
                raise
            self.pgconn.finish()  # a late answer would be taken for that to the next statement
            raise psycopg.OperationalError(f"connection failed: no answer in {self.answer_s:g} s") from error
        except psycopg.Error as error:
            _keep_values_out(error)
            raise

    def notifies(
        self, *, timeout: float | None = None, stop_after: int | None = None
    ) -> Generator[psycopg.Notify, None, None]:
        """See psycopg. Without a timeout it probes the server from time to time, and ends after the probe."""
        yield from super().notifies(timeout=QUIET_S if timeout is None else timeout, stop_after=stop_after)
        if timeout is None:
            self.execute("SELECT 1")


class Connector:
    """Opens the connections of a pool.

    After a failure, every attempt fails at once, until one caller tries again `RETRY_S` later. Otherwise each caller
    would wait for its own timeout, and those queued behind it as well.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._retry_s: float | None = None
        self._is_retried = False

    def connect(self, make: Callable[[], T]) -> T:
        """Return what make returns. Raises psycopg.OperationalError, at once if another caller has just failed."""
        with self._lock:
            is_retry = self._retry_s is not None
            if self._retry_s is not None and (self._is_retried or self._clock() < self._retry_s):
                raise psycopg.OperationalError("connection failed: the server did not answer a moment ago")
            self._is_retried = is_retry
        try:
            made = make()
        except psycopg.OperationalError:
            self._note(self._clock() + RETRY_S, is_retry=is_retry)
            raise
        except BaseException:
            self._note(self._retry_s, is_retry=is_retry)
            raise
        self._note(None, is_retry=is_retry)
        return made

    def _note(self, retry_s: float | None, *, is_retry: bool) -> None:
        with self._lock:
            self._retry_s = retry_s
            if is_retry:
                self._is_retried = False


def postgresql_engine(
    url: sa.URL, *, pool_size: int, max_overflow: int, timeouts: DatabaseTimeouts = TIMEOUTS
) -> sa.Engine:
    """Return a pool of bounded connections. Options in the URL override the ones here."""
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=timeouts.pool_s,
        pool_pre_ping=True,  # a restarted server leaves dead connections behind
        hide_parameters=True,  # they would be in the text of errors, and so in the log
    )
    connector = Connector()
    session = {
        "statement_timeout": timeouts.statement_s,
        "lock_timeout": timeouts.lock_s,
        "idle_in_transaction_session_timeout": timeouts.idle_transaction_s,
    }
    options = " ".join(f"-c {name}={int(seconds * 1000)}" for name, seconds in session.items())
    defaults: dict[str, Any] = {
        "connect_timeout": math.ceil(timeouts.connect_s),
        "application_name": "typeless",
        "keepalives_idle": math.ceil(timeouts.answer_s),
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": int(timeouts.answer_s * 1000),
    }

    @sa.event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, _arguments: Any, given: dict[str, Any]) -> Any:
        arguments = {**defaults, **given, "options": f"{options} {given.get('options', '')}".rstrip()}
        made = connector.connect(lambda: BoundedConnection.connect(**arguments))
        made.answer_s = timeouts.answer_s
        return made

    return engine


def _keep_values_out(error: psycopg.Error) -> None:
    """Remove values of rows from an error: DETAIL, CONTEXT, and for some classes the whole message."""
    if error.sqlstate is None:
        return
    names = [error.diag.table_name, error.diag.column_name, error.diag.constraint_name]
    what = "" if error.sqlstate.startswith(_WITH_VALUES) else f": {error.diag.message_primary}"
    about = "".join(f", {name}" for name in names if name)
    error.args = (f"{type(error).__name__} ({error.sqlstate}){about}{what}",)
