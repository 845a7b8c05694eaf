"""Files in a directory of this machine, or in any storage of fsspec (s3://, gs://, …).

A file is written once, as a whole, and never changed. A local file is on disk when `write` returns.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from typeless_grpc.disk import check_disk, free_ratio, make_directory
from typeless_grpc.errors import InvalidInput, NotFound, SourceUnavailable
from typeless_grpc.stores.causes import Causes
from typeless_grpc.stores.database import unavailable

_causes = Causes("storage")
_COPY_BYTES = 1 << 20
_PROBE = "access-check"

_MAX_JOINED_BYTES = 64 << 20

# A call of S3 is given up after about 20 s, as one of a database is; botocore's own bounds add up to minutes.
CONNECT_S = 2.0
READ_S = 6.0
_ATTEMPTS = 3
CALL_S = 30.0  # with all attempts
_CONNECTIONS = 50


class Files:
    """A tree of files under one URL; threads may share it. Faults are raised as SourceUnavailable."""

    def __init__(self, url: str, min_free_percent: float = 0.0) -> None:
        """url: a directory's path, or an fsspec URL. Raises InvalidInput if its scheme needs a package.

        min_free_percent: the share of a local disk that new audio must leave free.
        """
        is_s3 = url.startswith(("s3://", "s3a://"))
        try:
            options = s3_options() if is_s3 else {}
            self._fs, self._root = cast(tuple[Any, str], fsspec.core.url_to_fs(url, **options))
        except (ImportError, ValueError) as error:
            raise InvalidInput("storage_url", str(error), reason="CONFIG_INVALID") from error
        if is_s3:
            self._fs.retries = 1  # botocore makes others
        self._bound = {"timeout": CALL_S} if is_s3 else {}
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._min_free_percent = min_free_percent

    def use(self, min_free_percent: float) -> None:
        """Apply this share from now on."""
        self._min_free_percent = min_free_percent

    def check_room(self, n_bytes: int) -> None:
        """Raise SourceUnavailable if n_bytes of new audio would leave too little of the disk free."""
        if self._is_local:
            check_disk(Path(self._root), n_bytes, self._min_free_percent)

    def check_access(self) -> None:
        """Write and delete an object, if this is an object store.

        Raises InvalidInput if the store refuses it, and SourceUnavailable if it does not answer.
        """
        if self._is_local:
            return
        probe = f"{self._root}/{_PROBE}"
        try:
            self._fs.pipe_file(probe, b"", **self._bound)
            with suppress(FileNotFoundError):  # another server has deleted it
                self._fs.rm_file(probe, **self._bound)
        except FileNotFoundError as error:
            raise InvalidInput("storage_url", f"there is no such bucket: {error}", reason="CONFIG_INVALID") from error
        except Exception as error:  # each storage of fsspec has its own errors
            if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
                why = f"the storage refuses this server; check its credentials: {error}"
                raise InvalidInput("storage_url", why, reason="CONFIG_INVALID") from error
            message = f"The storage of `storage_url` does not answer: {error}"
            raise SourceUnavailable(message, reason="STORE_UNAVAILABLE", retry_after_s=1.0) from error

    def free_ratio(self) -> float | None:
        """Return the free share of a local disk, from 0 to 1; None for an object store."""
        return free_ratio(Path(self._root)) if self._is_local else None

    def write(self, path: str, data: bytes | BinaryIO | Sequence[bytes]) -> None:
        """Write data to path ("jobs/ID/audio").

        data: bytes; a file, from its position to its end; or a sequence of bytes, which are not joined in memory.
        """
        try:
            with _faults():
                self._write(self._at(path), data)
        except FileNotFoundError as error:  # its directory was deleted meanwhile; the next attempt creates it again
            raise unavailable(error) from error

    def _write(self, path: str, data: bytes | BinaryIO | Sequence[bytes]) -> None:
        if self._is_local:
            _write_durably(Path(path), _blocks(data))
        elif isinstance(data, bytes):
            self._fs.pipe_file(path, data, **self._bound)
        elif not hasattr(data, "read") and sum(map(len, data)) <= _MAX_JOINED_BYTES:
            self._fs.pipe_file(path, b"".join(data), **self._bound)
        else:
            with self._fs.open(path, "wb") as target:
                for block in _blocks(data):
                    target.write(block)

    def read(self, paths: Sequence[str]) -> list[bytes]:
        """Return the contents of files, in order; they are fetched concurrently if the storage can."""
        if not paths:
            return []
        with _faults():
            full = [self._at(path) for path in paths]
            found = self._fs.cat(full, **self._bound)
            # fsspec returns the bytes of a single path, and a mapping for several.
            return [found] if isinstance(found, bytes) else [found[self._fs._strip_protocol(path)] for path in full]

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking. Raises FileNotFoundError."""
        with _faults():
            return cast(BinaryIO, self._fs.open(self._at(path), "rb"))

    def size_bytes(self, path: str) -> int:
        """Return the size of a file. Raises FileNotFoundError."""
        with _faults():
            return int(self._fs.info(self._at(path), **self._bound)["size"])

    def delete(self, path: str) -> None:
        """Delete a file, if it exists."""
        with _faults():
            try:
                self._fs.rm_file(self._at(path), **self._bound)
            except FileNotFoundError:
                return

    def delete_tree(self, path: str) -> None:
        """Delete a directory and all in it, if it exists."""
        with _faults():
            try:
                self._fs.rm(self._at(path), recursive=True, **self._bound)
            except FileNotFoundError:
                return

    def move_tree(self, path: str, target: str) -> None:
        """Move a directory, file by file, into a target that may exist.

        It can be repeated after an interruption; a file that another process moves at the same time is moved once.
        """
        with _faults():
            source = self._fs._strip_protocol(self._at(path)).rstrip("/")
            for file in self._fs.find(source, **self._bound):
                target_path = f"{self._at(target)}{str(file).removeprefix(source)}"
                try:
                    self._make_directory(target_path.rpartition("/")[0])
                    self._fs.mv(file, target_path)
                except FileNotFoundError:
                    continue
        self.delete_tree(path)

    def names(self, path: str) -> list[tuple[str, float | None]]:
        """List a directory: names, with the Unix time of change if the storage knows it. Empty if there is none."""
        with _faults():
            try:
                entries = self._fs.ls(self._at(path), detail=True, refresh=True, **self._bound)
            except FileNotFoundError:
                return []
        return [(str(entry["name"]).rstrip("/").rpartition("/")[2], entry.get("mtime")) for entry in entries]

    def _make_directory(self, path: str) -> None:
        if self._is_local:
            make_directory(Path(path))
        else:
            self._fs.makedirs(path, exist_ok=True)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"


class PartsFile(io.RawIOBase):
    """Several files read as one, in order."""

    def __init__(self, files: Files, parts: Sequence[tuple[int, int, str]]) -> None:
        """parts: offset, size and path of each, without gaps."""
        self._files, self._parts = files, parts
        self._size = sum(size for _, size, _ in parts)
        self._position = 0
        self._open: tuple[int, BinaryIO] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:
            return 0
        index = self._part_at(self._position)
        offset, size, path = self._parts[index]
        within = self._position - offset
        view = memoryview(buffer).cast("B")[: size - within]
        if self._open is None or self._open[0] != index:
            self._close_part()
            try:
                self._open = (index, self._files.open(path))
            except FileNotFoundError as error:
                raise damaged() from error
            if getattr(self._open[1], "size", size) != size:
                raise damaged()
        file = self._open[1]
        with _faults():
            if file.tell() != within:
                file.seek(within)
            data = file.read(len(view))
        if not data:
            raise damaged()
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._close_part()
        super().close()

    def _part_at(self, position: int) -> int:
        low, high = 0, len(self._parts) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._parts[middle][0] <= position else (low, middle - 1)
        return low

    def _close_part(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


def s3_options() -> dict[str, Any]:
    """Return options of s3fs whose waits are bounded. Raises ImportError without s3fs.

    No listing is cached, so that what other servers write is seen at once.
    """
    fsspec.get_filesystem_class("s3")
    session = importlib.import_module("aiobotocore.session").get_session()
    session.get_component("event_emitter").register_last("before-call.s3", _without_expect)
    return {
        "session": session,
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": CONNECT_S,
            "read_timeout": READ_S,
            "retries": {"mode": "standard", "max_attempts": _ATTEMPTS},
            "max_pool_connections": _CONNECTIONS,
        },
    }


def _without_expect(params: dict[str, Any], **_: Any) -> None:
    """Send bodies at once: aiohttp waits for "100 Continue" without a bound."""
    params["headers"].pop("Expect", None)


def damaged() -> NotFound:
    """Return the error for stored audio that is shorter than it was, or missing in part."""
    return NotFound("The stored audio is damaged. Send it again.", reason="AUDIO_DAMAGED")


def _blocks(data: bytes | BinaryIO | Sequence[bytes]) -> Iterable[bytes]:
    if isinstance(data, bytes):
        return [data]
    if hasattr(data, "read"):
        return iter(functools.partial(data.read, _COPY_BYTES), b"")
    return data


def _write_durably(path: Path, blocks: Iterable[bytes]) -> None:
    """Write all or nothing to disk: a file has its name only once it is complete."""
    make_directory(path.parent)
    beside = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with beside.open("wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, InvalidInput):
        raise
    except Exception as error:  # each storage of fsspec has its own errors
        if "Checksum" in type(error).__name__:  # S3 knows that of each object
            raise damaged() from error
        _causes.note(error)
        raise unavailable(error) from error
