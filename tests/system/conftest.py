"""The installation whose alerts are tested: each file of tests has its own, so that files can run at the same time."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.identity_provider import IdentityProvider, identity_provider
from tests.system.faults import STORAGE_MIB
from tests.system.rules import impatient_rules
from tests.system.stack import Stack, running


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with identity_provider() as started:
        yield started


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of its own where that is possible, which only root can make."""
    directory = tmp_path_factory.mktemp("storage")
    options = ["-t", "tmpfs", "-o", f"size={STORAGE_MIB}m", "tmpfs", str(directory)]
    is_mounted = os.geteuid() == 0 and subprocess.run(["mount", *options], check=False).returncode == 0
    yield directory
    if is_mounted:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, provider: IdentityProvider, storage: Path) -> Iterator[Stack]:
    settings = {
        "TYPELESS_STORAGE_URL": str(storage / "files"),
        "TYPELESS_ENGINE_STALL_S": "3",
        "TYPELESS_JWT_ISSUER": "https://id.example",
        "TYPELESS_JWT_AUDIENCE": "typeless",
        "TYPELESS_JWT_JWKS_URL": provider.jwks_url,
        "TYPELESS_JOB_MAX_ATTEMPTS": "1",
        "TYPELESS_RATE_LIMIT_LONG": "6000/minute",
    }
    directory = tmp_path_factory.mktemp("alerts")
    with running(directory, impatient_rules(), **settings) as started:
        broken = directory / "server" / "models" / "tiny"
        broken.mkdir()
        for name in ("config.json", "tokenizer.json", "vocabulary.txt", "model.bin"):
            (broken / name).write_bytes(b"{}")
        yield started
