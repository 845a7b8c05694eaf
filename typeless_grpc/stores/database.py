"""The database: one SQLite file on this machine, or PostgreSQL for many; its tables, and its errors as ours.

The tables of the library that runs the jobs (DBOS) lie in the same database, so that a job and its place in the queue
are filed in one transaction.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

# DBOS imports this in a background thread. A statement of another thread would fail during that import, because
# SQLAlchemy already uses what is only half imported.
import sqlalchemy.orm
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from typeless_grpc.errors import InvalidInput, SourceUnavailable
from typeless_grpc.stores.postgresql import POOL_S, postgresql_engine
from typeless_grpc.stores.steady import SteadyClock

# How long a writer waits for another one to be done, before the caller is told to come again.
BUSY_TIMEOUT_MS = 5_000
POOL_SIZE = 10
SCHEMA = "typeless"

metadata = sa.MetaData(schema=SCHEMA)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("upload_id", sa.Text),
    sa.Column("format", sa.Text, nullable=False),
    sa.Column("options", sa.Text, nullable=False),
    sa.Column("options_message", sa.LargeBinary, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("create_s", sa.Double, nullable=False),
    sa.Column("start_s", sa.Double),
    sa.Column("end_s", sa.Double),
    sa.Column("expire_s", sa.Double),
    sa.Column("progress", sa.Double, nullable=False, default=0.0),
    sa.Column("progress_message", sa.Text, nullable=False, default=""),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("failure", sa.Text),
    sa.Column("audio_s", sa.Double),
    sa.Column("n_chunks", sa.Integer, nullable=False, default=0),
    sa.Column("n_segments", sa.Integer, nullable=False, default=0),
    sa.Column("position", sa.BigInteger, nullable=False, default=0),
    sa.Column("language", sa.Text, nullable=False, default=""),
    sa.Column("processing_s", sa.Double, nullable=False, default=0.0),
    sa.Column("queue_s", sa.Double, nullable=False, default=0.0),
    sa.Column("n_windows", sa.Integer, nullable=False, default=0),
    sa.Column("version", sa.BigInteger, nullable=False, default=1),
    # Which run holds the job, and how the runs before it ended.
    sa.Column("run_id", sa.Text),
    sa.Column("n_crashes", sa.Integer, nullable=False, default=0),
    sa.Column("n_failures", sa.Integer, nullable=False, default=0),
    # The job's place in the queue: the id of its workflow, a new one each time that it is queued again.
    sa.Column("workflow_id", sa.Text, nullable=False),
    sa.Column("n_workflows", sa.Integer, nullable=False, default=1),
    sa.Column("update_s", sa.Double, nullable=False),
    sa.UniqueConstraint("owner", "request_id", name="typeless_jobs_request"),
    sa.Index("typeless_jobs_owner", "owner", "create_s", "job_id"),
    sa.Index("typeless_jobs_created", "create_s", "job_id"),
    sa.Index("typeless_jobs_state", "state", "create_s"),
    sa.Index("typeless_jobs_pending", "caller", "state"),
    sa.Index("typeless_jobs_expire", "expire_s"),
    sa.Index("typeless_jobs_upload", "upload_id"),
)

job_chunks = sa.Table(
    "job_chunks",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("chunk_index", sa.Integer, primary_key=True),
    sa.Column("end", sa.BigInteger, nullable=False),
    sa.Column("is_last", sa.Boolean, nullable=False),
    sa.Column("first_segment", sa.Integer, nullable=False),
    sa.Column("n_segments", sa.Integer, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("worker_id", sa.Text, primary_key=True),
    sa.Column("beat_s", sa.Double, nullable=False, key="heartbeat_s"),
    sa.Column("max_jobs", sa.Integer, nullable=False),
)

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("upload_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("is_complete", sa.Boolean, nullable=False),
    sa.Column("create_s", sa.Double, nullable=False),
    sa.Column("expire_s", sa.Double, nullable=False),
    sa.Index("typeless_uploads_owner", "owner", "is_complete"),
    sa.Index("typeless_uploads_expire", "expire_s"),
)

upload_parts = sa.Table(
    "upload_parts",
    metadata,
    sa.Column("upload_id", sa.Text, primary_key=True),
    sa.Column("offset", sa.BigInteger, primary_key=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
)

# What uploads were completed with, where it is known. No column of theirs: databases of earlier versions get the tables
# that they lack, and no columns.
upload_digests = sa.Table(
    "upload_digests",
    metadata,
    sa.Column("upload_id", sa.Text, primary_key=True),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
)


# The audio that jobs brought along or had fetched, as long as it is kept: what uploads have in `size_bytes`.
job_audio = sa.Table(
    "job_audio",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Index("typeless_job_audio_owner", "owner"),
)


# Room for audio that is being fetched, until its job is submitted. One that outlives its server expires.
audio_reservations = sa.Table(
    "audio_reservations",
    metadata,
    sa.Column("reservation_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("expire_s", sa.Double, nullable=False),
    sa.Index("typeless_audio_reservations_owner", "owner"),
)


# Jobs that were deleted a while ago: a deletion whose answer was lost is sent again.
job_deletions = sa.Table(
    "job_deletions",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("expire_s", sa.Double, nullable=False),
    sa.Index("typeless_job_deletions_expire", "expire_s"),
)

# One row: the id that the storage of this database has, too.
store_identity = sa.Table(
    "store_identity",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("store_id", sa.Text, nullable=False),
)
# Of jobs and uploads: whoever knows one may use it, where callers have no keys.
ID_BYTES = 16


class Database:
    """A pool of connections; threads share it. Errors of the database come out as SourceUnavailable."""

    def __init__(self, url: str) -> None:
        """url: "sqlite:///…" or "postgresql://…". Connects at the first use. Raises InvalidInput for another scheme."""
        try:
            parsed = sa.make_url(url)
        except sa.exc.ArgumentError as error:
            raise InvalidInput("database_url", "is no database URL", reason="CONFIG_INVALID") from error
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
            why = f"scheme '{parsed.drivername}' is none of postgresql, sqlite"
            raise InvalidInput("database_url", why, reason="CONFIG_INVALID")
        self.is_sqlite = parsed.drivername == "sqlite"
        self.engine = (
            _sqlite_engine(parsed)
            if self.is_sqlite
            else postgresql_engine(parsed, pool_size=POOL_SIZE, max_overflow=POOL_SIZE)
        )
        self._clock = SteadyClock()
        self._ours = self.engine.execution_options(schema_translate_map={SCHEMA: None if self.is_sqlite else SCHEMA})

    @property
    def url(self) -> str:
        """With its password: never to be logged."""
        return self.engine.url.render_as_string(hide_password=False)

    def create_tables(self) -> None:
        """Make what is not there yet; any number of processes may do so at once.

        Where everything is there nothing is written, so that a process can start while another holds a lock.
        """
        with self.reading() as connection:
            there = sa.inspect(connection).get_table_names(schema=None if self.is_sqlite else SCHEMA)
        if {table.name for table in metadata.tables.values()} <= set(there):
            return
        with self._errors(), self._ours.begin() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7409270411)")
                connection.execute(sa.schema.CreateSchema(SCHEMA, if_not_exists=True))
            metadata.create_all(connection)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection for statements that change nothing."""
        with self._errors(), self._ours.connect() as connection:
            self._look_at_clock(connection)
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction, kept where the block ends and undone where it raises. IntegrityError passes through."""
        with self._errors(), self._ours.begin() as connection:
            if self.is_sqlite:
                # From the first statement on, or a read could be followed by a write that finds the world changed.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            self._look_at_clock(connection)
            yield connection

    def probe(self) -> None:
        """Write, and change nothing: a database that can only be read is of no use. Raises SourceUnavailable."""
        with self.writing() as connection:
            connection.execute(sa.update(jobs).where(sa.false()).values(version=jobs.c.version))

    def now_s(self) -> sa.ColumnElement[float]:
        """The database's own clock in Unix seconds: the clocks of many machines differ. It may leap: `steady_s`."""
        if self.is_sqlite:
            return sa.literal_column("(julianday('now') - 2440587.5) * 86400.0", sa.Double)
        return sa.literal_column("extract(epoch from clock_timestamp())::double precision", sa.Double)

    def steady_s(self) -> sa.ColumnElement[float]:
        """The same clock without its leaps, for what is to last a while: they would end it early."""
        if not self._clock.is_known:
            with self.reading():
                pass
        return sa.literal(self._clock.now_s(), sa.Double)

    def _look_at_clock(self, connection: sa.Connection) -> None:
        if self._clock.is_due:
            self._clock.follow(float(connection.execute(sa.select(self.now_s())).scalar_one()))

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except (DBAPIError, PoolTimeout) as error:
            raise unavailable(error) from error


def unavailable(error: BaseException) -> SourceUnavailable:
    """What a caller is told when the database or the storage fails: try again, and whether it is full."""
    full = "is full" in str(error) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))
    if full or (isinstance(error, OSError) and error.errno == errno.EFBIG):
        return SourceUnavailable("The storage of this server is full.", reason="STORAGE_FULL", retry_after_s=30.0)
    return SourceUnavailable("The store of jobs cannot be reached now.", reason="STORE_UNAVAILABLE", retry_after_s=1.0)


def sqlite_url(path: Path) -> str:
    """The URL of a database file; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return sa.URL.create("sqlite", database=str(path)).render_as_string()


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(
        url, pool_size=POOL_SIZE, max_overflow=POOL_SIZE, pool_timeout=POOL_S, hide_parameters=True
    )

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = "IMMEDIATE"
        for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine
