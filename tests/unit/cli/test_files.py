from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
import typer

from typeless_grpc.cli.batch import groups
from typeless_grpc.cli.files import STANDARD_INPUT, is_pipe, name_of, recordings, stems, write_whole


def test_a_named_file_may_have_any_name(tmp_path: Path):
    (tmp_path / "speech.data").touch()
    assert recordings([str(tmp_path / "speech.data")]) == [tmp_path / "speech.data"]


def test_a_directory_contains_its_recordings_in_order_and_each_once(tmp_path: Path):
    for name in ("b.wav", "a.MP3", "notes.txt"):
        (tmp_path / name).touch()
    assert recordings([str(tmp_path), str(tmp_path / "b.wav")]) == [tmp_path / "a.MP3", tmp_path / "b.wav"]


@pytest.mark.parametrize("pattern", ["missing.wav", "*.wav", "."], ids=["file", "pattern", "empty directory"])
def test_a_name_without_any_file_is_an_error(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


def test_a_non_blocking_standard_input_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch):
    reading, writing = os.pipe()
    os.close(writing)
    os.set_blocking(reading, False)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert recordings(["-"]) == [STANDARD_INPUT]
        assert os.get_blocking(reading)


def test_a_pipe_in_a_group_is_alone(tmp_path: Path):
    files = [tmp_path / name for name in ("a", "b", "c", "d")]
    for file in (files[0], files[2], files[3]):
        file.write_bytes(b"x")
    os.mkfifo(files[1])
    for max_bytes in (50, 0):
        found = [[file.name for file in group] for group in groups(files, 10, max_bytes)]
        assert found == [["a"], ["b"], ["c", "d"]]
    assert [is_pipe(file) for file in files] == [False, True, False, False]


def test_a_pipe_in_a_directory_is_none_of_its_recordings(tmp_path: Path):
    (tmp_path / "a.wav").touch()
    os.mkfifo(tmp_path / "b.wav")
    assert recordings([str(tmp_path)]) == [tmp_path / "a.wav"]
    assert recordings([str(tmp_path / "*.wav")]) == [tmp_path / "a.wav"]


def test_a_name_that_looks_like_a_pattern_is_a_name_where_there_is_such_a_file(tmp_path: Path):
    for name in ("call[1].wav", "call1.wav"):
        (tmp_path / name).touch()
    assert recordings([str(tmp_path / "call[1].wav")]) == [tmp_path / "call[1].wav"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"call.wav", "call.wav"),
        ("Gespräch 電話.wav".encode(), "Gespräch 電話.wav"),
        (b"caf\xe9.wav", "caf\\xe9.wav"),
        (b"a\nb\t\x1b[2J", "a\\nb\\t\\x1b[2J"),
    ],
)
def test_any_name_can_be_printed_on_a_line(name: bytes, text: str):
    assert name_of(Path(os.fsdecode(name))) == text


# ---- files that are written ------------------------------------------------------------------------------------


def test_an_overwritten_file_keeps_its_mode_and_its_link(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    kept, link = tmp_path / "elsewhere" / "kept.txt", tmp_path / "a.txt"
    kept.write_text("before")
    kept.chmod(0o600)
    link.symlink_to(kept)
    write_whole(link, "after")
    assert (kept.read_text(), kept.stat().st_mode & 0o777, link.is_symlink()) == ("after", 0o600, True)


def test_a_file_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a.txt"
    file.write_text("before")

    def full(part: Path, text: str, encoding: str) -> None:
        part.write_bytes(text.encode(encoding)[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_whole(file, "after")
    assert caught.value.filename == str(file)
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_device_is_written_without_replacing_it():
    write_whole(Path(os.devnull), "text")
    assert not Path(os.devnull).is_file()
