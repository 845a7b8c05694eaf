"""Stores a model's silent tail, so that it is calibrated once for each machine.

The file lies beside the model, or in the data directory if the model's directory is not writable. It holds a checksum
and a fingerprint of the weights.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from typeless_grpc.disk import READABLE, make_directory
from typeless_grpc.engine.tail import Positions, Tail

log = logging.getLogger(__name__)

# Incremented when tails of earlier versions must not be used any more.
VERSION = 3
FILE_NAME = "typeless-silence.npz"

# What `_read` raises for a file that is absent, damaged or of another model.
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def is_stored(directories: Sequence[Path], fingerprint: str) -> bool:
    """Whether one of these directories has the tail of this model."""
    return any(_is_readable(directory / FILE_NAME, fingerprint) for directory in directories)


def load_or_calibrate(
    directories: Sequence[Path], fingerprint: str, calibrate: Callable[[], Tail | None]
) -> Tail | None:
    """Return the tail that one of these directories has; else calibrate one, and store it in the first writable one.

    fingerprint: of the model's weights and of how they are computed; a tail with another one is not used. None, the
    result of a failed calibration, is stored as well.
    """
    for directory in directories:
        with suppress(*_UNREADABLE):
            return _read(directory / FILE_NAME, fingerprint)
    tail = calibrate()
    for directory in directories:
        with suppress(OSError):
            _write(directory / FILE_NAME, fingerprint, tail)
            break
    else:
        log.warning("the calibrated silence cannot be stored in %s: every start calibrates again", directories[0])
    return tail


def fingerprint_of(weights: Path, *facts: object) -> str:
    """Return a checksum of a file of weights, and of everything else that its output depends on.

    It reads the size and eight parts of a mebibyte each, because reading gigabytes would take seconds.
    """
    digest, size, part = hashlib.sha256(repr((VERSION, *facts)).encode()), weights.stat().st_size, 1 << 20
    digest.update(str(size).encode())
    with weights.open("rb") as file:
        for index in range(8):
            file.seek(max(0, (size - part) * index // 7))
            digest.update(file.read(part))
    return digest.hexdigest()


def _is_readable(path: Path, fingerprint: str) -> bool:
    try:
        _read(path, fingerprint)
    except _UNREADABLE:
        return False
    return True


def _read(path: Path, fingerprint: str) -> Tail | None:
    """Read a stored tail. Raises one of _UNREADABLE; ValueError for a file of another model, or a damaged one."""
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        silence, found, checksum = file["silence"], str(file["fingerprint"]), str(file["checksum"])
    if found != fingerprint or checksum != _checksum(silence):
        raise ValueError(f"{path} is of another model, or damaged")
    return Tail(silence) if silence.size else None


def _write(path: Path, fingerprint: str, tail: Tail | None) -> None:
    """Write atomically, because several servers may start at the same time."""
    silence = np.zeros((0, 0), np.float32) if tail is None else tail.silence
    make_directory(path.parent, READABLE)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".silence-", suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, silence=silence, fingerprint=fingerprint, checksum=_checksum(silence))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _checksum(silence: Positions) -> str:
    return hashlib.sha256(np.ascontiguousarray(silence).tobytes()).hexdigest()
