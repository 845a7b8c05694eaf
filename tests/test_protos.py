"""The contract itself: every line of it says something, nothing outside is needed, and it only grows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import REPOSITORY

PROTOS = REPOSITORY / "protos"
FILES = sorted(PROTOS.rglob("*.proto"))


def buf(*arguments: str | Path, cwd: Path = REPOSITORY) -> tuple[int, str]:
    tool = Path(sys.executable).parent / "buf"
    done = subprocess.run([tool, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def test_every_part_of_the_contract_has_a_comment():
    assert buf("lint", cwd=PROTOS) == (0, "")


@pytest.mark.parametrize(
    ("planted", "rule"),
    [
        ("message Planted {}", "planted.proto:4:1:Message"),
        ("// M.\nmessage Planted {\n  string name = 1;\n}", "planted.proto:6:3:Field"),
        ("// E.\nenum Planted {\n  PLANTED_UNSPECIFIED = 0;\n}", "planted.proto:6:3:Enum value"),
        (
            "// S.\nservice PlantedService {\n  rpc Do(A) returns (B);\n}\n// A.\nmessage A {}\n// B.\nmessage B {}",
            "RPC",
        ),
    ],
    ids=["message", "field", "enum value", "rpc"],
)
def test_a_part_without_a_comment_is_found(planted: str, rule: str, tmp_path: Path):
    shutil.copy(PROTOS / "buf.yaml", tmp_path)
    folder = tmp_path / "typeless" / "v1"
    folder.mkdir(parents=True)
    (folder / "planted.proto").write_text(f'syntax = "proto3";\n\npackage typeless.v1;\n{planted}\n')
    code, found = buf("lint", cwd=tmp_path)
    assert code != 0
    assert rule in found


def test_any_protoc_compiles_the_contract_with_no_other_checkout():
    imported = {name for path in FILES for name in re.findall(r'^import "([^"]+)"', path.read_text("utf-8"), re.M)}
    ours = {str(path.relative_to(PROTOS)) for path in FILES}
    assert all(name.startswith("google/protobuf/") for name in imported - ours)


def test_the_contract_only_grew():
    agreed = REPOSITORY.parent / "shared" / "contract"
    if not agreed.is_dir():
        pytest.skip(f"no agreed contract in {agreed}")
    assert buf("breaking", PROTOS, "--against", agreed) == (0, "")


def test_a_contract_that_shrank_is_found(tmp_path: Path):
    shutil.copytree(PROTOS, tmp_path / "protos")
    path = tmp_path / "protos" / "typeless" / "v1" / "server.proto"
    text = path.read_text("utf-8")
    assert "string version = 1;" in text
    path.write_text(text.replace("string version = 1;", "int64 version = 1;"), encoding="utf-8")
    code, found = buf("breaking", tmp_path / "protos", "--against", PROTOS)
    assert code != 0
    assert "version" in found
