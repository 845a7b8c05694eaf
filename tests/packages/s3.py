"""An S3 server for tests: the Versity gateway over a directory, on loopback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.packages.tools import tool
from tests.servers import free_port, until_it_listens

KEY, SECRET, BUCKET = "AKIDTESTS", "a-secret-of-the-tests", "calls"


class S3Server:
    """An S3 server that can be stopped and started again on the same port."""

    def __init__(self, directory: Path) -> None:
        self.objects = directory / "objects" / BUCKET
        self._metadata = directory / "metadata"
        self.objects.mkdir(parents=True)
        self._metadata.mkdir()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", f"127.0.0.1:{self.port}", "--quiet", "posix", "--sidecar", str(self._metadata)]
        secrets = {"ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
        command = [tool("versitygw"), *options, str(self.objects.parent)]
        self._process = subprocess.Popen(command, env=os.environ | secrets, stdout=subprocess.DEVNULL)
        until_it_listens(self.port, "127.0.0.1")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def files(self) -> list[Path]:
        """Return all objects."""
        return sorted(path for path in self.objects.rglob("*") if path.is_file())


@contextmanager
def s3_server(directory: Path) -> Iterator[S3Server]:
    server = S3Server(directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def environment(port: int, *, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
    """Return what an operator sets."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
