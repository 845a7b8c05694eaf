"""Checks the files of a model before they are read, so that a truncated or exchanged one is refused.

The digests of a file come from the operator's approval; else from this package, for a model of its catalogue; else from
the cache of the Hugging Face hub, where the name of a large file is its SHA-256. To read gigabytes takes seconds, so a
digest is kept with the file's inode, size and times, and computed again when one of them has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from typeless_grpc.disk import READABLE, make_directory
from typeless_grpc.errors import EngineFailed, WrongState

# What faster-whisper and CTranslate2 read of a model's directory.
_LOADED = re.compile(r"model\.bin|config\.json|tokenizer\.json|preprocessor_config\.json|vocabulary\.\w+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_APPROVALS_BYTES = 16 * 1024**2


class Origin(Enum):
    """Where the digests of a model's files come from."""

    APPROVED = "approved by the operator"
    KNOWN = "known to typeless"
    HUB = "named by the hub"
    NONE = "not approved"


@dataclass(frozen=True)
class IntegrityOptions:
    """approvals: the operator's file. digests: where digests are kept.

    is_required: whether a model must be approved or known.
    """

    approvals: Path
    digests: Path
    is_required: bool = False


class ModelIntegrity:
    """The check of models' files. known: the digests that this package has for the model in a directory."""

    def __init__(self, options: IntegrityOptions, known: Callable[[str, Path], Mapping[str, str]]) -> None:
        self._options, self._known = options, known

    def check(self, name: str, directory: Path, *, reads_all: bool = False) -> Origin:
        """Compare the files of a model with their digests; return where these come from.

        reads_all: read all files again, whatever is kept. Raises EngineFailed (MODEL_ALTERED) if they differ,
        WrongState (MODEL_NOT_APPROVED) if nobody vouches for them and that is required, EngineFailed
        (MODEL_LOAD_FAILED) if they or the approvals cannot be read.
        """
        try:
            return self._check(name, directory, reads_all=reads_all)
        except OSError as error:
            why = f"Model '{name}' cannot be read: {error.strerror}."
            raise EngineFailed(why, reason="MODEL_LOAD_FAILED") from error

    def _check(self, name: str, directory: Path, *, reads_all: bool) -> Origin:
        """Compare a model's files with the expected digests. Raises EngineFailed, or WrongState if it is unapproved."""
        expected, origin = self._expected(name, directory)
        if self._options.is_required and origin in (Origin.HUB, Origin.NONE):
            raise WrongState(
                f"Model '{name}' is not approved. Its operator approves it with `typeless models approve {name}`.",
                reason="MODEL_NOT_APPROVED",
            )
        if not expected:
            return origin
        present = loaded_files(directory)
        names = set(expected) if origin is Origin.HUB else set(expected) | set(present)
        digests = self._digests({one: path for one, path in present.items() if one in names}, reads_all=reads_all)
        for file in sorted(names):
            if expected.get(file) != digests.get(file):
                why = "is missing" if file not in present else "is not the file that was approved"
                raise EngineFailed(
                    f"Model '{name}' is refused: {file} {why}. Fetch the model again, or approve what is there with "
                    f"`typeless models approve {name}`.",
                    reason="MODEL_ALTERED",
                )
        return origin

    def approve(self, name: str, directory: Path) -> Mapping[str, str]:
        """Approve the files of a model as they are now; return the SHA-256 of each. Raises EngineFailed and OSError."""
        approvals = self._approvals()
        found = self._digests(loaded_files(directory), reads_all=True)
        approvals[name] = {"approved_at": datetime.now(UTC).isoformat(timespec="seconds"), "sha256": found}
        make_directory(self._options.approvals.parent, READABLE)
        _write(self._options.approvals, approvals)
        return found

    def _expected(self, name: str, directory: Path) -> tuple[Mapping[str, str], Origin]:
        if approval := self._approvals().get(name):
            return approval["sha256"], Origin.APPROVED
        if known := self._known(name, directory):
            return known, Origin.KNOWN
        named = _named_by_the_hub(directory)
        return named, Origin.HUB if named else Origin.NONE

    def _approvals(self) -> dict[str, dict[str, Any]]:
        """Return what is approved: name of a model to its approval. Raises EngineFailed."""
        path = self._options.approvals
        try:
            with path.open("rb") as file:
                found = json.loads(file.read(_MAX_APPROVALS_BYTES))
            for approval in found.values():
                if not all(_SHA256.fullmatch(digest) for digest in approval["sha256"].values()):
                    raise ValueError("a digest is no SHA-256")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            why = "The file of approved models cannot be read, so no model can be checked."
            raise EngineFailed(why, reason="MODEL_LOAD_FAILED") from error
        approvals: dict[str, dict[str, Any]] = found
        return approvals

    def _digests(self, files: Mapping[str, Path], *, reads_all: bool) -> dict[str, str]:
        """Return the SHA-256 of each file, by its name."""
        kept = {} if reads_all else _read(self._options.digests)
        found, entries = {}, {}
        for name, path in files.items():
            key, facts = str(path), _facts(path)
            entry = kept.get(key)
            if isinstance(entry, list) and entry[:-1] == facts:
                found[name] = str(entry[-1])
            else:
                found[name] = _digest(path)
            entries[key] = [*facts, found[name]]
        if any(kept.get(key) != entry for key, entry in entries.items()):
            with suppress(OSError):  # a data directory that cannot be written: files are read at each load
                others = {key: entry for key, entry in _read(self._options.digests).items() if Path(key).exists()}
                _write(self._options.digests, others | entries)
        return found


def loaded_files(directory: Path) -> dict[str, Path]:
    """Return the files of a directory that loading a model reads, by their names."""
    return {path.name: path for path in sorted(directory.iterdir()) if _LOADED.fullmatch(path.name) and path.is_file()}


def _named_by_the_hub(directory: Path) -> dict[str, str]:
    """Return the digests in the names of files in the hub's cache: those of large files, which are links to them."""
    targets = {name: path.resolve() for name, path in loaded_files(directory).items() if path.is_symlink()}
    return {
        name: target.name
        for name, target in targets.items()
        if target.parent.name == "blobs" and _SHA256.fullmatch(target.name)
    }


def _facts(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write atomically, because several processes may do so at the same time."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
