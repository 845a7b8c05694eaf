from __future__ import annotations

from pathlib import Path

import pytest
import typer

from typeless_grpc.cli.batch import groups
from typeless_grpc.cli.files import recordings, stems


def test_a_file_that_is_named_is_taken_whatever_it_is_called(tmp_path: Path):
    (tmp_path / "speech.data").touch()
    assert recordings([str(tmp_path / "speech.data")]) == [tmp_path / "speech.data"]


def test_a_directory_gives_its_recordings_in_order_and_each_once(tmp_path: Path):
    for name in ("b.wav", "a.MP3", "notes.txt"):
        (tmp_path / name).touch()
    assert recordings([str(tmp_path), str(tmp_path / "b.wav")]) == [tmp_path / "a.MP3", tmp_path / "b.wav"]


@pytest.mark.parametrize("pattern", ["missing.wav", "*.wav", "."], ids=["file", "pattern", "empty directory"])
def test_what_names_nothing_is_an_error(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(typer.BadParameter):
        recordings([pattern])


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.wav", "b.mp3"], ["a", "b"]),
        (["a.wav", "A.mp3"], ["a.wav", "A.mp3"]),
        (["x/a.wav", "y/a.wav", "z/a.wav"], ["a.wav", "a.wav-2", "a.wav-3"]),
    ],
)
def test_no_two_outputs_have_one_name(files: list[str], names: list[str]):
    assert stems([Path(file) for file in files]) == names


def test_groups_are_bounded_in_number_and_bytes(tmp_path: Path):
    files = []
    for i, size in enumerate([10, 10, 10, 90, 5, 5]):
        files.append(tmp_path / str(i))
        files[-1].write_bytes(bytes(size))
    assert [[file.name for file in group] for group in groups(files, 2, 50)] == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert [len(group) for group in groups(files, 4, 0)] == [4, 2]
