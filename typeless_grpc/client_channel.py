"""The connection under the clients: its key, its safety, its options."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import grpc
import grpc.aio

# Calls that change nothing but quotas: where no server took one, or one has no room, gRPC makes it again by itself,
# after the time that the server names (grpc-retry-pushback-ms). Streams, jobs and uploads go on in ways of their own.
_SAFE_TO_REPEAT = {
    "typeless.v1.TranscriptionService": ("Transcribe", "BatchTranscribe"),
    "typeless.v1.ServerService": ("GetServerInfo",),
    "typeless.v1.ModelService": ("ListModels",),
}
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": service, "method": method}
                for service, methods in _SAFE_TO_REPEAT.items()
                for method in methods
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # Where most calls fail, more of them help nobody.
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
# Where gRPC looks for a proxy.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_MAX_KEY_BYTES = 16 * 1024  # what a server takes of headers
_RETRIED_BYTES = 64 * 1024 * 1024  # a larger request is sent once; gRPC's own bound is 256 KiB

_CHANNEL_OPTIONS = [
    # A transcript of hours is larger than gRPC's 4 MiB; the server bounds what it takes.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A stream whose connection broke is wanted back sooner than after gRPC's second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


@dataclass(frozen=True)
class Tls:
    """A safe connection, by PEM files. ca: of the authority to believe, None for the usual ones.

    cert, key: this client's own, both or neither, where the server wants to see one.
    """

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC needs. Raises OSError if a file cannot be read."""
        ca, key, cert = (None if file is None else Path(file).read_bytes() for file in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)


def channel(target: str, *, api_key: str | None = None, tls: Tls | None = None, retry: bool = True) -> grpc.Channel:
    """A channel that sends the key with every call, for stubs of the contract. The arguments are those of `Client`.

    >>> with channel("localhost:50051") as open_channel:
    ...     stub = server_pb2_grpc.ServerServiceStub(open_channel)
    ...     print(stub.GetServerInfo(server_pb2.GetServerInfoRequest()).default_model)
    base
    """
    key, target = key_to_send(api_key), target_to_call(target)
    if tls is None:
        plain = grpc.insecure_channel(target, options=_options(target, retry))
    else:
        plain = grpc.secure_channel(target, tls.credentials(), options=_options(target, retry))
    return grpc.intercept_channel(plain, _KeySender(key)) if key else plain


def async_channel(
    target: str, *, api_key: str | None = None, tls: Tls | None = None, retry: bool = True
) -> grpc.aio.Channel:
    """The same for asyncio."""
    key, target = key_to_send(api_key), target_to_call(target)
    if tls is None:
        plain = grpc.aio.insecure_channel(target, options=_options(target, retry))
    else:
        plain = grpc.aio.secure_channel(target, tls.credentials(), options=_options(target, retry))
    return cast("grpc.aio.Channel", _KeyedChannel(plain, key)) if key else plain


def key_to_send(api_key: str | None) -> str:
    """The key as a header can carry it, without the white space around it; None is the environment's.

    Raises ValueError, which does not show the key.
    """
    key = (_environments_key() if api_key is None else api_key).strip()
    # HTTP/2 would take some of the rest, gRPC takes none, and says so in C++.
    if not (key.isascii() and key.isprintable()):
        raise ValueError("the API key has a line end, or a character beyond ASCII, in it")
    return key


def _environments_key() -> str:
    key, file = os.environ.get("TYPELESS_API_KEY", ""), os.environ.get("TYPELESS_API_KEY_FILE", "")
    if key and file:
        raise ValueError("TYPELESS_API_KEY and TYPELESS_API_KEY_FILE are both set: one of them is the key")
    if not file:
        return key
    try:
        with Path(file).expanduser().open("rb") as content:
            key = content.read(_MAX_KEY_BYTES + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise ValueError(f"TYPELESS_API_KEY_FILE: {file} cannot be read: {why}") from error
    if not key.strip() or len(key) > _MAX_KEY_BYTES:
        raise ValueError(f"TYPELESS_API_KEY_FILE: there is no key in {file}")
    return key


def target_to_call(target: str) -> str:
    """Where the server is, as gRPC understands it, without the white space around it. Raises ValueError."""
    target = target.strip()
    if not (target and target.isascii() and target.isprintable() and " " not in target):
        raise ValueError(f"{target!a} is no server: it is HOST:PORT, in ASCII and without spaces")
    if target.lower().startswith(("http://", "https://")):
        raise ValueError(f"{target} is no server: it is HOST:PORT, without http:// or https:// before it")
    return target


def host_of(target: str) -> str:
    """The host of a target: of `dns:///HOST:1`, `ipv4:HOST:1`, `[HOST]:1` and `HOST`, too; of several, the first."""
    name = re.sub(r"^(dns:(//[^/]*/)?|ipv[46]:)", "", target).split(",")[0]
    match = re.fullmatch(r"\[(.*)\](:\w+)?|([^:]*)(:\w+)?", name)
    return (match[1] or match[3] or "") if match else name


def is_on_this_machine(target: str) -> bool:
    """Whether a target needs no network: a loopback address, localhost, or a socket of this machine."""
    if target.startswith(("unix:", "unix-abstract:", "vsock:")):
        return True
    host = host_of(target).split("%")[0].rstrip(".").lower()
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address.is_unspecified
    return host in ("localhost", "localhost.localdomain", "ip6-localhost") or host.endswith(".localhost")


def proxy_variable(details: str) -> str:
    """The variable that named the proxy whose address stands in gRPC's text of a failure; "" where none did."""
    for name in _PROXY_VARIABLES:
        with suppress(ValueError):  # no URL: gRPC takes no notice of it
            port = urlsplit(os.environ.get(name, "")).port
            if port is not None and re.search(rf":{port}\b", details):
                return name
    return ""


def _options(target: str, retry: bool) -> list[tuple[str, Any]]:
    # A proxy's loopback is not ours.
    options = [*_CHANNEL_OPTIONS, *([("grpc.enable_http_proxy", 0)] if is_on_this_machine(target) else [])]
    if not retry:
        return [*options, ("grpc.enable_retries", 0)]
    return [
        *options,
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.per_rpc_retry_buffer_size", _RETRIED_BYTES),
    ]


class _KeySender(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the key to the headers of every call, of any shape."""

    def __init__(self, api_key: str) -> None:
        self._header = ("x-api-key", api_key)

    def _send(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=(*(details.metadata or ()), self._header)), request)

    intercept_unary_unary: Any = _send
    intercept_unary_stream: Any = _send
    intercept_stream_unary: Any = _send
    intercept_stream_stream: Any = _send


class _KeyedChannel:
    """The same for asyncio, where an interceptor has one shape, and an intercepted call is of another class."""

    def __init__(self, plain: grpc.aio.Channel, api_key: str) -> None:
        self._plain = plain
        self._header = ("x-api-key", api_key)

    def unary_unary(self, *method: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._keyed(self._plain.unary_unary(*method, **options))

    def unary_stream(self, *method: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._keyed(self._plain.unary_stream(*method, **options))

    def stream_unary(self, *method: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._keyed(self._plain.stream_unary(*method, **options))

    def stream_stream(self, *method: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._keyed(self._plain.stream_stream(*method, **options))

    def _keyed(self, call: Any) -> Callable[..., Any]:
        def with_key(*request: Any, metadata: Any = None, **options: Any) -> Any:
            return call(*request, metadata=(*(metadata or ()), self._header), **options)

        return with_key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    async def __aenter__(self) -> _KeyedChannel:
        await self._plain.__aenter__()
        return self

    async def __aexit__(self, *failure: Any) -> None:
        await self._plain.__aexit__(*failure)
