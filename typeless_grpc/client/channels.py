"""The connection of both clients: its API key, TLS and channel options, and the headers of every call."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from typeless_grpc.client.propagation import trace_headers
from typeless_grpc.client.retry import SERVICE_CONFIG
from typeless_grpc.client.target import is_on_this_machine, target_to_call

_MAX_KEY_BYTES = 16 * 1024  # the server's limit on headers
_RETRIED_BYTES = 64 * 1024 * 1024  # gRPC repeats no larger request; its default is 256 KiB

_CHANNEL_OPTIONS = [
    # A transcript of hours is larger than gRPC's default of 4 MiB. The server limits what it accepts.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC waits a second before it reconnects. That is too long for a live stream.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # for one attempt, with the handshake
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A server that is frozen or unreachable does not close the connection. Pings during calls detect it in time to
    # resume.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


@dataclass(frozen=True)
class Tls:
    """PEM files for TLS. ca: the certificate authority to trust, None for the default ones.

    cert, key: this client's certificate and private key, both or neither, for mutual TLS.
    """

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises OSError if one cannot be read."""
        ca, key, cert = (None if file is None else Path(file).read_bytes() for file in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)


def channel(target: str, *, api_key: str | None = None, tls: Tls | None = None, retry: bool = True) -> grpc.Channel:
    """Open a channel for generated stubs. It sends the key and the current trace with every call.

    See `Client` for the arguments.

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
    return grpc.intercept_channel(plain, _HeaderSender(key))


def async_channel(
    target: str, *, api_key: str | None = None, tls: Tls | None = None, retry: bool = True
) -> grpc.aio.Channel:
    """The same for asyncio. It reads files in the calling thread; `AsyncConnection` does not."""
    key, target = key_to_send(api_key), target_to_call(target)
    return _async_channel(target, key, tls.credentials() if tls else None, retry)


class AsyncConnection:
    """A channel for asyncio, opened by the first call. A thread reads the files of the API key and of TLS."""

    def __init__(self, target: str, *, api_key: str | None, tls: Tls | None, retry: bool) -> None:
        """Raises ValueError for an invalid target or key, but leaves files to `channel`."""
        self._target = target_to_call(target)
        if api_key is not None or not os.environ.get("TYPELESS_API_KEY_FILE"):
            api_key = key_to_send(api_key)
        self._api_key, self._tls, self._retry = api_key, tls, retry
        self._opening = asyncio.Lock()
        self._channel: grpc.aio.Channel | None = None
        self._is_closed = False

    async def channel(self) -> grpc.aio.Channel:
        """Return the channel, the same one each time. Raises ValueError, or OSError if a file cannot be read."""
        async with self._opening:
            if self._is_closed:
                raise ValueError("the client is closed")
            if self._channel is None:
                key, credentials = await asyncio.to_thread(self._read_files)
                self._channel = _async_channel(self._target, key, credentials, self._retry)
            return self._channel

    async def close(self) -> None:
        """Close the channel; cancels the calls that still run."""
        async with self._opening:
            self._is_closed = True
            if self._channel is not None:
                await self._channel.close()

    def _read_files(self) -> tuple[str, grpc.ChannelCredentials | None]:
        return key_to_send(self._api_key), self._tls.credentials() if self._tls else None


def _async_channel(target: str, key: str, credentials: grpc.ChannelCredentials | None, retry: bool) -> grpc.aio.Channel:
    if credentials is None:
        plain = grpc.aio.insecure_channel(target, options=_options(target, retry))
    else:
        plain = grpc.aio.secure_channel(target, credentials, options=_options(target, retry))
    return cast("grpc.aio.Channel", _ChannelWithHeaders(plain, key))


def key_to_send(api_key: str | None) -> str:
    """Return the key without surrounding white space. None reads it from the environment, or from the file it names.

    Raises ValueError for a key that a header cannot carry. The message does not show the key.
    """
    key = (_environments_key() if api_key is None else api_key).strip()
    # gRPC would refuse it with an assertion in C++.
    if not (key.isascii() and key.isprintable()):
        raise ValueError("the API key contains a line end, or a character that is not ASCII")
    return key


def _environments_key() -> str:
    """Return the key of the environment, or "" if it has none. Raises ValueError if it has two or an unreadable one."""
    key, file = os.environ.get("TYPELESS_API_KEY", ""), os.environ.get("TYPELESS_API_KEY_FILE", "")
    if key and file:
        raise ValueError("TYPELESS_API_KEY and TYPELESS_API_KEY_FILE are both set: unset one of them")
    if not file:
        return key
    try:
        with Path(file).expanduser().open("rb") as content:
            key = content.read(_MAX_KEY_BYTES + 1).decode("utf-8-sig")  # Windows' editors write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(f"TYPELESS_API_KEY_FILE: {file} cannot be read: {why}") from error
    if not key.strip() or len(key) > _MAX_KEY_BYTES:
        raise ValueError(f"TYPELESS_API_KEY_FILE: {file} contains no key")
    return key


def _options(target: str, retry: bool) -> list[tuple[str, Any]]:
    # Through a proxy, a loopback address would mean the proxy's machine.
    options = [*_CHANNEL_OPTIONS, *([("grpc.enable_http_proxy", 0)] if is_on_this_machine(target) else [])]
    if not retry:
        return [*options, ("grpc.enable_retries", 0)]
    return [
        *options,
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        ("grpc.per_rpc_retry_buffer_size", _RETRIED_BYTES),
    ]


def _headers(given: Any, api_key: str) -> tuple[Any, ...]:
    key = (("x-api-key", api_key),) if api_key else ()
    return (*(given or ()), *key, *trace_headers())


class _HeaderSender(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the key and the current trace to the headers of every call, of any shape."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key

    def _send(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=_headers(details.metadata, self._api_key)), request)

    intercept_unary_unary: Any = _send
    intercept_unary_stream: Any = _send
    intercept_stream_unary: Any = _send
    intercept_stream_stream: Any = _send


class _ChannelWithHeaders:
    """The same for asyncio, where an interceptor would change the class of the call."""

    def __init__(self, plain: grpc.aio.Channel, api_key: str) -> None:
        self._plain = plain
        self._api_key = api_key

    def unary_unary(self, *method: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._sending(self._plain.unary_unary(*method, **options))

    def unary_stream(self, *method: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._sending(self._plain.unary_stream(*method, **options))

    def stream_unary(self, *method: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._sending(self._plain.stream_unary(*method, **options))

    def stream_stream(self, *method: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._sending(self._plain.stream_stream(*method, **options))

    def _sending(self, call: Any) -> Callable[..., Any]:
        def with_headers(*request: Any, metadata: Any = None, **options: Any) -> Any:
            return call(*request, metadata=_headers(metadata, self._api_key), **options)

        return with_headers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    async def __aenter__(self) -> _ChannelWithHeaders:
        await self._plain.__aenter__()
        return self

    async def __aexit__(self, *failure: Any) -> None:
        await self._plain.__aexit__(*failure)
