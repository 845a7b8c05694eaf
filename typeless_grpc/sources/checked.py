"""Opens the audio that a URI in a request names: an upload, or other audio that the operator allowed.

A caller must not reach anything through the server that it cannot reach itself. So each URI is checked twice: as
written, against the prefixes in the settings; and as resolved, the path after its links and the host after its name.
The server connects only to addresses that were checked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

import fsspec

from typeless_grpc.audio.source import no_bound
from typeless_grpc.errors import InvalidInput, NotFound
from typeless_grpc.jobs.store import UPLOAD_SCHEME, UploadStore
from typeless_grpc.sources.web import WebOptions, check_size, download, missing, unreachable

_OBJECT_SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "memory")
# Joins the filesystems of a chain.
_CHAIN = "::"


@dataclass(frozen=True)
class SourceOptions:
    """Which audio may be opened.

    prefixes: URIs that are allowed besides uploads ("file:///srv/audio/"); none by default. max_bytes: size of one
    recording. timeout_s: limit of a whole download. private_hosts: allow private addresses, for tests of this package
    only. min_free_percent: the share of the disk of temporary files that a download must leave free.
    """

    prefixes: Sequence[str] = ()
    max_bytes: int = 2 * 1024**3
    timeout_s: float = 300.0
    private_hosts: bool = False
    min_free_percent: float = 0.0


class NoSources:
    """`AudioSources` of a server without uploads: every URI is refused."""

    def is_remote(self, uri: str) -> bool:
        """See `AudioSources`."""
        return False

    def open(self, uri: str, owner: str | None, field: str, reserve: Callable[[int], None] = no_bound) -> BinaryIO:
        """See `AudioSources`."""
        raise InvalidInput(field, "this server takes audio by its bytes only", reason="URI_SCHEME_NOT_ALLOWED")


class CheckedSources:
    """`AudioSources` over uploads, files of this machine, object stores and the web."""

    def __init__(self, uploads: UploadStore, options: SourceOptions) -> None:
        self._uploads = uploads
        self.use(options)

    def use(self, options: SourceOptions) -> None:
        """Apply these options from now on."""
        self._options = options
        self._prefixes = [_split_prefix(prefix) for prefix in options.prefixes]
        self._web = WebOptions(options.max_bytes, options.timeout_s, options.private_hosts, options.min_free_percent)

    @property
    def schemes(self) -> list[str]:
        """The schemes that are accepted here, "upload" first."""
        return ["upload", *sorted({prefix.scheme for prefix in self._prefixes})]

    def is_remote(self, uri: str) -> bool:
        """See `AudioSources`."""
        return uri.partition(":")[0].lower() not in ("upload", "file")

    def open(self, uri: str, owner: str | None, field: str, reserve: Callable[[int], None] = no_bound) -> BinaryIO:
        """See `AudioSources`."""
        parts = _split(uri, field)
        if parts.scheme == "upload":
            return self._uploads.open(uri.removeprefix(UPLOAD_SCHEME), owner)
        if parts.scheme not in self.schemes:
            allowed = ", ".join(self.schemes)
            why = f"scheme '{parts.scheme[:32]}' is not allowed, only {allowed}: see the server's audio_uri_prefixes"
            raise InvalidInput(field, why, reason="URI_SCHEME_NOT_ALLOWED")
        if not any(_is_within(parts, prefix) for prefix in self._prefixes):
            raise _outside(field)
        if parts.scheme == "file":
            return self._open_file(parts, field)
        if parts.scheme == "https":
            return download(parts, field, self._web, reserve)
        return self._open_object(parts, field)

    def _open_file(self, parts: SplitResult, field: str) -> BinaryIO:
        """Open the file, then check its real path, so that no link can be changed in between."""
        try:
            descriptor = os.open(unquote(parts.path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise missing(field) from error
        try:
            real = _real_path(descriptor, unquote(parts.path))
            roots = [Path(unquote(one.path)).resolve() for one in self._prefixes if one.scheme == "file"]
            if not any(real.is_relative_to(root) for root in roots):
                raise _outside(field)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise missing(field)
            check_size(status.st_size, self._options.max_bytes, field)
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise

    def _open_object(self, parts: SplitResult, field: str) -> BinaryIO:
        """Open an object of a storage. Only its scheme's own filesystem can be reached."""
        try:
            # fsspec gets the scheme alone: of a whole URI it makes a chain of filesystems ("zip://a::s3://b"), which
            # can reach anything.
            filesystem, path = fsspec.filesystem(parts.scheme), f"{parts.netloc}{_object_path(parts)}"
            check_size(int(filesystem.size(path) or 0), self._options.max_bytes, field)
            return cast(BinaryIO, filesystem.open(path, "rb"))
        except (FileNotFoundError, PermissionError) as error:
            raise missing(field) from error
        except (InvalidInput, NotFound):
            raise
        except Exception as error:  # each storage has a family of its own
            raise unreachable() from error


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
    """Parse a prefix of the settings. Raises InvalidInput if it would allow nothing, or more than it seems to."""
    parts = urlsplit(prefix)
    name = "audio_uri_prefixes"
    if parts.scheme not in ("file", "https", *_OBJECT_SCHEMES):
        raise InvalidInput(name, f"'{prefix}' has no scheme that is known here", reason="CONFIG_INVALID")
    if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
        raise InvalidInput(name, f"'{prefix}' must be file:///DIRECTORY/", reason="CONFIG_INVALID")
    if parts.scheme in _OBJECT_SCHEMES and (_CHAIN in prefix or parts.query or parts.fragment):
        raise InvalidInput(name, f"'{prefix}' is more than a bucket and a path", reason="CONFIG_INVALID")
    if parts.scheme != "file" and not parts.netloc:
        raise InvalidInput(name, f"'{prefix}' names no host or bucket", reason="CONFIG_INVALID")
    return parts


def _is_within(parts: SplitResult, prefix: SplitResult) -> bool:
    """Whether a URI is under a prefix, by whole path segments, and has no ".."."""
    if parts.username or parts.password or parts.scheme != prefix.scheme:
        return False
    if parts.scheme in _OBJECT_SCHEMES:
        # A storage uses the path as it is written: to it, "%2F" does not end a segment.
        paths = [_object_path(parts), unquote(_object_path(parts))]
        is_same_host, allowed = parts.netloc == prefix.netloc, prefix.path.rstrip("/")
        if any(_CHAIN in path for path in paths):
            return False
    else:
        paths = [unquote(parts.path)]
        is_same_host, allowed = parts.netloc.lower() == prefix.netloc.lower(), unquote(prefix.path).rstrip("/")
    return is_same_host and all(_lies_under(path, allowed) for path in paths)


def _lies_under(path: str, allowed: str) -> bool:
    climbs = ".." in path.split("/") or "\\" in path or "\0" in path
    return not climbs and (not allowed or path == allowed or path.startswith(allowed + "/"))


def _object_path(parts: SplitResult) -> str:
    """Return the path of an object: its name may hold "?" and "#"."""
    return urlunsplit(("", "", parts.path, parts.query, parts.fragment))


def _real_path(descriptor: int, path: str) -> Path:
    """Return the real path of an open file: from the kernel, else from its path if that still names the same file."""
    if os.path.exists("/proc/self/fd"):
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    real = Path(path).resolve()
    return real if os.path.samestat(real.stat(), os.fstat(descriptor)) else Path("/")


def _outside(field: str) -> InvalidInput:
    return InvalidInput(field, "lies outside of what the operator of this server allowed", reason="URI_NOT_ALLOWED")
