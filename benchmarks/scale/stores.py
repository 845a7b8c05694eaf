"""PostgreSQL and Redis of the simulation, and what they counted."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import redis

from tests.postgres import Postgres, binaries
from tests.servers import redis_server

# Of all databases and backends; each is a total since the start.
_COUNTED = """
SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'),
       (SELECT tup_updated + tup_inserted + tup_deleted FROM pg_stat_database WHERE datname = 'postgres'),
       (SELECT wal_bytes FROM pg_stat_wal),
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
"""


class SyncedPostgres(Postgres):
    """As the cluster of the tests, but each commit is written to the disk, as in production."""

    def start(self) -> None:
        """Start it."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        options += " -c shared_buffers=128MB -c max_connections=500"
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(self._directory / "log"), "-o", options, "start")

    @property
    def process(self) -> psutil.Process:
        """The postmaster."""
        return psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))


@dataclass(frozen=True)
class Stores:
    """Both stores, and the directory of the storage."""

    postgres: SyncedPostgres
    redis_url: str
    redis_port: int
    storage: Path

    def processes(self) -> Mapping[str, psutil.Process]:
        """The main process of each."""
        return {"PostgreSQL": self.postgres.process, "Redis": _listening(self.redis_port)}

    def counted(self) -> dict[str, float]:
        """Totals of both."""
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            row = connection.execute(_COUNTED).fetchone()
        assert row is not None
        with redis.Redis.from_url(self.redis_url) as client:
            info = client.info()
        stored = [path.stat().st_size for path in self.storage.rglob("*") if path.is_file()]
        return {
            "PostgreSQL transactions": row[0],
            "PostgreSQL rows written": row[1],
            "PostgreSQL WAL bytes": float(row[2]),
            "PostgreSQL bytes in": _received_bytes(self.postgres.port),
            "PostgreSQL connections": row[3] - 1,
            "Redis commands": info["total_commands_processed"],
            "Redis bytes in": info["total_net_input_bytes"],
            "Redis bytes out": info["total_net_output_bytes"],
            "storage bytes": sum(stored),
            "storage files": len(stored),
        }


@contextmanager
def running(directory: Path) -> Iterator[Stores]:
    """Start both on free ports of the loopback; end them afterwards."""
    storage = directory / "storage"
    storage.mkdir()
    if (bin_dir := binaries()) is None:
        raise SystemExit("PostgreSQL is not installed: apt-get install postgresql")
    postgres = SyncedPostgres(bin_dir)
    try:
        with redis_server(directory) as redis:
            yield Stores(postgres, redis.url, redis.port, storage)
    finally:
        postgres.remove()


def _listening(port: int) -> psutil.Process:
    found = next(one for one in psutil.net_connections("tcp") if one.laddr.port == port and one.status == "LISTEN")
    return psutil.Process(found.pid)


def _received_bytes(port: int) -> float:
    """What the open connections of a server have received."""
    found = subprocess.run(["ss", "-tinH", "sport", "=", f":{port}"], capture_output=True, text=True, check=True).stdout
    words = found.split()
    return float(sum(int(word.partition(":")[2]) for word in words if word.startswith("bytes_received:")))
