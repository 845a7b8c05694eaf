"""`typeless keys`, on a store without a server and at a server; and keys that clients send in calls of every shape."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from typer.testing import CliRunner, Result

from tests.service.access import ADMIN, USER, guarded, methods
from typeless_grpc.cli.commands import app
from typeless_grpc.client import async_channel, channel


def typeless(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments], env=environment)


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TYPELESS_DATA_DIR", str(tmp_path))
    return tmp_path


def test_the_first_key_is_created_without_a_server(data_dir: Path):
    made = typeless("create", "first", "--role", "admin", "--local")
    assert made.exit_code == 0
    assert made.stdout.startswith("tl_")
    assert "shown only once" in made.stderr
    rows = json.loads(typeless("list", "--local", "--json").stdout)
    assert [(row["display_name"], row["role"], row["state"]) for row in rows] == [("first", "admin", "good")]
    assert made.stdout.strip() not in typeless("list", "--local").stdout
    assert typeless("revoke", rows[0]["key_id"], "--local").exit_code == 0
    assert json.loads(typeless("list", "--local", "--json").stdout)[0]["state"] == "revoked"


def test_json_shows_the_key_after_each_step(data_dir: Path):
    made = json.loads(typeless("create", "one", "--local", "--json").stdout)
    revoked = json.loads(typeless("revoke", made["key_id"], "--local", "--json").stdout)
    assert (made.pop("state"), revoked.pop("state")) == ("good", "revoked")
    assert made.pop("secret").startswith("tl_")
    assert made == revoked


def test_a_name_is_printed_without_markup_or_control_characters(data_dir: Path):
    for name in ("[/red]", "\x1b[2Jname"):
        assert typeless("create", name, "--local").exit_code == 0
    listed = typeless("list", "--local")
    assert listed.exit_code == 0
    assert "[/red]" in listed.stdout
    assert "\x1b[2J" not in listed.stdout


def test_a_long_name_is_printed_as_it_is(data_dir: Path):
    name = "the night shift of " * 6 + "x" * 80
    assert typeless("create", name, "--local").exit_code == 0
    assert name in typeless("list", "--local").stdout


def test_a_key_created_without_a_server_is_valid_at_one(data_dir: Path):
    secret = typeless("create", "--role", "admin", "--local").stdout.strip()

    async def at_a_server() -> tuple[Result, ...]:
        async with guarded(data_dir=str(data_dir), require_auth=True) as served:
            at = ("--server", served.target)
            made = await asyncio.to_thread(
                typeless, "create", "by server", "--expires", "90d", "--json", *at, TYPELESS_API_KEY=secret
            )
            listed = await asyncio.to_thread(typeless, "list", *at, "--api-key", secret, "--json")
            key_id = json.loads(made.stdout)["key_id"]
            revoked = await asyncio.to_thread(typeless, "revoke", key_id, *at, "--api-key", secret)
            refused = await asyncio.to_thread(typeless, "list", *at, "--api-key", json.loads(made.stdout)["secret"])
            as_user = await asyncio.to_thread(typeless, "list", *at, "--api-key", USER)
            return made, listed, revoked, refused, as_user

    made, listed, revoked, refused, as_user = asyncio.run(at_a_server())
    assert [r.exit_code for r in (made, listed, revoked, refused, as_user)] == [0, 0, 0, 1, 1]
    row = next(row for row in json.loads(listed.stdout) if row["display_name"] == "by server")
    assert row["expire_time"]
    assert "KEY_REVOKED" in refused.stderr
    assert "ADMIN_KEY_REQUIRED" in as_user.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("create", "--expires", "soon", "--local"), 2, "90d"),
        (("create", "--role", "king", "--local"), 2, "king"),
        (("revoke", "k0", "--local"), 1, "KEY_NOT_FOUND"),
        (("list", "--server", "127.0.0.1:1"), 1, "no server answers"),
        (("list", "--client-cert", __file__), 2, "together"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_an_impossible_request_is_a_line(data_dir: Path, arguments: tuple[str, ...], code: int, text: str):
    done = typeless(*arguments)
    assert done.exit_code == code
    assert text in done.stderr


@pytest.mark.parametrize(
    "flags",
    [["-s", "host:1"], ["--api-key", "k"], ["--tls"], ["--tls-ca", __file__]],
    ids=lambda flags: flags[0],
)
@pytest.mark.parametrize("words", ["create", "list", "revoke k0"])
def test_local_refuses_a_server_for_keys(data_dir: Path, words: str, flags: list[str]):
    done = typeless(*words.split(), "--local", *flags)
    assert done.exit_code == 2
    assert "uses the store of this machine" in done.stderr
    assert not list(data_dir.iterdir())


SHAPES = {
    "unary_unary": "/typeless.v1.ServerService/GetServerInfo",
    "unary_stream": "/grpc.health.v1.Health/Watch",
    "stream_unary": "/typeless.v1.UploadService/UploadAudio",
    "stream_stream": "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}


def request_of(shape: str) -> Any:
    return iter([b""]) if shape.startswith("stream") else b""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("key", [USER, "wrong"])
async def test_the_clients_channels_send_the_key_with_calls_of_every_shape(shape: str, key: str):
    assert (methods()[SHAPES[shape]].client_streaming, methods()[SHAPES[shape]].server_streaming) == (
        shape.startswith("stream"),
        shape.endswith("stream"),
    )

    def sync_call(target: str) -> grpc.StatusCode:
        with channel(target, api_key=key) as open_channel:
            call = getattr(open_channel, shape)(SHAPES[shape])(request_of(shape), timeout=10)
            try:
                if shape.endswith("stream"):
                    next(call)
                    call.cancel()
            except grpc.RpcError as error:
                return error.code()  # type: ignore[attr-defined, no-any-return]
        return grpc.StatusCode.OK

    async def async_call(target: str) -> grpc.StatusCode:
        async with async_channel(target, api_key=key) as open_channel:
            call = getattr(open_channel, shape)(SHAPES[shape])(request_of(shape), timeout=10)
            try:
                if shape.endswith("stream"):
                    async for _ in call:
                        call.cancel()
                        break
                else:
                    await call
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    # An empty upload is refused for what it is, not for its key.
    good = grpc.StatusCode.UNIMPLEMENTED if shape == "stream_unary" else grpc.StatusCode.OK
    expected = good if key == USER else grpc.StatusCode.UNAUTHENTICATED
    async with guarded(require_auth=True, open_services="") as served:
        while (code := await async_call(served.target)) is grpc.StatusCode.INTERNAL:
            pass  # grpc.aio's own "Internal error from Core": a stream refused while its first request was being sent
        assert code is expected
        if not shape.endswith("unary"):
            assert await asyncio.to_thread(sync_call, served.target) is expected


async def test_a_client_takes_the_key_from_the_environment_unless_it_is_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TYPELESS_API_KEY", ADMIN)
    async with guarded(require_auth=True, open_services="") as served:
        for given, is_good in ((None, True), ("", False), ("wrong", False)):
            async with async_channel(served.target, api_key=given) as open_channel:
                call = open_channel.unary_unary(SHAPES["unary_unary"])
                if is_good:
                    await call(b"")
                else:
                    with pytest.raises(grpc.aio.AioRpcError):
                        await call(b"")


def test_an_expiry_is_a_moment_from_now():
    from typeless_grpc.cli.keys import expiry

    assert expiry("") is None
    soon, later = expiry("30m"), expiry("2h")
    assert isinstance(soon, Timestamp)
    assert isinstance(later, Timestamp)
    assert later.seconds - soon.seconds == pytest.approx(90 * 60, abs=2)
