"""What a URI in a request names: an upload, or audio elsewhere as far as the operator allowed it.

A caller must not reach what the server can reach and the caller cannot. So each address is checked twice: as it is
written, against the prefixes of the settings; and as what it turns out to be: a path after its links are followed, a
host after its name is resolved, by connecting to nothing but the addresses that were checked.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
import stat
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import SplitResult, unquote, urlsplit

import fsspec

from typeless_grpc.errors import InvalidInput, NotFound, SourceUnavailable
from typeless_grpc.jobs.store import UploadStore

_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class SourceOptions:
    """prefixes: what is allowed besides uploads ("file:///srv/audio/"), none unless set. max_bytes: of one recording.

    timeout_s: for a whole download. private_hosts: also reach private addresses; only for tests of this package.
    """

    prefixes: Sequence[str] = ()
    max_bytes: int = 2 * 1024**3
    timeout_s: float = 300.0
    private_hosts: bool = False


class NoSources:
    """`AudioSources` of a server that keeps no uploads: nothing can be named."""

    def is_remote(self, uri: str) -> bool:
        """See `AudioSources`."""
        return False

    def open(self, uri: str, owner: str | None, field: str) -> BinaryIO:
        """See `AudioSources`."""
        raise InvalidInput(field, "this server takes audio by its bytes only", reason="URI_SCHEME_NOT_ALLOWED")


class CheckedSources:
    """`AudioSources` over the uploads, this machine's files, object stores and the web."""

    def __init__(self, uploads: UploadStore, options: SourceOptions) -> None:
        self._uploads, self._options = uploads, options
        self._prefixes = [_split_prefix(prefix) for prefix in options.prefixes]

    @property
    def schemes(self) -> list[str]:
        """What is taken here, "upload" first."""
        return ["upload", *sorted({prefix.scheme for prefix in self._prefixes})]

    def is_remote(self, uri: str) -> bool:
        """See `AudioSources`."""
        return not uri.startswith(("upload:", "file:"))

    def open(self, uri: str, owner: str | None, field: str) -> BinaryIO:
        """See `AudioSources`."""
        parts = _split(uri, field)
        if parts.scheme == "upload":
            return self._uploads.open(uri.removeprefix("upload://"), owner)
        if parts.scheme not in self.schemes:
            allowed = ", ".join(self.schemes)
            why = f"scheme '{parts.scheme[:32]}' is not taken here, only {allowed}"
            raise InvalidInput(field, why, reason="URI_SCHEME_NOT_ALLOWED")
        if not any(_is_within(parts, prefix) for prefix in self._prefixes):
            raise _outside(field)
        if parts.scheme == "file":
            return self._open_file(parts, field)
        if parts.scheme == "https":
            return self._download(parts, field)
        return self._open_object(uri, field)

    def _open_file(self, parts: SplitResult, field: str) -> BinaryIO:
        """Open first and ask where it lies afterwards, so that no link can be changed in between."""
        try:
            descriptor = os.open(unquote(parts.path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise _missing(field) from error
        try:
            real = _real_path(descriptor, unquote(parts.path))
            roots = [Path(unquote(one.path)).resolve() for one in self._prefixes if one.scheme == "file"]
            if not any(real.is_relative_to(root) for root in roots):
                raise _outside(field)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _missing(field)
            self._check_size(status.st_size, field)
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise

    def _open_object(self, uri: str, field: str) -> BinaryIO:
        try:
            filesystem, path = fsspec.core.url_to_fs(uri)
            self._check_size(int(filesystem.size(path) or 0), field)
            return cast(BinaryIO, filesystem.open(path, "rb"))
        except (FileNotFoundError, PermissionError) as error:
            raise _missing(field) from error
        except (InvalidInput, NotFound):
            raise
        except Exception as error:  # each storage has a family of its own
            raise _unreachable() from error

    def _download(self, parts: SplitResult, field: str) -> BinaryIO:
        """Fetch it into a nameless temporary file, since decoding has to seek. Redirects are not followed."""
        deadline_s = time.monotonic() + self._options.timeout_s
        address = self._address(parts, field)
        connection = _PinnedConnection(parts.hostname or "", parts.port or 443, address, timeout_s=30.0)
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        file = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            connection.request("GET", target, headers={"Accept-Encoding": "identity", "User-Agent": "typeless"})
            with connection.getresponse() as response:
                self._check_answer(response, field)
                while data := response.read1(_COPY_BYTES):  # what has come: a trickle must not outlast the time
                    file.write(data)
                    self._check_size(file.tell(), field)
                    if time.monotonic() > deadline_s:
                        raise _unreachable()
            file.seek(0)
            return cast(BinaryIO, file)
        except (OSError, http.client.HTTPException, ValueError) as error:
            file.close()
            raise _unreachable() from error
        except BaseException:
            file.close()
            raise
        finally:
            connection.close()

    def _address(self, parts: SplitResult, field: str) -> str:
        """An address of the host, all of which must be public."""
        try:
            found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _unreachable() from error
        addresses = [str(entry[4][0]) for entry in found]
        if not self._options.private_hosts and not all(is_public(address) for address in addresses):
            raise InvalidInput(field, "its host is not on the public internet", reason="URI_NOT_ALLOWED")
        return addresses[0]

    def _check_answer(self, response: http.client.HTTPResponse, field: str) -> None:
        if 300 <= response.status < 400:
            raise InvalidInput(field, "it redirects, which is not followed", reason="URI_NOT_ALLOWED")
        if response.status >= 500 or response.status == 429:
            raise _unreachable()
        if response.status != 200:
            raise _missing(field)
        if response.length is not None:
            self._check_size(response.length, field)

    def _check_size(self, n_bytes: int, field: str) -> None:
        if n_bytes > self._options.max_bytes:
            why = f"it has more than {self._options.max_bytes} bytes, the most that are taken"
            raise InvalidInput(field, why, reason="AUDIO_TOO_LARGE")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where it wraps an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class _PinnedConnection(http.client.HTTPSConnection):
    """HTTPS to an address that was checked, under the name it was asked for."""

    def __init__(self, host: str, port: int, address: str, *, timeout_s: float) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(host, port, timeout=timeout_s, context=self._tls)
        self._address = address

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


def _split(uri: str, field: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise InvalidInput(field, "is no URI", reason="URI_INVALID") from error
    if not parts.scheme or len(uri) > 4096 or any(ord(one) < 33 for one in uri):
        raise InvalidInput(field, "is no URI", reason="URI_INVALID")
    return parts


def _split_prefix(prefix: str) -> SplitResult:
    """A prefix of the settings. Raises InvalidInput where it would allow nothing, or more than it seems to."""
    parts = urlsplit(prefix)
    name = "audio_uri_prefixes"
    if parts.scheme not in ("file", "https", "s3", "gs", "gcs", "az", "abfs", "memory"):
        raise InvalidInput(name, f"'{prefix}' has no scheme that is known here", reason="CONFIG_INVALID")
    if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
        raise InvalidInput(name, f"'{prefix}' must be file:///DIRECTORY/", reason="CONFIG_INVALID")
    if parts.scheme != "file" and not parts.netloc:
        raise InvalidInput(name, f"'{prefix}' names no host or bucket", reason="CONFIG_INVALID")
    return parts


def _is_within(parts: SplitResult, prefix: SplitResult) -> bool:
    """Whether an address lies under a prefix, whole path segments compared, and climbs nowhere."""
    path = unquote(parts.path)
    climbs = ".." in path.split("/") or "\\" in path or "\0" in path
    if climbs or parts.username or parts.password:
        return False
    if (parts.scheme, parts.netloc.lower()) != (prefix.scheme, prefix.netloc.lower()):
        return False
    allowed = unquote(prefix.path).rstrip("/")
    return not allowed or path == allowed or path.startswith(allowed + "/")


def _real_path(descriptor: int, path: str) -> Path:
    """Where an open file lies, all links followed: the kernel's word, else the path's if it still is this file."""
    if os.path.exists("/proc/self/fd"):
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    real = Path(path).resolve()
    return real if os.path.samestat(real.stat(), os.fstat(descriptor)) else Path("/")


def _outside(field: str) -> InvalidInput:
    return InvalidInput(field, "lies outside of what the operator of this server allowed", reason="URI_NOT_ALLOWED")


def _missing(field: str) -> NotFound:
    return NotFound(f"{field}: there is no audio that could be read.", reason="AUDIO_NOT_FOUND")


def _unreachable() -> SourceUnavailable:
    return SourceUnavailable("The audio cannot be fetched now.", reason="AUDIO_UNREACHABLE", retry_after_s=5.0)
