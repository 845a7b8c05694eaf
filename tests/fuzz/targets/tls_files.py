"""Certificates and keys that change while the server runs: used, or refused, and the old ones kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.certificates import Authority
from tests.fuzz.inputs import Source
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.tls import TlsFiles, TlsReloader

MAX_BYTES = 4096


@cache
def parts() -> tuple[Path, list[bytes]]:
    directory = Path(tempfile.mkdtemp(prefix="typeless-fuzz-"))
    authority = Authority(directory)
    files = [*authority.issue("one"), *authority.issue("two"), authority.ca]
    return directory, [file.read_bytes() for file in files]


def seeds() -> Iterator[bytes]:
    _, contents = parts()
    for which, content in enumerate((contents[0], contents[1], contents[4])):
        yield bytes([which]) + content
        yield bytes([which]) + content[: len(content) // 2]
    yield b"\0" + contents[2]
    yield b"\1" + b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"


def one(data: bytes) -> None:
    source = Source(data)
    directory, contents = parts()
    which = source.number(3)
    names = [directory / "server.pem", directory / "server.key", directory / "ca.pem"]
    for name, content in zip(names, (contents[0], contents[1], contents[4]), strict=True):
        name.write_bytes(content)
    reloader = TlsReloader(TlsFiles(*names))
    names[which].write_bytes(source.rest)
    os.utime(names[which], ns=(1, 1))  # another time than before, whatever the clock does
    reloader.changed()
    assert reloader.expires_s() > 0
    reloader.credentials()
    try:
        TlsReloader(TlsFiles(*names))
    except SourceUnavailable as error:
        assert error.reason == "TLS_UNUSABLE"
        assert "BEGIN" not in error.message, "a refusal repeats a file"
