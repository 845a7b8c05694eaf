"""Connections to PostgreSQL on which no wait is without end, and whose errors repeat nobody's data.

A database that resets a connection is noticed at once. One whose packets are lost, on a network that is cut or behind a
proxy that is stuck, says nothing: timeouts of the server do not help, since it was never asked, and neither do those of
TCP where a proxy acknowledges what it does not pass on. So each answer has a limit here, in this process, and a
connection that missed it is closed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.abc import PQGen

T = TypeVar("T")

# In this order, so that the server, where it can be reached, is the first to give up, and says what it waited for.
CONNECT_S = 5
LOCK_S = 5
STATEMENT_S = 8
ANSWER_S = 10
# For a free connection of the pool.
POOL_S = 5
# A worker that freezes within a transaction must not hold its locks for longer.
IDLE_TRANSACTION_S = 5
# After a connection that could not be made, others are not tried for so long: their callers would wait as well.
RETRY_S = 1.0
# A connection that only listens is asked for a sign of life so often.
QUIET_S = 30.0

# Of errors of these classes (SQLSTATE: data, integrity) the text may repeat values of the row.
_OF_VALUES = ("22", "23")


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed, with an OperationalError, where an answer takes longer than `ANSWER_S`."""

    answer_s: float = ANSWER_S

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """See psycopg. timeout: of a caller that goes on after it, as the one that listens does."""
        try:
            return super().wait(gen, interval, self.answer_s if timeout is None else timeout)
        except psycopg.errors._WaitTimeout as error:
            if timeout is not None:
                raise
            self.pgconn.finish()  # an answer that came now would be taken for that to the next question
            raise psycopg.OperationalError(f"connection failed: no answer in {self.answer_s:g} s") from error
        except psycopg.Error as error:
            _keep_values_out(error)
            raise

    def notifies(
        self, *, timeout: float | None = None, stop_after: int | None = None
    ) -> Generator[psycopg.Notify, None, None]:
        """See psycopg. Without a timeout it ends now and then, once the server has shown that it is still there."""
        yield from super().notifies(timeout=QUIET_S if timeout is None else timeout, stop_after=stop_after)
        if timeout is None:
            self.execute("SELECT 1")


class Connector:
    """Makes the connections of a pool.

    Where one could not be made, that is the answer for everyone until `RETRY_S` later one caller tries again: else each
    would wait on its own, and those behind them in the queue for all of them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._retry_s: float | None = None
        self._is_tried = False

    def connect(self, make: Callable[[], T]) -> T:
        """What make returns. Raises psycopg.OperationalError, at once where another caller has just failed."""
        with self._lock:
            is_away = self._retry_s is not None
            if self._retry_s is not None and (self._is_tried or self._clock() < self._retry_s):
                raise psycopg.OperationalError("connection failed: the server did not answer a moment ago")
            self._is_tried = is_away
        try:
            made = make()
        except psycopg.OperationalError:
            self._note(self._clock() + RETRY_S, is_away=is_away)
            raise
        except BaseException:
            self._note(self._retry_s, is_away=is_away)
            raise
        self._note(None, is_away=is_away)
        return made

    def _note(self, retry_s: float | None, *, is_away: bool) -> None:
        with self._lock:
            self._retry_s = retry_s
            if is_away:
                self._is_tried = False


def postgresql_engine(
    url: sa.URL, *, pool_size: int, max_overflow: int, statement_s: float = STATEMENT_S, answer_s: float = ANSWER_S
) -> sa.Engine:
    """A pool of bounded connections. What the URL itself says of a connection comes before what is said here."""
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=POOL_S,
        pool_pre_ping=True,  # a restarted server leaves dead connections behind
        hide_parameters=True,  # they would stand in the text of its errors, and so in the log
    )
    connector = Connector()
    session = {
        "statement_timeout": statement_s,
        "lock_timeout": LOCK_S,
        "idle_in_transaction_session_timeout": IDLE_TRANSACTION_S,
    }
    options = " ".join(f"-c {name}={int(seconds * 1000)}" for name, seconds in session.items())
    defaults: dict[str, Any] = {
        "connect_timeout": CONNECT_S,
        "application_name": "typeless",
        "keepalives_idle": ANSWER_S,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": ANSWER_S * 1000,
    }

    @sa.event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, _arguments: Any, given: dict[str, Any]) -> Any:
        asked = {**defaults, **given, "options": f"{options} {given.get('options', '')}".rstrip()}
        made = connector.connect(lambda: BoundedConnection.connect(**asked))
        made.answer_s = answer_s
        return made

    return engine


def _keep_values_out(error: psycopg.Error) -> None:
    """Leave of an error what it is about, and nothing that a row holds: DETAIL, CONTEXT, and of some all text."""
    if error.sqlstate is None:
        return
    names = [error.diag.table_name, error.diag.column_name, error.diag.constraint_name]
    what = "" if error.sqlstate.startswith(_OF_VALUES) else f": {error.diag.message_primary}"
    about = "".join(f", {name}" for name in names if name)
    error.args = (f"{type(error).__name__} ({error.sqlstate}){about}{what}",)
