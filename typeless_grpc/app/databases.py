"""Where the databases are."""

from __future__ import annotations

from pathlib import Path

from typeless_grpc.config import Settings
from typeless_grpc.stores.database import sqlite_url


def jobs_database_url(settings: Settings) -> str:
    """Return the URL of the database of jobs; the default is a file in the data directory."""
    return settings.database_url.get_secret_value() or sqlite_url(jobs_database_file(settings))


def jobs_database_file(settings: Settings) -> Path:
    """Return the file of that default."""
    return settings.data_dir / "jobs" / "jobs.db"
