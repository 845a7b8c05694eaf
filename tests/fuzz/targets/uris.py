"""Addresses of audio: nothing opens but files below the allowed directory, and uploads of the caller."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

from tests.fuzz.inputs import Source
from typeless_grpc.errors import InvalidInput, NotFound, SourceUnavailable, WrongState
from typeless_grpc.sources.checked import CheckedSources, SourceOptions
from typeless_grpc.sources.web import is_public
from typeless_grpc.stores.database import Database, sqlite_url
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.uploads import SqlUploadStore, UploadOptions

MAX_BYTES = 1024
INSIDE, OUTSIDE = b"inside", b"outside"


@cache
def root() -> Path:
    found = Path(tempfile.mkdtemp(prefix="typeless-fuzz-"))
    (found / "audio" / "more").mkdir(parents=True)
    (found / "audio" / "a.wav").write_bytes(INSIDE)
    (found / "audio" / "more" / "b c.wav").write_bytes(INSIDE)
    (found / "audiobook").write_bytes(OUTSIDE)
    (found / "secret").write_bytes(OUTSIDE)
    (found / "audio" / "link").symlink_to(found / "secret")
    (found / "audio" / "up").symlink_to(found)
    os.mkfifo(found / "audio" / "pipe")
    return found


@cache
def sources() -> CheckedSources:
    database = Database(sqlite_url(root() / "jobs.db"))
    database.create_tables()
    uploads = SqlUploadStore(database, Files(str(root() / "files")), UploadOptions())
    upload = uploads.create("ann", "")
    uploads.complete(uploads.append(upload, [OUTSIDE]))
    # No host of https is allowed, because it would be resolved.
    return CheckedSources(uploads, SourceOptions([f"file://{root()}/audio/", "memory://bucket/audio/"]))


def seeds() -> Iterator[bytes]:
    for rest in (
        b"a.wav",
        b"more/b%20c.wav",
        b"../secret",
        b"%2e%2e/secret",
        b"link",
        b"up/secret",
        b"pipe",
        b"",
        b".",
    ):
        yield b"\0" + rest
    for uri in (
        "upload://" + "0" * 32,
        "memory://bucket/audio/a",
        "memory://bucket/audio/../secret",
        "zip://a::memory://bucket/audio/b",
        "file:///etc/passwd",
        "FILE://localhost/etc/passwd",
        "https://127.0.0.1/",
        "https://[::1",
        "s3://a/b",
    ):
        yield b"\1" + uri.encode()
    for address in ("10.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "fe80::1%eth0", "8.8.8.8"):
        yield b"\2" + address.encode()


def one(data: bytes) -> None:
    source = Source(data)
    kind = source.number(3)
    text = source.rest.decode("utf-8", "surrogateescape" if source.rest[:1] == b"\xff" else "replace")
    if kind == 2:
        try:
            is_public(text)
        except ValueError:
            return
        return
    uri = f"file://{root()}/audio/{text}" if kind == 0 else text
    try:
        file = sources().open(uri, "bob", "audio.uri")
    except (InvalidInput, NotFound, SourceUnavailable, WrongState) as error:
        assert error.reason
        assert str(root()) not in error.message.replace(uri, ""), "a refusal tells a path of this machine"
        return
    with file:
        check(file)


def check(file: BinaryIO) -> None:
    assert file.read(100) == INSIDE, "what is not allowed was opened"
