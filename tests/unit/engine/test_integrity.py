from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from typeless_grpc.engine.integrity import IntegrityOptions, ModelIntegrity, Origin
from typeless_grpc.errors import EngineFailed, WrongState

CONTENT = {"model.bin": b"weights" * 1000, "config.json": b"{}", "tokenizer.json": b"[]", "vocabulary.txt": b"a"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    found = tmp_path / "mine"
    found.mkdir()
    for name, content in CONTENT.items():
        (found / name).write_bytes(content)
    (found / "README.md").write_text("is not loaded")
    return found


def integrity(tmp_path: Path, known: Mapping[str, str] | None = None, *, is_required: bool = False) -> ModelIntegrity:
    options = IntegrityOptions(tmp_path / "approved.json", tmp_path / "digests.json", is_required)
    return ModelIntegrity(options, lambda name, directory: known or {})


KNOWN = {name: sha256(content) for name, content in CONTENT.items()}


def test_known_approved_and_other_models_can_be_loaded(tmp_path: Path, directory: Path):
    assert integrity(tmp_path, KNOWN).check("mine", directory) is Origin.KNOWN
    assert integrity(tmp_path).check("mine", directory) is Origin.NONE
    assert integrity(tmp_path).approve("mine", directory) == KNOWN
    assert integrity(tmp_path).check("mine", directory) is Origin.APPROVED


def truncated(directory: Path) -> None:
    os.truncate(directory / "model.bin", 10)


def swapped(directory: Path) -> None:
    """Another file of the same size and time, under the same name."""
    model = directory / "model.bin"
    before = model.stat()
    other = directory / "other"
    other.write_bytes(b"WEIGHTS" * 1000)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(model)


def changed_in_place(directory: Path) -> None:
    model = directory / "model.bin"
    before = model.stat()
    with model.open("r+b") as file:
        file.write(b"W")
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))


def missing(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def added(directory: Path) -> None:
    (directory / "preprocessor_config.json").write_text("{}")


@pytest.mark.parametrize("is_kept", [False, True], ids=["read first", "read before"])
@pytest.mark.parametrize("is_approved", [True, False], ids=["approved", "known"])
@pytest.mark.parametrize(
    ("change", "file"),
    [
        (truncated, "model.bin"),
        (swapped, "model.bin"),
        (changed_in_place, "model.bin"),
        (missing, "tokenizer.json"),
        (added, "preprocessor_config.json"),
    ],
)
def test_files_that_differ_are_refused(tmp_path: Path, directory: Path, change, file: str, is_approved, is_kept):
    files = integrity(tmp_path, None if is_approved else KNOWN)
    if is_approved:
        files.approve("mine", directory)
    if is_kept:
        files.check("mine", directory)
    change(directory)
    with pytest.raises(EngineFailed, match=f"Model 'mine' is refused: {file} is ") as caught:
        files.check("mine", directory)
    assert caught.value.reason == "MODEL_ALTERED"
    files.approve("mine", directory)
    assert files.check("mine", directory) is Origin.APPROVED


def test_a_model_that_nobody_vouches_for_is_refused_if_approval_is_required(tmp_path: Path, directory: Path):
    files = integrity(tmp_path, is_required=True)
    with pytest.raises(WrongState, match="typeless models approve mine") as caught:
        files.check("mine", directory)
    assert caught.value.reason == "MODEL_NOT_APPROVED"
    files.approve("mine", directory)
    assert files.check("mine", directory) is Origin.APPROVED
    assert integrity(tmp_path, KNOWN, is_required=True).check("known", directory) is Origin.KNOWN


def test_large_files_of_the_hub_are_compared_with_their_names(tmp_path: Path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, content in CONTENT.items():
        blob = blobs / (sha256(content) if name == "model.bin" else hashlib.sha1(content).hexdigest())
        blob.write_bytes(content)
        (snapshot / name).symlink_to(blob)
    assert integrity(tmp_path).check("tiny", snapshot) is Origin.HUB
    os.truncate(blobs / sha256(CONTENT["model.bin"]), 10)
    with pytest.raises(EngineFailed, match=r"model\.bin is not the file"):
        integrity(tmp_path).check("tiny", snapshot)


def test_files_are_read_once_as_long_as_they_do_not_change(tmp_path: Path, directory: Path):
    files = integrity(tmp_path, KNOWN)
    files.check("mine", directory)
    kept = json.loads((tmp_path / "digests.json").read_text())
    assert {Path(path).name: entry[-1] for path, entry in kept.items()} == KNOWN
    for entry in kept.values():
        entry[-1] = "0" * 64  # what is kept decides, so this shows that it is used
    (tmp_path / "digests.json").write_text(json.dumps(kept))
    with pytest.raises(EngineFailed):
        files.check("mine", directory)
    assert files.check("mine", directory, reads_all=True) is Origin.KNOWN
    assert files.check("mine", directory) is Origin.KNOWN


@pytest.mark.parametrize("content", [b"", b"[]", b'{"mine": 1}', b'{"mine": {"sha256": {"model.bin": "x"}}}', b"\xff"])
def test_damaged_approvals_refuse_every_model_and_damaged_digests_none(tmp_path: Path, directory: Path, content: bytes):
    (tmp_path / "digests.json").write_bytes(content)
    assert integrity(tmp_path, KNOWN).check("mine", directory) is Origin.KNOWN
    (tmp_path / "approved.json").write_bytes(content)
    with pytest.raises(EngineFailed, match="approved models") as caught:
        integrity(tmp_path, KNOWN).check("mine", directory)
    assert caught.value.reason == "MODEL_LOAD_FAILED"


def test_a_deleted_directory_is_an_error_with_a_reason(tmp_path: Path):
    with pytest.raises(EngineFailed, match="cannot be read") as caught:
        integrity(tmp_path).check("mine", tmp_path / "deleted")
    assert caught.value.reason == "MODEL_LOAD_FAILED"
