"""Settings from a file, variables, and files of secrets: they are good, or refused by name, and no secret is shown."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest.mock import patch

from tests.fuzz.inputs import Source
from typeless_grpc.access.address import networks
from typeless_grpc.access.quota import Quota
from typeless_grpc.config import ENV_PREFIX, Settings, load, public
from typeless_grpc.config.values import host_and_port
from typeless_grpc.errors import InvalidInput

MAX_BYTES = 1024
SECRET = "a-secret-of-the-operator"
NAMES = sorted(Settings.model_fields)
VALUES = (b"1", b"on", b"10/minute", b"a=/b", b"-5", b"1e400", b"a,b")
FILES = (
    b'model = "base"\nport = 1',
    b'[server]\nhost = "::"\n[limits]\nrate_limit_audio = "1/second:5"',
    b"max_audio_s = inf",
    b'model_dirs = {a = "/b"}',
    b'api_keys = ["a", 1]',
    b"a = " + b"[" * 500,
)


@cache
def directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="typeless-fuzz-"))


def seeds() -> Iterator[bytes]:
    for file in FILES:
        yield b"\0" + file
    for index in range(0, len(NAMES), 4):
        yield bytes([1, index]) + VALUES[index // 4 % len(VALUES)]
    yield b"\2key-one\nkey-two\n"
    for value in (b"[::1]:80", b"10/minute:20", b"10.0.0.0/8", b"h:99999"):
        yield b"\3" + value


def one(data: bytes) -> None:
    source = Source(data)
    kind = source.number(4)
    if kind == 3:
        values(source.rest.decode("utf-8", "replace"))
        return
    name = source.chosen(NAMES) if kind == 1 else "api_keys"
    file, secret = directory() / "typeless.toml", directory() / "secret"
    file.write_bytes(source.rest if kind == 0 else b"")
    secret.write_bytes(source.rest)
    environment = {"TYPELESS_ADMIN_KEYS": SECRET, "HOME": str(directory())}
    if kind == 1 and name != "admin_keys":
        environment[ENV_PREFIX + name.upper()] = os.fsdecode(source.rest.replace(b"\0", b""))
    elif kind == 2:
        environment["TYPELESS_API_KEYS_FILE"] = str(secret)
    with patch.dict(os.environ, environment, clear=True):
        try:
            loaded = load(file=file)
        except InvalidInput as error:
            assert error.violations
            assert SECRET not in str(error.violations), "a refusal repeats a secret"
            return
    shown = json.dumps(public(loaded.settings))
    assert SECRET not in shown + repr(loaded.settings), "a secret is shown"


def values(text: str) -> None:
    """The small languages of values."""
    for parse in (host_and_port, Quota.parse, lambda text: networks([text])):
        try:
            parse(text)
        except ValueError:
            continue
