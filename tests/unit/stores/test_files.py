"""Files of any storage: whole or not there at all."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest

from typeless_grpc.errors import InvalidInput, SourceUnavailable
from typeless_grpc.stores.files import Files


@pytest.fixture(params=["local", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return Files(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def test_written_data_can_be_read(files: Files):
    files.write("a/one", b"1")
    files.write("a/two", io.BytesIO(b"22"))
    assert files.read(["a/two", "a/one"]) == [b"22", b"1"]
    assert files.read(["a/one"]) == [b"1"]
    assert files.read([]) == []
    with files.open("a/two") as file:
        assert file.seek(1) == 1
        assert file.read() == b"2"
    assert sorted(name for name, _ in files.names("a")) == ["one", "two"]


def test_a_tree_is_deleted_as_a_whole(files: Files):
    files.write("a/b/one", b"1")
    files.write("c/two", b"2")
    files.delete_tree("a")
    files.delete_tree("a")
    assert files.names("a") == []
    assert files.read(["c/two"]) == [b"2"]


def test_a_missing_file_is_not_found(files: Files):
    with pytest.raises(FileNotFoundError):
        files.open("none")
    with pytest.raises(FileNotFoundError):
        files.read(["none"])


class BreaksHalfway(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise OSError(28, "No space left on device")
        return super().read(3)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path):
    files = Files(str(tmp_path))
    with pytest.raises(SourceUnavailable) as caught:
        files.write("a/one", BreaksHalfway(b"123456"))
    assert caught.value.reason == "STORAGE_FULL"
    assert caught.value.retryable
    assert os.listdir(tmp_path / "a") == []


def test_an_unknown_storage_scheme_is_refused():
    with pytest.raises(InvalidInput) as caught:
        Files("nosuchthing://bucket/")
    assert caught.value.reason == "CONFIG_INVALID"


def test_the_free_share_of_a_disk_is_known_before_the_first_file(tmp_path: Path):
    disk = shutil.disk_usage(tmp_path)
    free = Files(str(tmp_path / "not" / "there")).free_ratio()
    assert free == pytest.approx(disk.free / disk.total, abs=0.05)
    assert Files(f"memory://{tmp_path.name}").free_ratio() is None


def test_a_directory_that_is_deleted_during_a_write_makes_the_storage_unavailable(tmp_path: Path):
    files = Files(str(tmp_path))

    class Deleting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            shutil.rmtree(tmp_path / "job", ignore_errors=True)
            return super().read(size)

    with pytest.raises(SourceUnavailable):
        files.write("job/chunk", Deleting(b"1"))
    files.write("job/chunk", b"1")
    assert files.read(["job/chunk"]) == [b"1"]
