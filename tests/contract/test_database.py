"""What every database keeps to itself: the values of its rows, whatever goes wrong with them."""

from __future__ import annotations

import traceback

import pytest
import sqlalchemy as sa

from tests.postgres import Postgres
from typeless_grpc.stores.database import Database

SECRET = "what a caller said"
MADE = "CREATE TEMPORARY TABLE t (name TEXT PRIMARY KEY CHECK (length(name) < 30), n INTEGER NOT NULL)"

FAULTS = {
    "key that is there": "INSERT INTO t VALUES (:secret, 1), (:secret, 1)",
    "value that is missing": "INSERT INTO t VALUES (:secret, NULL)",
    "no number": "INSERT INTO t VALUES ('a', CAST(:secret AS INTEGER)), ('a', 1)",
    "check": "INSERT INTO t VALUES (:secret || :secret, 1)",
    "no such column": "SELECT missing FROM t WHERE name = :secret",
    "no such table": "SELECT * FROM missing WHERE name = :secret",
    "no statement": "SELEC :secret",
}


@pytest.mark.parametrize("statement", FAULTS.values(), ids=FAULTS)
def test_no_value_is_in_the_traceback_of_an_error(database: Database, statement: str):
    with database.engine.connect() as connection:  # which DBOS uses, too
        connection.exec_driver_sql(MADE)
        with pytest.raises(sa.exc.SQLAlchemyError) as caught:
            connection.execute(sa.text(statement), {"secret": SECRET})
    text = "".join(traceback.format_exception(caught.value))
    assert SECRET not in text


def test_an_error_of_postgresql_keeps_its_message_without_values(postgres: Postgres):
    database = Database(postgres.empty_database())
    with database.engine.connect() as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE t (name TEXT CONSTRAINT once PRIMARY KEY)")
        with pytest.raises(sa.exc.IntegrityError, match=r"UniqueViolation \(23505\), t, once"):
            connection.exec_driver_sql("INSERT INTO t VALUES ('a'), ('a')")
        connection.rollback()
        with pytest.raises(sa.exc.ProgrammingError, match='relation "missing" does not exist'):
            connection.exec_driver_sql("SELECT * FROM missing")
    database.close()
