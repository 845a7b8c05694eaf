"""`typeless keys`: creates, lists and revokes API keys, on a server or with --local in the store of this machine."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

import grpc
import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from rich.text import Text

from typeless_grpc.cli.connection import Connection
from typeless_grpc.cli.failures import calls_as_lines, command
from typeless_grpc.cli.output import complain, print_table
from typeless_grpc.cli.settings import load_settings
from typeless_grpc.client import CallFailed, async_channel
from typeless_grpc.pb.v1 import admin_pb2, admin_pb2_grpc

T = TypeVar("T")

app = typer.Typer(help="Create, list and revoke API keys, and show their usage.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Role = Literal["user", "admin"]

MIN_WIDTH = 120  # of the table of keys
_LIFETIMES_S = {"m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class KeyStore(Connection):
    """The store of the keys: a server, or this machine."""

    local: Annotated[
        bool,
        typer.Option(
            "--local",
            help="Use the store that `typeless config` shows, without a server. This creates the first admin key.",
        ),
    ] = False

    def check(self, given: Mapping[str, str]) -> None:
        """Refuse a server with --local: the key would go to another store. given: see `options`."""
        if self.local:
            self.refuse(given, "uses the store of this machine")
        else:
            super().check(given)


@command(app, "create")
def create(
    store: KeyStore,
    name: Annotated[str, typer.Argument(help="Name of the key: its owner or purpose.")] = "",
    role: Annotated[Role, typer.Option(help="What the key permits.")] = "user",
    expires: Annotated[str, typer.Option(help="Lifetime: 90d, 12h, 30m. Unlimited by default.")] = "",
    as_json: AsJson = False,
) -> None:
    """Create a key, and print its secret. The secret is shown only once.

    Example: typeless keys create "night shift" --role user --expires 90d --local
    """
    request = admin_pb2.CreateApiKeyRequest(
        display_name=name,
        role=admin_pb2.ApiKeyRole.Value(f"API_KEY_ROLE_{role.upper()}"),
        expire_time=expiry(expires),
    )
    answer = with_admin(store, lambda admin: admin.CreateApiKey(request))
    key_id = answer.api_key.key_id
    try:
        if as_json:
            typer.echo(json.dumps(_row(answer.api_key) | {"secret": answer.secret}))
            return
        # Only the secret goes to stdout, for scripts.
        complain(f"key {key_id}, role {role}; keep its secret, which is shown only once:")
        typer.echo(answer.secret)
    except OSError:
        complain(f"typeless: the secret of key {key_id} is lost: `typeless keys revoke {key_id}` revokes the key")
        raise


@command(app, "list")
def list_keys(
    store: KeyStore,
    as_json: AsJson = False,
) -> None:
    """List all keys, also revoked and expired ones. Their secrets are not shown.

    Example: typeless keys list --local
    """

    rows = [_row(key) for key in with_admin(store, all_keys)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None)
    for title in ("key", "name", "begins", "role", "state", "created", "expires", "last used"):
        table.add_column(title, no_wrap=title != "name", overflow="fold")
    for row in rows:
        table.add_row(*(cell(value) for value in row.values()))
    print_table(table, min_width=MIN_WIDTH)


@command(app, "revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key, as `typeless keys list` shows it; not the secret.")],
    store: KeyStore,
    as_json: AsJson = False,
) -> None:
    """Revoke a key for ever. Running calls with it end within seconds.

    Example: typeless keys revoke k0123456789abcdef --local
    """
    answer = with_admin(store, lambda admin: admin.RevokeApiKey(admin_pb2.RevokeApiKeyRequest(key_id=key_id)))
    typer.echo(json.dumps(_row(answer.api_key)) if as_json else f"revoked {key_id}")


async def all_keys(admin: Any) -> list[admin_pb2.ApiKey]:
    """Fetch all keys. admin: a stub of AdminService."""
    keys: list[admin_pb2.ApiKey] = []
    request = admin_pb2.ListApiKeysRequest(page_size=1000)
    while True:
        answer = await admin.ListApiKeys(request)
        keys.extend(answer.api_keys)
        if not answer.next_page_token:
            return keys
        request.page_token = answer.next_page_token


def with_admin(store: KeyStore, work: Callable[[Any], Awaitable[T]]) -> T:
    """Do work with a stub of AdminService. Prints a failure as a line, and exits."""

    async def run() -> T:
        async with _admin(store) as admin:
            return await work(admin)

    with calls_as_lines(store.server, otherwise="or add --local to use the keys of this machine"):
        try:
            return asyncio.run(run())
        except grpc.aio.AioRpcError as error:
            raise CallFailed.of(error) from error


@asynccontextmanager
async def _admin(store: KeyStore) -> AsyncIterator[Any]:
    """Yield a stub of AdminService, or its servicer on the store of this machine."""
    if store.local:
        async with _local_admin() as admin:
            yield admin
        return
    async with async_channel(store.server, api_key=store.api_key, tls=store.tls) as channel:
        yield admin_pb2_grpc.AdminServiceStub(channel)


@asynccontextmanager
async def _local_admin() -> AsyncIterator[Any]:
    """Yield an AdminService on the key store of this machine's settings, without a server."""
    from typeless_grpc.app.access import open_registry
    from typeless_grpc.app.usage import stored_usage
    from typeless_grpc.servicers.admin import AdminServicer
    from typeless_grpc.telemetry import logs

    class Direct:
        """Calls the servicer as one calls a stub. It does not use the context."""

        def __init__(self, servicer: AdminServicer) -> None:
            self._servicer = servicer

        def __getattr__(self, name: str) -> Callable[[Any], Any]:
            return lambda request: getattr(self._servicer, name)(request, None)

    settings = load_settings().settings
    logs.configure("warning", settings.log_format)  # stdout is for the secret
    async with open_registry(settings) as registry, stored_usage(settings, registry) as usage:
        yield Direct(AdminServicer(registry, usage, {}))


def expiry(lifetime: str) -> Timestamp | None:
    """Return the time at which a lifetime such as "90d" ends, from now; None for "". Raises typer.BadParameter."""
    if not lifetime:
        return None
    match = re.fullmatch(r"(\d{1,6})([mhd])", lifetime)
    if not match:
        raise typer.BadParameter("must be a number with m, h or d, such as 90d", param_hint="--expires")
    return Timestamp(seconds=int(time.time()) + int(match[1]) * _LIFETIMES_S[match[2]])


def _row(key: admin_pb2.ApiKey) -> dict[str, str | None]:
    is_over = key.HasField("expire_time") and key.expire_time.ToSeconds() <= time.time()
    return {
        "key_id": key.key_id,
        "display_name": key.display_name,
        "prefix": key.prefix,
        "role": admin_pb2.ApiKeyRole.Name(key.role).removeprefix("API_KEY_ROLE_").lower(),
        "state": "revoked" if key.revoked else "expired" if is_over else "good",
        "create_time": _text(key, "create_time"),
        "expire_time": _text(key, "expire_time"),
        "last_use_time": _text(key, "last_use_time"),
    }


def cell(value: str | None) -> Text:
    """Return a cell without markup or control characters."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value or "-"))


def _text(key: admin_pb2.ApiKey, field: str) -> str | None:
    if not key.HasField(field):  # type: ignore[arg-type]
        return None
    return datetime.fromtimestamp(getattr(key, field).ToSeconds(), UTC).strftime("%Y-%m-%d %H:%MZ")
