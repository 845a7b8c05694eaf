from __future__ import annotations

import hashlib
import json
import socket
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.unit.engine.test_catalog import a_model
from typeless_grpc.cli import main
from typeless_grpc.cli.commands import app
from typeless_grpc.config import Settings, load
from typeless_grpc.engine.catalog import REQUIRED_FILES
from typeless_grpc.version import VERSION


def typeless(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="typeless")


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TYPELESS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def test_the_version_is_printed():
    assert typeless("--version").output == f"typeless {VERSION}\n"


def test_no_arguments_print_the_help():
    shown = typeless().output
    for command in ("serve", "transcribe", "models", "config"):
        assert command in shown


@pytest.mark.parametrize("words", [[], ["jobs"], ["models"], ["keys"]], ids=lambda words: " ".join(words) or "typeless")
def test_no_summary_of_a_command_is_cut(words: list[str]):
    summaries = typeless(*words, "--help").output.split("Commands:")[1]
    assert "..." not in summaries


@pytest.mark.parametrize("words", [["nonesuch"], ["serve", "--nonesuch"], ["transcribe"], ["serve", "--port", "many"]])
def test_an_invalid_command_line_ends_with_2(words: list[str]):
    assert typeless(*words).exit_code == 2


# ---- config ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--describe"]], ids=["plain", "described"])
def test_config_prints_a_settings_file_that_means_the_same(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TYPELESS_PORT", "7000")
    monkeypatch.setenv("TYPELESS_MODEL_DIRS", 'my calls=/models/"calls"')
    written = tmp_path / "typeless.toml"
    written.write_text(typeless("config", *flags).output, encoding="utf-8")
    before = load().settings.model_dump()
    monkeypatch.delenv("TYPELESS_PORT")
    monkeypatch.delenv("TYPELESS_MODEL_DIRS")
    assert load(file=written).settings.model_dump() == before


def test_config_shows_the_origin_of_each_setting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TYPELESS_PORT", "7000")
    shown = json.loads(typeless("config", "--json").output)
    assert shown["port"] == {"value": 7000, "origin": "environment", "group": "server", "reload": False}
    assert shown["model"] == {"value": "base", "origin": "default", "group": "engine", "reload": False}
    assert set(shown) == set(Settings.model_fields)
    assert "port = 7000  # environment" in typeless("config").output


def test_a_url_without_its_password_is_only_a_comment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TYPELESS_STORAGE_URL", "s3://KEY:SECRET@store.example/calls")
    monkeypatch.setenv("TYPELESS_AUDIO_URI_PREFIXES", "file:///srv/,https://me:SECRET@a.example/")
    text = typeless("config").output
    assert not {"storage_url", "audio_uri_prefixes"} & set(tomllib.loads(text)["jobs"])
    assert '# storage_url: set, shown without its password: "s3://***@store.example/calls"  # environment\n' in text
    assert "SECRET" not in text


def test_config_describes_each_setting():
    text = typeless("config", "--describe").output
    assert all(field.description in text for field in Settings.model_fields.values() if field.description)
    assert tomllib.loads(text)["server"]["port"] == 50051


def test_all_wrong_settings_are_reported_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TYPELESS_PORT", "many")
    monkeypatch.setenv("TYPELESS_MODLE", "base")
    for command in (["config"], ["models", "list"], ["serve"]):
        result = typeless(*command)
        assert result.exit_code == 1
        assert "TYPELESS_PORT" in result.stderr
        assert "TYPELESS_MODLE" in result.stderr
        assert result.stderr.count("\n") == 1


# ---- models ---------------------------------------------------------------------------------------------------


def test_models_lists_every_name_with_its_directory(data_dir: Path):
    here = a_model(data_dir / "models" / "base")
    listed = {row["name"]: row["path"] for row in json.loads(typeless("models", "list", "--json").output)}
    assert listed["base"] == str(here)
    assert listed["large-v3"] is None
    assert "large-v3" in typeless("models", "list").output


def test_pulling_a_downloaded_model_prints_its_directory(data_dir: Path):
    here = a_model(data_dir / "models" / "mine")
    result = typeless("models", "pull", "mine")
    assert (result.exit_code, result.stdout.strip()) == (0, str(here))
    assert "was not calibrated" in result.stderr  # it holds no weights


def test_a_model_of_other_files_than_its_own_is_an_error_until_it_is_approved(data_dir: Path):
    a_model(data_dir / "models" / "base")
    a_model(data_dir / "models" / "mine")
    pulled = typeless("models", "pull", "base")
    assert (pulled.exit_code, "MODEL_ALTERED" in pulled.stderr) == (1, True)
    verified = typeless("models", "verify", "base", "mine", "nonesuch", "--json")
    assert verified.exit_code == 1
    assert [row["good"] for row in json.loads(verified.stdout)] == [False, True, False]
    approved = typeless("models", "approve", "base")
    digest = hashlib.sha256(b"x").hexdigest()
    assert approved.stdout.splitlines() == [f"{digest}  {name}" for name in sorted(REQUIRED_FILES)]
    verified = typeless("models", "verify", "base")
    assert (verified.exit_code, "approved by the operator" in verified.stdout) == (0, True)
    assert typeless("models", "approve", "nonesuch").exit_code == 1


def test_pulling_an_unknown_model_is_an_error_of_one_line():
    result = typeless("models", "pull", "nonesuch")
    assert result.exit_code == 1
    assert "No model is called 'nonesuch'" in result.stderr
    assert "MODEL_NOT_FOUND" in result.stderr


# ---- transcribe -----------------------------------------------------------------------------------------------


def test_a_missing_recording_is_an_error_before_any_call(tmp_path: Path):
    assert typeless("transcribe", str(tmp_path / "missing.wav")).exit_code == 2


def test_an_unknown_task_is_an_error(tmp_path: Path):
    (tmp_path / "a.wav").touch()
    result = typeless("transcribe", "--task", "sing", str(tmp_path / "a.wav"))
    assert result.exit_code == 2
    assert "--task" in result.stderr


def test_without_a_server_the_error_shows_how_to_start_one(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(b"x")
    result = typeless("transcribe", "--server", "127.0.0.1:9", str(tmp_path / "a.wav"))
    assert result.exit_code == 1
    assert "typeless serve" in result.stderr


# ---- what is not installed --------------------------------------------------------------------------------------


def test_the_base_install_prints_what_the_command_line_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    for name in [name for name in sys.modules if name.startswith("typeless_grpc.cli.") and name != main.__name__]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit, match=r"pip install 'typeless-grpc\[cli\]'"):
        main.main()


@pytest.mark.parametrize("command", [["serve"], ["config"], ["models", "list"]])
def test_the_cli_install_prints_what_serving_needs(command: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)
    monkeypatch.delitem(sys.modules, "typeless_grpc.config")
    monkeypatch.delitem(sys.modules, "typeless_grpc.app", raising=False)
    result = typeless(*command)
    assert result.exit_code == 1
    assert "pip install 'typeless-grpc[server]'" in result.stderr


class Interrupting:
    """An importer during which the user presses Ctrl-C."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "typeless_grpc.cli.commands":
            raise KeyboardInterrupt


def test_an_interrupt_during_imports_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delitem(sys.modules, "typeless_grpc.cli.commands")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "typeless: interrupted\n")


def test_a_port_in_use_is_noticed_before_a_model_is_fetched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TYPELESS_MODEL_DOWNLOAD", "false")  # it would fail, because there is no model
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = typeless("serve", "--port", str(other.getsockname()[1]))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is another server running there? Choose another with --port (ADDRESS_IN_USE)" in result.stderr
