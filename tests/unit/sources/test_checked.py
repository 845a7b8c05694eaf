"""What a URI may reach: what was allowed, and nothing beside it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from typeless_grpc.errors import InvalidInput, NotFound, TypelessError
from typeless_grpc.sources.checked import CheckedSources, SourceOptions


class OneUpload:
    """Uploads, of which there is one."""

    def open(self, upload_id: str, owner: str | None) -> BinaryIO:
        if (upload_id, owner) != ("u1", "ann"):
            raise NotFound("none", reason="UPLOAD_NOT_FOUND")
        return io.BytesIO(b"uploaded")


def allowing(*prefixes: str, **options: Any) -> CheckedSources:
    return CheckedSources(OneUpload(), SourceOptions(prefixes, **options))  # type: ignore[arg-type]


def read(allowed: CheckedSources, uri: str) -> bytes:
    with allowed.open(uri, "ann", "audio.uri") as file:
        return file.read()


def refusal(allowed: CheckedSources, uri: str) -> str:
    with pytest.raises(TypelessError) as caught:
        read(allowed, uri)
    if isinstance(caught.value, InvalidInput):
        assert caught.value.violations[0].field == "audio.uri"
    return caught.value.reason


def test_an_upload_is_always_allowed_to_its_owner():
    assert read(allowing(), "upload://u1") == b"uploaded"
    with pytest.raises(NotFound):
        allowing().open("upload://u1", "bob", "audio.uri")


@pytest.mark.parametrize("uri", ["file:///etc/hostname", "https://example.com/a", "s3://b/k", "http://x/", "ftp://x/"])
def test_nothing_else_is_allowed_by_default(uri: str):
    assert refusal(allowing(), uri) == "URI_SCHEME_NOT_ALLOWED"


@pytest.mark.parametrize(
    "uri", ["", "no uri", "//host/path", "file:///a b", "file:///a\n", "https://[::1", "https://h:x/"]
)
def test_an_invalid_uri_is_refused(uri: str):
    assert refusal(allowing("https://example.com/", "file:///srv/"), uri) in ("URI_INVALID", "URI_SCHEME_NOT_ALLOWED")


# ---- files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files inside of what is allowed, and a secret outside of it."""
    (tmp_path / "audio" / "deep").mkdir(parents=True)
    (tmp_path / "audio" / "a b.wav").write_bytes(b"inside")
    (tmp_path / "audio" / "deep" / "c.wav").write_bytes(b"deep")
    (tmp_path / "audio-secret").write_bytes(b"secret")
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (tmp_path / "audio" / "link.wav").symlink_to(tmp_path / "secret.wav")
    (tmp_path / "audio" / "inner.wav").symlink_to("deep/c.wav")
    (tmp_path / "audio" / "out").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "audio" / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "content"), [("a%20b.wav", b"inside"), ("deep/c.wav", b"deep"), ("inner.wav", b"deep")]
)
def test_a_file_under_the_prefix_is_read(tree: Path, path: str, content: bytes):
    for prefix in (f"file://{tree}/audio/", f"file://{tree}/audio"):
        assert read(allowing(prefix), f"file://{tree}/audio/{path}") == content


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("audio/../secret.wav", "URI_NOT_ALLOWED"),
        ("audio/%2e%2e/secret.wav", "URI_NOT_ALLOWED"),
        ("audio/deep/..%2f..%2fsecret.wav", "URI_NOT_ALLOWED"),
        ("audio-secret", "URI_NOT_ALLOWED"),
        ("secret.wav", "URI_NOT_ALLOWED"),
        ("audio/link.wav", "URI_NOT_ALLOWED"),
        ("audio/out/secret.wav", "URI_NOT_ALLOWED"),
        ("audio/%00", "URI_NOT_ALLOWED"),
        ("audio/pipe", "AUDIO_NOT_FOUND"),
        ("audio/deep", "AUDIO_NOT_FOUND"),
        ("audio/none.wav", "AUDIO_NOT_FOUND"),
        ("audio/", "AUDIO_NOT_FOUND"),
    ],
)
def test_a_path_that_leaves_the_prefix_is_refused(tree: Path, path: str, reason: str):
    assert refusal(allowing(f"file://{tree}/audio/"), f"file://{tree}/{path}") == reason


def test_a_file_on_another_host_is_refused(tree: Path):
    assert refusal(allowing(f"file://{tree}/audio/"), f"file://host{tree}/audio/a%20b.wav") == "URI_NOT_ALLOWED"


def test_a_prefix_may_itself_be_reached_by_a_link(tree: Path):
    (tree / "alias").symlink_to(tree / "audio")
    assert read(allowing(f"file://{tree}/alias/"), f"file://{tree}/alias/a%20b.wav") == b"inside"


def test_a_file_that_is_too_large_is_refused(tree: Path):
    allowed = allowing(f"file://{tree}/audio/", max_bytes=5)
    assert refusal(allowed, f"file://{tree}/audio/a%20b.wav") == "AUDIO_TOO_LARGE"


# ---- object stores --------------------------------------------------------------------------------------------


def test_an_object_under_the_prefix_is_read():
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/calls/a.wav", b"object")
    memory.pipe_file("/bucket/other/a.wav", b"secret")
    allowed = allowing("memory://bucket/calls/")
    assert read(allowed, "memory://bucket/calls/a.wav") == b"object"
    assert refusal(allowed, "memory://bucket/other/a.wav") == "URI_NOT_ALLOWED"
    assert refusal(allowed, "memory://bucket/calls/../other/a.wav") == "URI_NOT_ALLOWED"
    assert refusal(allowed, "memory://bucket/calls/none.wav") == "AUDIO_NOT_FOUND"


@pytest.mark.parametrize(
    "uri",
    [
        "memory://bucket/calls/a.wav::file:///etc/hostname",
        "memory://bucket/calls/::memory://bucket/other/a.wav",
        "memory://bucket/calls/a%3A%3Amemory://bucket/other/a.wav",
        "memory://bucket/calls/a.wav?::memory://bucket/other/a.wav",
        "memory://bucket/calls/a.wav#::memory://bucket/other/a.wav",
        "memory://bucket/calls/?/../../other/a.wav",
        "memory://bucket/calls/#/../../other/a.wav",
        "memory://bucket/calls%2Fa.wav",
        "memory://bucket/calls/..%2Fother/a.wav",
        "memory://BUCKET/calls/a.wav",
        "memory://bucket:80/calls/a.wav",
        "memory://me@bucket/calls/a.wav",
        "memory:///bucket/calls/a.wav",
        "memory://bucket/calls-secret/a.wav",
    ],
)
def test_an_object_is_reached_by_nothing_but_its_path(uri: str):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in ("calls/a.wav", "other/a.wav", "calls-secret/a.wav"):
        memory.pipe_file(f"/bucket/{path}", b"secret")
    assert refusal(allowing("memory://bucket/calls/"), uri) == "URI_NOT_ALLOWED"


@pytest.mark.parametrize(
    "uri",
    [
        "simplecache::memory://bucket/calls/a.wav",
        "filecache::memory://bucket/calls/a.wav",
        "zip://a.wav::memory://bucket/calls/a.zip",
        "reference://::memory://bucket/calls/a.json",
        "dir::memory://bucket/calls/a.wav",
        "local:///etc/hostname",
        "file:///etc/hostname",
        "data:audio/wav;base64,UklGRg==",
        "github://o:r@main/a.wav",
        "http://bucket/calls/a.wav",
        "s3a://bucket/calls/a.wav",
    ],
)
def test_a_filesystem_that_the_operator_did_not_name_is_not_reached(uri: str):
    assert refusal(allowing("memory://bucket/calls/"), uri) in ("URI_SCHEME_NOT_ALLOWED", "URI_INVALID")


@pytest.mark.parametrize("name", ["a?b.wav", "a#b.wav", "a%20b.wav", "a*b[1].wav", "ä:b.wav"])
def test_an_object_is_read_under_the_name_that_is_written(name: str):
    import fsspec

    fsspec.filesystem("memory").pipe_file(f"/bucket/calls/{name}", name.encode())
    for scheme in ("memory", "MEMORY"):
        assert read(allowing("memory://bucket/calls/"), f"{scheme}://bucket/calls/{name}") == name.encode()


# ---- what the operator writes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "/srv/audio",
        "file://srv/audio",
        "http://example.com/",
        "https:///x",
        "s3:///k",
        "s3://b/a::file:///",
        "s3://b/a?x",
    ],
)
def test_a_prefix_that_would_not_do_what_it_seems_to_is_refused(prefix: str):
    with pytest.raises(InvalidInput) as caught:
        allowing(prefix)
    assert caught.value.reason == "CONFIG_INVALID"


def test_remote_uris_are_recognized():
    allowed = allowing()
    assert not allowed.is_remote("upload://u1")
    assert not allowed.is_remote("file:///srv/a.wav")
    assert not allowed.is_remote("FILE:///srv/a.wav")
    assert allowed.is_remote("https://example.com/a.wav")
    assert allowed.is_remote("s3://bucket/a.wav")
