"""The nginx of `deploy/`, in front of servers of a test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import REPOSITORY
from tests.servers import free_port, until_it_listens


def command(folder: Path, name: str, changes: Mapping[str, str]) -> list[str]:
    """The command of nginx with a file of `deploy/`, in which changes replace what is of another machine."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not binary:
        pytest.skip("no nginx on this machine: apt-get install nginx-light")
    config = (REPOSITORY / "deploy" / name).read_text("utf-8")
    for there, here in changes.items():
        assert there in config
        config = config.replace(there, here)
    (folder / "nginx.conf").write_text(config, "utf-8")
    return [binary, "-c", str(folder / "nginx.conf"), "-e", str(folder / "nginx-error.txt"), "-g", "daemon off;"]


class Nginx:
    """nginx with the configuration of `deploy/`, which can be killed and started again on the same port."""

    def __init__(self, folder: Path, targets: list[str], host: str = "127.0.0.1", on: Sequence[str] = ()) -> None:
        """targets: the servers behind it. host: where it listens. on: what to put before the command."""
        self.port, self._host = free_port(), host
        changes = {
            "server 127.0.0.1:50051 fail_timeout=1s;": " ".join(f"server {one} fail_timeout=1s;" for one in targets),
            "127.0.0.1:50050": f"{host}:{self.port}",
            "/run/typeless-nginx.pid": f"{folder}/nginx.pid",
        }
        self._command = [*on, *command(folder, "nginx.conf", changes)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, start_new_session=True)
        until_it_listens(self.port, self._host)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        """Kill all of its processes: without their master, its workers would live on."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
            self._process = None


@contextmanager
def nginx(folder: Path, targets: list[str]) -> Iterator[int]:
    """nginx in front of servers. Yields its port."""
    running = Nginx(folder, targets)
    running.start()
    try:
        yield running.port
    finally:
        running.stop()
