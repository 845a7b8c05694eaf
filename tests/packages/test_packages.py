"""The wheel that a release has, installed as its users install it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from tests.harness import REPOSITORY
from typeless_grpc.version import VERSION

pytestmark = [pytest.mark.packages, pytest.mark.timeout(600)]
UV = Path(sys.executable).with_name("uv")


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make dist` builds, from a copy of what git has, so that no file of the working tree alone gets in."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    copy = tmp_path_factory.mktemp("checkout")
    files = run("git", "ls-files", "-z").split("\0")
    for file in filter(None, files):
        if (REPOSITORY / file).is_file():
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            (copy / file).write_bytes((REPOSITORY / file).read_bytes())
    (copy / ".venv").symlink_to(REPOSITORY / ".venv")  # for its uv
    run("make", "-C", copy, "dist")
    return copy / "dist"


def environment(directory: Path, wheel: Path, extra: str = "") -> Path:
    """A clean environment with the wheel and nothing else; its bin directory."""
    run(UV, "venv", "-q", "--python", sys.executable, directory)
    run(UV, "pip", "install", "-q", "--python", directory / "bin" / "python", f"{wheel}{extra}")
    return directory / "bin"


def only(dist: Path, pattern: str) -> Path:
    (found,) = dist.glob(pattern)
    return found


def test_one_version_is_everywhere(dist: Path):
    assert {path.name for path in dist.iterdir()} == {
        f"typeless_grpc-{VERSION}-py3-none-any.whl",
        f"typeless_grpc-{VERSION}.tar.gz",
        f"typeless_grpc-{VERSION}.cdx.json",
        "SHA256SUMS",
    }
    sbom = json.loads(only(dist, "*.cdx.json").read_text("utf-8"))
    assert (sbom["bomFormat"], sbom["metadata"]["component"]["version"]) == ("CycloneDX", VERSION)
    names = {component["name"] for component in sbom["components"]}
    assert {"grpcio", "faster-whisper", "ctranslate2", "dbos"} <= names


def test_the_changelog_has_this_version_or_unreleased_changes():
    headings = [
        line for line in (REPOSITORY / "CHANGELOG.md").read_text("utf-8").splitlines() if line.startswith("## ")
    ]
    assert headings[0] == "## Unreleased" or headings[0].startswith(f"## {VERSION}")


def test_checksums_are_of_the_files(dist: Path):
    sums = dict(line.split("  ")[::-1] for line in (dist / "SHA256SUMS").read_text("utf-8").splitlines())
    assert sums == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dist.iterdir() if path.name != "SHA256SUMS"
    }


def test_the_packages_hold_the_product_and_no_tests(dist: Path):
    wheel = zipfile.ZipFile(only(dist, "*.whl")).namelist()
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        sdist = archive.getnames()
    tracked = {file for file in run("git", "ls-files", "typeless_grpc").split() if (REPOSITORY / file).is_file()}
    assert {name for name in wheel if name.startswith("typeless_grpc/")} == tracked
    assert tracked <= {name.partition("/")[2] for name in sdist}
    assert any("/protos/typeless/v1/" in name for name in sdist)
    assert not any("/tests/" in name or "/shared/" in name for name in (*wheel, *sdist))


def test_the_base_package_is_the_client_with_three_dependencies(dist: Path, tmp_path: Path):
    bin_ = environment(tmp_path / "base", only(dist, "*.whl"))
    listed = json.loads(run(UV, "pip", "list", "--python", bin_ / "python", "--format", "json"))
    names = {one["name"] for one in listed} - {"typing-extensions"}  # grpcio's own
    assert names == {"typeless-grpc", "grpcio", "protobuf", "googleapis-common-protos"}
    run(bin_ / "python", "-W", "error", "-c", "from typeless_grpc.client import AsyncClient, Client, Options")


def test_the_command_line_without_the_server_prints_what_to_install(dist: Path, tmp_path: Path):
    bin_ = environment(tmp_path / "cli", only(dist, "*.whl"), "[cli]")
    assert "transcribe" in run(bin_ / "typeless", "--help")
    done = subprocess.run([bin_ / "typeless", "serve"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "typeless-grpc[server]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.model
def test_the_installed_server_transcribes_within_a_minute_of_the_install(dist: Path, tmp_path: Path):
    model = run(Path(sys.executable).with_name("typeless"), "models", "pull", "tiny.en").strip()
    started_s = time.monotonic()
    bin_ = environment(tmp_path / "server", only(dist, "*.whl"), "[server]")
    text = run(
        *(bin_ / "typeless", "transcribe", "--local", "--model", "tiny.en", REPOSITORY / "tests/audio/en_short.flac"),
        TYPELESS_DATA_DIR=str(tmp_path / "data"),
        TYPELESS_MODEL_DIRS=f"tiny.en={model}",
    )
    assert text.strip() == "Please close the window"
    assert time.monotonic() - started_s < 60
