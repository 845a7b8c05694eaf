"""The database of jobs and uploads: tables and transactions. It raises errors of the database as SourceUnavailable.

It is a SQLite file on this machine, or PostgreSQL for many machines. The tables of DBOS, which runs the jobs, are in
the same database, so that one transaction stores a job and puts it into the queue.
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

from typeless_grpc.disk import make_directory
from typeless_grpc.errors import InvalidInput, SourceUnavailable
from typeless_grpc.stores import sql_usage
from typeless_grpc.stores.causes import Causes
from typeless_grpc.stores.postgresql import TIMEOUTS, DatabaseTimeouts, postgresql_engine
from typeless_grpc.stores.sqlite import follow_file, use_wal
from typeless_grpc.stores.steady import SteadyClock

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
    # The run that has the lease, and how earlier runs ended.
    sa.Column("run_id", sa.Text),
    sa.Column("n_crashes", sa.Integer, nullable=False, default=0),
    sa.Column("n_failures", sa.Integer, nullable=False, default=0),
    # The id of the workflow in the queue; a new one each time that the job is queued again.
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

# SHA-256 of completed uploads, if known. A table of its own, because databases of earlier versions get new tables, but
# no new columns.
upload_digests = sa.Table(
    "upload_digests",
    metadata,
    sa.Column("upload_id", sa.Text, primary_key=True),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
)


# The size of audio that was sent with jobs or fetched for them, as long as it is stored.
job_audio = sa.Table(
    "job_audio",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Index("typeless_job_audio_owner", "owner"),
)


# The trace of the call that submitted a job, if there was one: headers as JSON.
job_traces = sa.Table(
    "job_traces",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("headers", sa.Text, nullable=False),
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


# Jobs deleted in the last day: a deletion whose answer was lost is repeated.
job_deletions = sa.Table(
    "job_deletions",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("expire_s", sa.Double, nullable=False),
    sa.Index("typeless_job_deletions_expire", "expire_s"),
)

# The usage of the owners of jobs. It is kept when the jobs are deleted.
job_usage = sql_usage.usage_table("job_usage", metadata)

# One row: the id that this database shares with its storage.
store_identity = sa.Table(
    "store_identity",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("store_id", sa.Text, nullable=False),
)
# Random bytes of the ids of jobs and uploads. Without keys, a caller that knows an id may use its job or upload.
ID_BYTES = 16


class Database:
    """A pool of connections; threads may share it. Errors of the database are raised as SourceUnavailable."""

    def __init__(self, url: str, timeouts: DatabaseTimeouts = TIMEOUTS, pool_size: int = POOL_SIZE) -> None:
        """url: "sqlite:///…" or "postgresql://…". Connects at the first use. Raises InvalidInput for another scheme.

        pool_size: connections that are kept; as many more are opened when all are in use.
        """
        self.timeouts = timeouts
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
            _sqlite_engine(parsed, timeouts, pool_size)
            if self.is_sqlite
            else postgresql_engine(parsed, pool_size=pool_size, max_overflow=pool_size, timeouts=timeouts)
        )
        self._clock, self._causes = SteadyClock(), Causes("database of jobs")
        self._ours = self.engine.execution_options(schema_translate_map={SCHEMA: None if self.is_sqlite else SCHEMA})

    @property
    def url(self) -> str:
        """The URL with its password: never log it."""
        return self.engine.url.render_as_string(hide_password=False)

    def create_tables(self) -> None:
        """Create missing tables; several processes may do so at once.

        If none is missing, nothing is written, so that a process can start while another holds a lock.
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
        """Yield a connection for statements that change nothing."""
        with self._errors(), self._ours.connect() as connection:
            self._follow_clock(connection)
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Yield a transaction, which is committed unless the block raises. IntegrityError is raised as it is."""
        with self._errors(), self._ours.begin() as connection:
            if self.is_sqlite:
                # Lock from the first statement on, so that nothing read in the transaction changes before its write.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            self._follow_clock(connection)
            yield connection

    def probe(self) -> None:
        """Check that the database can be written, without a change. Raises SourceUnavailable."""
        with self.writing() as connection:
            connection.execute(sa.update(jobs).where(sa.false()).values(version=jobs.c.version))

    def now_s(self) -> sa.ColumnElement[float]:
        """Return an expression for the database's clock, in Unix seconds. It may step: see `steady_s`."""
        if self.is_sqlite:
            return sa.literal_column("(julianday('now') - 2440587.5) * 86400.0", sa.Double)
        return sa.literal_column("extract(epoch from clock_timestamp())::double precision", sa.Double)

    def steady_s(self) -> sa.ColumnElement[float]:
        """Return an expression for the same clock without its steps. Expiry uses it, so that nothing expires early."""
        if not self._clock.is_known:
            with self.reading():
                pass
        return sa.literal(self._clock.now_s(), sa.Double)

    def _follow_clock(self, connection: sa.Connection) -> None:
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
            self._causes.note(error)
            raise unavailable(error) from error


def unavailable(error: BaseException) -> SourceUnavailable:
    """Return the error for a database or storage that fails or is full."""
    full = "is full" in str(error) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))
    if full or (isinstance(error, OSError) and error.errno == errno.EFBIG):
        return SourceUnavailable("The storage of this server is full.", reason="STORAGE_FULL", retry_after_s=30.0)
    return SourceUnavailable("The store of jobs is unavailable now.", reason="STORE_UNAVAILABLE", retry_after_s=1.0)


def sqlite_url(path: Path) -> str:
    """Return the URL of a database file, and create it and its directory, for their owner alone."""
    make_directory(path.parent)
    path.touch(mode=0o600)  # SQLite gives the files beside it the same mode
    return sa.URL.create("sqlite", database=str(path)).render_as_string()


def _sqlite_engine(url: sa.URL, timeouts: DatabaseTimeouts, pool_size: int) -> sa.Engine:
    engine = sa.create_engine(
        url, pool_size=pool_size, max_overflow=pool_size, pool_timeout=timeouts.pool_s, hide_parameters=True
    )

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = "IMMEDIATE"
        connection.execute(f"PRAGMA busy_timeout={int(timeouts.lock_s * 1000)}")
        use_wal(connection, timeouts.lock_s)
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    follow_file(engine)
    return engine
