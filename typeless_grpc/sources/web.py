"""Fetches recordings over https://, only from the public internet, and only from addresses that were checked.

A host name is resolved once, and the connection goes to the addresses found, so that a name that soon resolves to
another address is of no use. Redirects are not followed, because the operator did not allow their target.
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

from typeless_grpc.audio.source import no_bound
from typeless_grpc.disk import check_disk
from typeless_grpc.errors import InvalidInput, NotFound, SourceUnavailable

_COPY_BYTES = 1 << 20
# A download of unknown length reserves its bytes in steps, as an upload does.
RESERVE_BYTES = 4 << 20
# Limit for a connection and for each answer, within the limit of the whole download.
_SILENCE_S = 30.0


@dataclass(frozen=True)
class WebOptions:
    """Bounds of downloads.

    max_bytes: size of one recording. timeout_s: limit of a whole download. private_hosts: allow private addresses, for
    tests of this package only. min_free_percent: the share of the disk of temporary files that a download must leave
    free.
    """

    max_bytes: int
    timeout_s: float
    private_hosts: bool = False
    min_free_percent: float = 0.0


def download(
    parts: SplitResult, field: str, options: WebOptions, reserve: Callable[[int], None] = no_bound
) -> BinaryIO:
    """Download the recording at an https:// address into an unnamed temporary file, because decoding has to seek.

    reserve: see `AudioSources.open`.

    Raises InvalidInput for a host that is not public, a redirect or too many bytes, NotFound if there is no recording,
    and SourceUnavailable if a later attempt may succeed.
    """
    addresses = _addresses(parts, field, options)
    connection = _PinnedConnection(parts.hostname or "", parts.port or 443, addresses)
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with _time_limit(options.timeout_s, connection.give_up):
            _fetch(connection, parts, cast(BinaryIO, file), field, options, reserve)
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
    """Whether an IP address, or the IPv4 address that it embeds, is public."""
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
    """Return the error for audio that does not exist or that the server may not read; it does not say which."""
    return NotFound(f"{field}: there is no audio that could be read.", reason="AUDIO_NOT_FOUND")


def unreachable() -> SourceUnavailable:
    """Return the error for audio that a later attempt may reach."""
    return SourceUnavailable("The audio cannot be fetched now.", reason="AUDIO_UNREACHABLE", retry_after_s=5.0)


def check_size(n_bytes: int, max_bytes: int, field: str) -> None:
    """Raise InvalidInput for a recording of more than max_bytes."""
    if n_bytes > max_bytes:
        why = f"it has more than {max_bytes} bytes, the most that are taken"
        raise InvalidInput(field, why, reason="AUDIO_TOO_LARGE")


def _addresses(parts: SplitResult, field: str, options: WebOptions) -> Sequence[str]:
    """Return the addresses of the host. Raises InvalidInput if one is not public."""
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise unreachable() from error
    addresses = [str(entry[4][0]) for entry in found]
    if not options.private_hosts and not all(is_public(address) for address in addresses):
        raise InvalidInput(field, "its host is not on the public internet", reason="URI_NOT_ALLOWED")
    return addresses


def _fetch(
    connection: _PinnedConnection,
    parts: SplitResult,
    file: BinaryIO,
    field: str,
    options: WebOptions,
    reserve: Callable[[int], None],
) -> None:
    """Write an answer's body to `file`, within the limits of size, disk and time."""
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    connection.request("GET", target, headers={"Accept-Encoding": "identity", "User-Agent": "typeless"})
    with connection.getresponse() as response:
        _check_answer(response, field)
        if response.length is not None:
            check_size(response.length, options.max_bytes, field)
            _check_disk(response.length, options)
            reserve(response.length)
        n_reserved = response.length or 0
        while data := response.read1(_COPY_BYTES):
            connection.check_time()
            _check_disk(len(data), options)
            file.write(data)
            check_size(file.tell(), options.max_bytes, field)
            if file.tell() >= n_reserved + RESERVE_BYTES:
                n_reserved = file.tell()
                reserve(n_reserved)
        connection.check_time()
        if response.length:  # the connection broke before the end
            raise unreachable()
        reserve(file.tell())


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
    """HTTPS to one of the addresses that were checked, under the requested host name."""

    def __init__(self, host: str, port: int, addresses: Sequence[str]) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(host, port, timeout=_SILENCE_S, context=self._tls)
        self._addresses = addresses
        self._is_given_up = threading.Event()
        # `sock` is None once the head of the answer has come, if the other side closes the connection after it.
        self._open: ssl.SSLSocket | None = None

    def connect(self) -> None:
        plain = self._connected()
        try:
            # The handshake comes later, so that `give_up` can end it. An end of the connection that TLS did not
            # announce is an error: anybody could have caused it.
            self.sock = self._open = self._tls.wrap_socket(
                plain, server_hostname=self.host, do_handshake_on_connect=False, suppress_ragged_eofs=False
            )
        except BaseException:
            plain.close()
            raise
        self.check_time()
        self.sock.do_handshake()

    def give_up(self) -> None:
        """End the connection from another thread, whatever it waits for.

        While it is being opened, end it once it is open.
        """
        self._is_given_up.set()
        if self._open is not None:
            with suppress(OSError):
                socket.socket.shutdown(self._open, socket.SHUT_RDWR)

    def check_time(self) -> None:
        """Raise SourceUnavailable after `give_up`."""
        if self._is_given_up.is_set():
            raise unreachable()

    def _connected(self) -> socket.socket:
        for address in self._addresses[:-1]:
            self.check_time()
            with suppress(OSError):  # a host with addresses of both families is often reachable by only one
                return socket.create_connection((address, self.port), self.timeout)
        self.check_time()
        return socket.create_connection((self._addresses[-1], self.port), self.timeout)


@contextmanager
def _time_limit(seconds: float, give_up: Callable[[], None]) -> Iterator[None]:
    """Call give_up after a time, even if the other side keeps sending a little."""
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
