"""The resolver fails or does not answer, and an address of a name changes: PostgreSQL and Redis by their names."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.node import SHORT
from tests.postgres import USER, Postgres
from tests.servers import redis_server
from typeless_grpc.access.quota import Quota
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.stores.buckets import RedisBuckets
from typeless_grpc.stores.database import Database

pytestmark = [pytest.mark.timeout(120), pytest.mark.hardening]

NAME = "stores.example.com"
RESOLVER = "127.0.0.99"
RESOLVER_S = 1.0
RESOLVES, FAILS, IS_SILENT = f"127.0.0.1 {NAME}\n", "nameserver 127.0.0.98\n", f"nameserver {RESOLVER}\n"
QUOTA = Quota(1000, 1, 1000)
CLONE_NEWNS = 0x00020000


class Names:
    """The /etc/hosts and /etc/resolv.conf of this process alone."""

    def __init__(self, directory: Path) -> None:
        self._hosts, self._resolver = directory / "hosts", directory / "resolv.conf"
        self.change("", IS_SILENT)
        assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        for file in (self._hosts, self._resolver):
            subprocess.run(["mount", "--bind", file, f"/etc/{file.name}"], check=True)

    def change(self, hosts: str, resolver: str) -> None:
        self._hosts.write_text(hosts)
        self._resolver.write_text(f"{resolver}options timeout:1 attempts:1\n")


def ask(database: Database) -> None:
    with database.reading() as connection:
        connection.exec_driver_sql("SELECT 1")


def refused_s(database: Database) -> float:
    began_s = time.monotonic()
    with pytest.raises(SourceUnavailable):
        ask(database)
    return time.monotonic() - began_s


async def longest_pause_s(until: asyncio.Event) -> float:
    """Return for how long the event loop did nothing."""
    longest_s = 0.0
    while not until.is_set():
        began_s = time.monotonic()
        await asyncio.sleep(0.01)
        longest_s = max(longest_s, time.monotonic() - began_s)
    return longest_s


def check_postgresql(names: Names, url: str) -> None:
    names.change(RESOLVES, IS_SILENT)
    kept = Database(url, SHORT)
    ask(kept)
    for resolver in (FAILS, IS_SILENT):
        names.change("", resolver)
        ask(kept)  # on its connection
        fresh = Database(url, SHORT)
        assert refused_s(fresh) < RESOLVER_S + 3
        assert refused_s(fresh) < 0.5, "those who come after it do not wait for the same"
        names.change(RESOLVES, resolver)
        time.sleep(1.1)  # within it nobody tries to connect
        ask(fresh)
        fresh.close()
    kept.close()


async def check_redis(names: Names, url: str) -> None:
    for resolver in (FAILS, IS_SILENT):
        names.change("", resolver)
        buckets = RedisBuckets(url, timeout_s=0.5)
        done = asyncio.Event()
        pausing = asyncio.create_task(longest_pause_s(done))
        began_s = time.monotonic()
        with pytest.raises(SourceUnavailable):
            await buckets.take("a", QUOTA, 1)
        assert time.monotonic() - began_s < 2
        done.set()
        assert await pausing < 0.5, "the event loop goes on"
        names.change(RESOLVES, resolver)
        ends_s = time.monotonic() + 10
        while time.monotonic() < ends_s:
            with contextlib.suppress(SourceUnavailable):
                await buckets.take("a", QUOTA, 1)
                break
            await asyncio.sleep(0.1)
        assert (await buckets.take("a", QUOTA, 1)).is_allowed
        await buckets.close()


def main(directory: Path, postgresql: str, redis: str) -> None:
    names = Names(directory)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((RESOLVER, 53))
        check_postgresql(names, postgresql)
        asyncio.run(check_redis(names, redis))


def test_names_that_cannot_be_resolved_hold_no_call_for_long(postgres: Postgres, tmp_path: Path):
    if os.geteuid() != 0:
        pytest.skip("only root can give a process names of its own: sudo make test")
    postgres.empty_database()
    with redis_server(tmp_path) as server:
        urls = [f"postgresql://{USER}@{NAME}:{postgres.port}/postgres", f"redis://{NAME}:{server.port}/0"]
        program = [sys.executable, "-m", "tests.faults.test_names", str(tmp_path), *urls]
        done = subprocess.run(program, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
