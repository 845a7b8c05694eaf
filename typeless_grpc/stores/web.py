"""Recordings fetched over https://, from the public internet only, by nothing but addresses that were checked.

A name is resolved once and the connection made to what was found: a name that leads elsewhere a moment later is of no
use. Redirects are not followed, since where they lead is not what the operator allowed.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import SplitResult

from typeless_grpc.errors import InvalidInput, NotFound, SourceUnavailable
from typeless_grpc.stores.room import check_disk

_COPY_BYTES = 1 << 20
# For a connection, and for each answer of the other side within the time of the whole.
_SILENCE_S = 30.0


@dataclass(frozen=True)
class WebOptions:
    """max_bytes: of one recording. timeout_s: for a whole download. private_hosts: only for tests of this package.

    min_free_percent: of the disk of temporary files, what a download must leave free.
    """

    max_bytes: int
    timeout_s: float
    private_hosts: bool = False
    min_free_percent: float = 0.0


def download(parts: SplitResult, field: str, options: WebOptions) -> BinaryIO:
    """The recording at an https:// address, in a nameless temporary file, since decoding has to seek.

    Raises InvalidInput for a host that is not public, a redirect or too many bytes, NotFound where there is nothing,
    and SourceUnavailable where it may be there another time.
    """
    addresses = _addresses(parts, field, options)
    connection = _PinnedConnection(parts.hostname or "", parts.port or 443, addresses)
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with _time_limit(options.timeout_s, connection.give_up):
            _fetch(connection, parts, cast(BinaryIO, file), field, options)
        file.seek(0)
        return cast(BinaryIO, file)
    except (OSError, http.client.HTTPException, ValueError) as error:
        file.close()
        raise unreachable() from error
    except BaseException:
        file.close()
        raise
    finally:
        connection.close()


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where it wraps an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def missing(field: str) -> NotFound:
    """There is nothing, or nothing that we may read: which of them is not told."""
    return NotFound(f"{field}: there is no audio that could be read.", reason="AUDIO_NOT_FOUND")


def unreachable() -> SourceUnavailable:
    """It may be there another time."""
    return SourceUnavailable("The audio cannot be fetched now.", reason="AUDIO_UNREACHABLE", retry_after_s=5.0)


def check_size(n_bytes: int, max_bytes: int, field: str) -> None:
    """Raise InvalidInput for a recording that is larger than what is taken."""
    if n_bytes > max_bytes:
        why = f"it has more than {max_bytes} bytes, the most that are taken"
        raise InvalidInput(field, why, reason="AUDIO_TOO_LARGE")


def _addresses(parts: SplitResult, field: str, options: WebOptions) -> Sequence[str]:
    """Those of the host, all of which must be public."""
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise unreachable() from error
    addresses = [str(entry[4][0]) for entry in found]
    if not options.private_hosts and not all(is_public(address) for address in addresses):
        raise InvalidInput(field, "its host is not on the public internet", reason="URI_NOT_ALLOWED")
    return addresses


def _fetch(connection: _PinnedConnection, parts: SplitResult, file: BinaryIO, field: str, options: WebOptions) -> None:
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    connection.request("GET", target, headers={"Accept-Encoding": "identity", "User-Agent": "typeless"})
    with connection.getresponse() as response:
        _check_answer(response, field)
        if response.length is not None:
            check_size(response.length, options.max_bytes, field)
            _check_disk(response.length, options)
        while data := response.read1(_COPY_BYTES):
            connection.check_time()
            _check_disk(len(data), options)
            file.write(data)
            check_size(file.tell(), options.max_bytes, field)
        connection.check_time()
        if response.length:  # the connection broke before all of it had come
            raise unreachable()


def _check_disk(n_bytes: int, options: WebOptions) -> None:
    check_disk(Path(tempfile.gettempdir()), n_bytes, options.min_free_percent)


def _check_answer(response: http.client.HTTPResponse, field: str) -> None:
    if 300 <= response.status < 400:
        raise InvalidInput(field, "it redirects, which is not followed", reason="URI_NOT_ALLOWED")
    if response.status >= 500 or response.status == 429:
        raise unreachable()
    if response.status != 200:
        raise missing(field)


class _PinnedConnection(http.client.HTTPSConnection):
    """HTTPS to one of the addresses that were checked, under the name it was asked for."""

    def __init__(self, host: str, port: int, addresses: Sequence[str]) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(host, port, timeout=_SILENCE_S, context=self._tls)
        self._addresses = addresses
        self._is_given_up = threading.Event()
        # `sock` is let go of once the answer's head is there, if the other side closes the connection after it.
        self._open: ssl.SSLSocket | None = None

    def connect(self) -> None:
        plain = self._connected()
        try:
            # Without its handshake, so that `give_up` finds what the handshake waits on. An end that was not announced
            # is an error: it could be anybody's.
            self.sock = self._open = self._tls.wrap_socket(
                plain, server_hostname=self.host, do_handshake_on_connect=False, suppress_ragged_eofs=False
            )
        except BaseException:
            plain.close()
            raise
        self.check_time()
        self.sock.do_handshake()

    def give_up(self) -> None:
        """End it, from another thread, whatever it waits for, or as soon as it has connected."""
        self._is_given_up.set()
        if self._open is not None:
            with suppress(OSError):
                socket.socket.shutdown(self._open, socket.SHUT_RDWR)

    def check_time(self) -> None:
        """Raise SourceUnavailable once it was given up."""
        if self._is_given_up.is_set():
            raise unreachable()

    def _connected(self) -> socket.socket:
        for address in self._addresses[:-1]:
            self.check_time()
            with suppress(OSError):  # a host of two families is often reached by one of them only
                return socket.create_connection((address, self.port), self.timeout)
        self.check_time()
        return socket.create_connection((self._addresses[-1], self.port), self.timeout)


@contextmanager
def _time_limit(seconds: float, give_up: Callable[[], None]) -> Iterator[None]:
    """Give up after a time, also where the other side keeps sending a little."""
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
