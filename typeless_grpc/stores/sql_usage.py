"""Tables of usage, and the statements on them: sums by day and caller, to which many processes add."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from typeless_grpc.access.usage import DailyUsage, Usage, UsageQuery

_SUMS = ("calls", "failed_calls", "audio_us", "jobs")


def usage_table(name: str, metadata: sa.MetaData) -> sa.Table:
    """Return a table of usage."""
    # Pages of several tables are merged, so all databases must have the order of Python.
    text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    return sa.Table(
        name,
        metadata,
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("caller", text, primary_key=True),
        *(sa.Column(column, sa.BigInteger, nullable=False) for column in _SUMS),
        sa.Index(f"{name}_caller", "caller", "day"),
    )


def add(connection: sa.Connection, table: sa.Table, rows: Sequence[DailyUsage]) -> None:
    """Add to the sums of days and callers."""
    new = upsert(connection, table)
    change = new.on_conflict_do_update(
        index_elements=["day", "caller"], set_={name: table.c[name] + new.excluded[name] for name in _SUMS}
    )
    # In the same order everywhere, so that two processes that write at once do not deadlock.
    ordered = sorted(rows, key=lambda row: (row.day, row.caller))
    if ordered:
        connection.execute(change, [{"day": row.day, "caller": row.caller, **vars(row.usage)} for row in ordered])


def page(connection: sa.Connection, table: sa.Table, query: UsageQuery) -> Sequence[DailyUsage]:
    """Return a page, in the order of day and caller."""
    statement = sa.select(table).order_by(table.c.day, table.c.caller).limit(query.n_most)
    if query.caller is not None:
        statement = statement.where(table.c.caller == query.caller)
    if query.first_day is not None:
        statement = statement.where(table.c.day >= query.first_day)
    if query.last_day is not None:
        statement = statement.where(table.c.day <= query.last_day)
    if query.after is not None:
        day, caller = query.after
        later = sa.or_(table.c.day > day, sa.and_(table.c.day == day, table.c.caller > caller))
        statement = statement.where(table.c.day >= day, later)
    rows = connection.execute(statement).mappings()
    return [DailyUsage(row["day"], row["caller"], Usage(**{name: row[name] for name in _SUMS})) for row in rows]


def delete(connection: sa.Connection, table: sa.Table, before: date) -> None:
    """Delete earlier days."""
    connection.execute(sa.delete(table).where(table.c.day < before))


def upsert(connection: sa.Connection, table: sa.Table) -> Any:
    """Return an insertion for which `on_conflict_do_update` can be set, in the dialect of the connection."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)
