"""A PostgreSQL of the tests' own: Debian's, in a temporary directory, on a free port of the loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.servers import free_port

USER = "typeless"


def binaries() -> Path | None:
    """Where initdb and pg_ctl lie; None where PostgreSQL is not installed."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


class Postgres:
    """One cluster. It cannot run as root, so root runs it as the user that Debian made for it."""

    def __init__(self, bin_dir: Path, host: str = "127.0.0.1", on: Sequence[str] = ()) -> None:
        """host: where it listens; others than this machine may then connect without a password. on: before commands."""
        self._bin, self._host, self._on = bin_dir, host, on
        self._directory = Path(tempfile.mkdtemp(prefix="typeless-pg-"))
        self._data = self._directory / "data"
        self._as: list[str] = []
        if os.geteuid() == 0:
            os.chown(self._directory, pwd.getpwnam("postgres").pw_uid, -1)
            self._as = ["runuser", "-u", "postgres", "--"]
        self.port = free_port()
        self._run("initdb", "-D", str(self._data), "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
        if host != "127.0.0.1":
            with (self._data / "pg_hba.conf").open("a") as file:
                file.write("host all all samenet trust\n")
        self.start()

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses={self._host} -c unix_socket_directories= -c fsync=off"
        options += " -c shared_buffers=32MB -c max_connections=200"
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(self._directory / "log"), "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """mode: "immediate" is what a crash is."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", mode, "stop")

    def kill(self) -> None:
        """`kill -9` of the process that all others belong to; they end within moments, and only then can it start."""
        os.kill(int((self._data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    def empty_database(self) -> str:
        """The URL of the one database, with nothing in it: quicker than a new one for each test."""
        import psycopg  # which only the server needs

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS typeless, dbos CASCADE")
        return self.url

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._directory)

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@{self._host}:{self.port}/postgres"

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._on, *self._as, str(self._bin / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self._directory, timeout=150)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"


def start_or_skip() -> Postgres:
    """A running cluster; skips the test where PostgreSQL is not installed."""
    found = binaries()
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return Postgres(found)
