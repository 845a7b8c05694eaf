"""A server as an operator would start it: keys required, limits on, the real tiny.en."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import AUDIO, REPOSITORY
from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import AudioFormat

BIN = Path(sys.executable).parent
KEY, ADMIN_KEY = "a-key-for-clients", "a-key-for-the-operator"
# What is generous for one caller, so that only those with a limit of their own meet one.
LIMITS = {f"TYPELESS_RATE_LIMIT_{group}": "600/minute" for group in ("TRANSCRIBE", "BATCH", "STREAM", "JOBS")}


@dataclass(frozen=True)
class Running:
    """A server's address, and an environment in which callers find it and a key for it."""

    port: int

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def environment(self, key: str = KEY) -> dict[str, str]:
        return without_settings() | {"TYPELESS_SERVER": self.target, "TYPELESS_API_KEY": key}


@contextmanager
def served(data_dir: Path, **more: str) -> Iterator[Running]:
    """Skips where the model is not on this machine."""
    settings = LIMITS | {
        "TYPELESS_PORT": "0",
        "TYPELESS_MODEL": "tiny.en",
        "TYPELESS_DATA_DIR": str(data_dir),
        "TYPELESS_AUTH_ENABLED": "true",
        "TYPELESS_REQUIRE_AUTH": "true",
        "TYPELESS_API_KEYS": KEY,
        "TYPELESS_ADMIN_KEYS": ADMIN_KEY,
        "TYPELESS_STREAM_INTERIM_INTERVAL_S": "0.3",
    }
    (data_dir / "models").mkdir()
    (data_dir / "models" / "tiny.en").symlink_to(model("tiny.en"))
    command = [BIN / "typeless", "serve"]
    with (data_dir / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=without_settings() | settings | more, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=log
        )
        assert process.stdout
        try:
            line = process.stdout.readline().decode()
            found = re.search(r"takes calls on 127\.0\.0\.1:(\d+)", line)
            assert found, f"{line}\n{(data_dir / 'server.log').read_text()}"
            yield Running(int(found.group(1)))
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


def model(name: str) -> Path:
    """Where a model is kept. Skips where it is not."""
    listed = subprocess.run([BIN / "typeless", "models", "list", "--json"], capture_output=True, text=True, check=True)
    rows = json.loads(listed.stdout)
    path = next((row["path"] for row in rows if row["name"] == name), None)
    if not path:
        pytest.skip(f"model {name} is not on this machine: typeless models pull {name}")
    return Path(path)


def without_settings() -> dict[str, str]:
    """This machine's environment, with the tools of the development environment and of Go, without our settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TYPELESS_")}
    return kept | {"PATH": os.pathsep.join([str(BIN), os.environ["PATH"], str(Path.home() / "go" / "bin")])}


def tool(name: str) -> str | None:
    """The path of a program, None where it is not on this machine."""
    return shutil.which(name, path=without_settings()["PATH"])


def run(
    *command: str | Path, env: Mapping[str, str], cwd: Path = REPOSITORY, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)


def raw_samples(file: str, to: Path) -> Path:
    """A fixture as a microphone would deliver it: 16 kHz, 16 bits, mono."""
    samples = decode((AUDIO / file).read_bytes(), AudioFormat(), DecodeLimits(max_duration_s=60)).samples
    to.write_bytes((samples * 32767).astype("<i2").tobytes())
    return to
