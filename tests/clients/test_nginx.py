"""The server behind the nginx of `deploy/`: transcripts and streams pass as they do without it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.serving import BIN, Running, raw_samples, run, served
from tests.harness import REPOSITORY
from tests.servers import free_port

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

START_S = 10.0


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Running]:
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not binary:
        pytest.skip("no nginx on this machine: apt-get install nginx-light")
    with served(tmp_path) as running:
        port = free_port()
        config = (REPOSITORY / "deploy" / "nginx.conf").read_text("utf-8")
        for there, here in {
            "127.0.0.1:50051": running.target,
            "127.0.0.1:50050": f"127.0.0.1:{port}",
            "/run/typeless-nginx.pid": f"{tmp_path}/nginx.pid",
        }.items():
            assert there in config
            config = config.replace(there, here)
        (tmp_path / "nginx.conf").write_text(config, "utf-8")
        command = [binary, "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "error.txt"), "-g", "daemon off;"]
        process = subprocess.Popen(command)
        try:
            deadline_s = time.monotonic() + START_S
            while not (tmp_path / "nginx.pid").exists() and time.monotonic() < deadline_s:
                time.sleep(0.02)
            yield Running(port)
        finally:
            process.terminate()
            process.wait(30)


def test_calls_and_streams_pass_through_nginx(proxied: Running, tmp_path: Path):
    main = REPOSITORY / "clients" / "python" / "main.py"
    samples = raw_samples("en_short.flac", tmp_path / "speech.raw")
    for words in (("transcribe", REPOSITORY / "tests" / "audio" / "en_short.flac"), ("stream", samples)):
        done = run(BIN / "python", main, *words, env=proxied.environment())
        assert done.returncode == 0, done.stderr
        assert "close the window" in done.stdout
