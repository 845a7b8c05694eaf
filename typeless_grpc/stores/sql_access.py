"""Keys, limits and usage in a database: a SQLite file, or a PostgreSQL that many servers share.

Every change increments one row, `access_revision`, in its own transaction, which locks that row until it commits. So
changes become visible in the order of their numbers, and a reader of all changes after the last one it saw misses none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, NoResultFound
from sqlalchemy.exc import TimeoutError as PoolTimeout

from typeless_grpc.access.keys import ApiKey
from typeless_grpc.access.methods import Group
from typeless_grpc.access.principal import Role
from typeless_grpc.access.quota import Limit, Quota, Unit
from typeless_grpc.access.store import Changes
from typeless_grpc.access.usage import DailyUsage, UsageBatch, UsageQuery, utc_day
from typeless_grpc.stores import sql_usage
from typeless_grpc.stores.causes import Causes
from typeless_grpc.stores.memory_access import too_many_keys, unavailable
from typeless_grpc.stores.postgresql import TIMEOUTS, DatabaseTimeouts, postgresql_engine
from typeless_grpc.stores.sqlite import follow_file, use_wal
from typeless_grpc.telemetry.logs import get_logger

T = TypeVar("T")

log = get_logger(__name__)

_SCHEMA_LOCK = 0x7479_7065  # any number that means this schema to PostgreSQL's advisory locks

_metadata = sa.MetaData()
_keys = sa.Table(
    "access_keys",
    _metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("prefix", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("expires_s", sa.Double),
    sa.Column("last_use_s", sa.Double),
    sa.Column("is_revoked", sa.Boolean, nullable=False),
    sa.Column("from_settings", sa.Boolean, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False, unique=True),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
)
_limits = sa.Table(
    "access_limits",
    _metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("group", sa.Text, primary_key=True),
    sa.Column("unit", sa.Text, primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("period_s", sa.BigInteger, nullable=False),
    sa.Column("burst", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
)
_revision = sa.Table(
    "access_revision",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
_usage = sql_usage.usage_table("access_usage", _metadata)
# The last batch of each writer, so that none is added twice.
_writers = sa.Table(
    "access_usage_writers",
    _metadata,
    sa.Column("writer_id", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("day", sa.Date, nullable=False),
)


def sqlite_url(file: Path) -> str:
    """Return the URL of a SQLite file, and create the file if it is missing, readable by its owner alone."""
    file.touch(mode=0o600)
    return sa.URL.create("sqlite", database=str(file)).render_as_string()


class SqlAccessStore:
    """See `AccessStore`. Its calls run one after another in a thread of its own."""

    def __init__(self, url: str, wall_s: Callable[[], float], timeouts: DatabaseTimeouts = TIMEOUTS) -> None:
        """url: "sqlite:///FILE" or "postgresql://USER:PASSWORD@HOST/DATABASE". Raises ValueError for another."""
        self._engine = _engine(url, timeouts)
        # Others may be before a call in the only thread. A disk may never answer.
        self._limit_s = 3 * (timeouts.pool_s + timeouts.connect_s + timeouts.answer_s)
        self._wall_s = wall_s
        self._thread = ThreadPoolExecutor(1, "access-store")
        self._causes = Causes("database of keys")
        self._has_warned = False

    async def open(self) -> None:
        """Create missing tables. Raises SourceUnavailable."""
        await self._run(_create)

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown(wait=False)

    async def add_key(self, key: ApiKey, *, max_keys: int) -> ApiKey:
        """See `AccessStore`."""

        def work(connection: sa.Connection) -> ApiKey:
            revision = _next_revision(connection)
            row = connection.execute(sa.select(_keys).where(_keys.c.key_id == key.key_id)).mappings().first()
            if row is not None:
                return _key(row)
            is_live = ~_keys.c.is_revoked & (_keys.c.expires_s.is_(None) | (_keys.c.expires_s > self._wall_s()))
            if connection.execute(sa.select(sa.func.count()).where(is_live)).scalar_one() >= max_keys:
                raise too_many_keys(max_keys)
            values = {**vars(key), "role": key.role.value, "position": revision, "revision": revision}
            return _key(connection.execute(sa.insert(_keys).values(values).returning(_keys)).mappings().one())

        return await self._run(work)

    async def revoke_key(self, key_id: str) -> ApiKey | None:
        """See `AccessStore`."""

        def work(connection: sa.Connection) -> ApiKey | None:
            change = sa.update(_keys).where(_keys.c.key_id == key_id)
            change = change.values(is_revoked=True, revision=_next_revision(connection))
            row = connection.execute(change.returning(_keys)).mappings().first()
            return _key(row) if row is not None else None

        return await self._run(work)

    async def keys_after(self, position: int, n_most: int) -> Sequence[ApiKey]:
        """See `AccessStore`."""
        is_known = _keys.c.role.in_([role.value for role in Role])  # others are of a newer version, as in `changes`
        query = sa.select(_keys).where(_keys.c.position > position, is_known)
        query = query.order_by(_keys.c.position).limit(n_most)
        return await self._run(lambda connection: [_key(row) for row in connection.execute(query).mappings()])

    async def record_uses(self, uses: Mapping[str, float]) -> None:
        """See `AccessStore`."""
        change = (
            sa.update(_keys)
            .where(_keys.c.key_id == sa.bindparam("of"))
            .where(_keys.c.last_use_s.is_(None) | (_keys.c.last_use_s < sa.bindparam("used_s")))
            .values(last_use_s=sa.bindparam("used_s"))
        )
        # In the same order on every server, so that two that write at once do not deadlock.
        rows = [{"of": key_id, "used_s": used_s} for key_id, used_s in sorted(uses.items())]
        if rows:
            await self._run(lambda connection: connection.execute(change, rows))

    async def set_limit(self, limit: Limit) -> None:
        """See `AccessStore`."""
        where = {"key_id": limit.key_id, "group": limit.group.value, "unit": limit.unit.value}

        def work(connection: sa.Connection) -> None:
            revision = _next_revision(connection)
            connection.execute(sa.delete(_limits).filter_by(**where))
            connection.execute(sa.insert(_limits).values({**where, **vars(limit.quota), "revision": revision}))

        await self._run(work)

    async def changes(self, since: int) -> Changes:
        """See `AccessStore`."""

        def work(connection: sa.Connection) -> Changes:
            # Read first: what is committed later has a higher number, and comes with the next call.
            revision = connection.execute(sa.select(_revision.c.value)).scalar_one()
            if revision <= since:
                return Changes(revision, [], [])
            keys = connection.execute(sa.select(_keys).where(_keys.c.revision > since)).mappings()
            limits = connection.execute(sa.select(_limits).where(_limits.c.revision > since)).mappings()
            return Changes(revision, list(self._known(_key, keys)), list(self._known(_limit, limits)))

        return await self._run(work)

    async def add_usage(self, batch: UsageBatch) -> None:
        """See `UsageStore`."""

        def work(connection: sa.Connection) -> None:
            new = sql_usage.upsert(connection, _writers).values(
                writer_id=batch.writer_id, sequence=batch.sequence, day=utc_day(self._wall_s())
            )
            values = {"sequence": new.excluded.sequence, "day": new.excluded.day}
            is_new = _writers.c.sequence < new.excluded.sequence
            note = new.on_conflict_do_update(index_elements=["writer_id"], set_=values, where=is_new)
            if connection.execute(note.returning(_writers.c.sequence)).first() is not None:
                sql_usage.add(connection, _usage, batch.rows)

        await self._run(work)

    async def usage(self, query: UsageQuery) -> Sequence[DailyUsage]:
        """See `UsageSource`."""
        return await self._run(lambda connection: sql_usage.page(connection, _usage, query))

    async def delete_usage(self, before: date) -> None:
        """See `UsageStore`."""

        def work(connection: sa.Connection) -> None:
            sql_usage.delete(connection, _usage, before)
            connection.execute(sa.delete(_writers).where(_writers.c.day < before))

        await self._run(work)

    def _known(self, read: Callable[[sa.RowMapping], T], rows: Iterable[sa.RowMapping]) -> Iterator[T]:
        """Read rows, without those with a role, group or unit that only a newer version knows."""
        for row in rows:
            try:
                yield read(row)
            except ValueError as error:
                if not self._has_warned:
                    log.warning("keys or limits are ignored; did a newer version write them?", why=str(error))
                self._has_warned = True

    async def _run(self, work: Callable[[sa.Connection], T]) -> T:
        def in_transaction() -> T:
            with self._engine.begin() as connection:
                return work(connection)

        try:
            async with asyncio.timeout(self._limit_s):
                return await asyncio.get_running_loop().run_in_executor(self._thread, in_transaction)
        except (TimeoutError, DBAPIError, NoResultFound, PoolTimeout) as error:  # NoResultFound: it is being restored
            self._causes.note(error)
            raise unavailable() from error


def _next_revision(connection: sa.Connection) -> int:
    change = sa.update(_revision).values(value=_revision.c.value + 1).returning(_revision.c.value)
    return int(connection.execute(change).scalar_one())


def _create(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        # Otherwise two servers that start at once would both find no tables. The lock ends with the transaction.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
    for table in _metadata.sorted_tables:
        connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))
    missing = ~sa.exists(sa.select(_revision.c.id))
    first = sa.select(sa.literal(1), sa.literal(0)).where(missing)
    connection.execute(sa.insert(_revision).from_select(["id", "value"], first))


def _engine(url: str, timeouts: DatabaseTimeouts) -> sa.Engine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = sa.create_engine(parsed, connect_args={"timeout": timeouts.lock_s}, hide_parameters=True)

        @sa.event.listens_for(engine, "connect")
        def prepare(connection: Any, _record: object) -> None:
            use_wal(connection, timeouts.lock_s)
            connection.execute("PRAGMA synchronous=FULL")  # a revoked key stays revoked, even after a power cut

        follow_file(engine)
        return engine
    if parsed.get_backend_name() == "postgresql":
        return postgresql_engine(parsed, pool_size=1, max_overflow=0, timeouts=timeouts)
    raise ValueError("a database is sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE")


def _key(row: sa.RowMapping) -> ApiKey:
    values = {name: row[name] for name in ApiKey.__dataclass_fields__}
    return ApiKey(**values | {"role": Role(row["role"]), "digest": bytes(row["digest"])})


def _limit(row: sa.RowMapping) -> Limit:
    quota = Quota(row["amount"], row["period_s"], row["burst"])
    return Limit(Group(row["group"]), Unit(row["unit"]), quota, row["key_id"])
