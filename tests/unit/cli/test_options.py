from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner, Result

from typeless_grpc.cli.commands import app
from typeless_grpc.cli.connection import Connection
from typeless_grpc.cli.failures import command
from typeless_grpc.cli.flags import Channels, Chunking, Decoding, Task, Tidy, WholeDecoding
from typeless_grpc.cli.target import Target
from typeless_grpc.client import Options, Tls


@dataclass(frozen=True)
class Brew:
    minutes: Annotated[int, typer.Option("--minutes", min=1, help="How long it draws.")] = 3
    herbs: Annotated[list[str] | None, typer.Option("--herb")] = None


@dataclass(frozen=True)
class Tea(Brew):
    origin: Annotated[str, typer.Option("--origin", envvar="TEA_ORIGIN")] = "Assam"

    def __post_init__(self) -> None:
        if self.origin == "Mars":
            raise typer.BadParameter("grows nothing", param_hint="--origin")


def brewed(*arguments: str, **environment: str) -> Result:
    shop = typer.Typer()

    @command(shop, "brew")
    def brew(cup: str, tea: Tea, sugar: Annotated[bool, typer.Option("--sugar")] = False) -> None:
        """Print what the command was given."""
        typer.echo(json.dumps({"cup": cup, "sugar": sugar, "tea": asdict(tea), "kind": type(tea).__name__}))

    return CliRunner().invoke(shop, list(arguments), env=environment)


@pytest.mark.parametrize(
    ("arguments", "environment", "tea", "sugar"),
    [
        ([], {}, Tea(), False),
        (["--sugar", "--minutes", "5"], {}, Tea(minutes=5), True),
        (["--herb", "mint", "--herb", "sage"], {}, Tea(herbs=["mint", "sage"]), False),
        ([], {"TEA_ORIGIN": "Uji"}, Tea(origin="Uji"), False),
        (["--origin", "Darjeeling"], {"TEA_ORIGIN": "Uji"}, Tea(origin="Darjeeling"), False),
        (["-v"], {}, Tea(), False),
    ],
    ids=["defaults", "beside an option of its own", "repeated", "variable", "flag before variable", "verbose"],
)
def test_a_command_gets_its_group_of_options(arguments: list[str], environment: dict[str, str], tea: Tea, sugar: bool):
    result = brewed("mug", *arguments, **environment)
    assert result.exit_code == 0, result.output
    assert json.loads(result.output) == {"cup": "mug", "sugar": sugar, "tea": asdict(tea), "kind": "Tea"}


@pytest.mark.parametrize(
    "arguments",
    [["--tea", "x"], ["--minutes", "0"], ["--minutes", "long"], ["--origin", "Mars"]],
    ids=["the group itself", "out of range", "no number", "what the group refuses"],
)
def test_an_unknown_or_invalid_option_ends_with_2(arguments: list[str]):
    assert brewed("mug", *arguments).exit_code == 2


def test_help_has_the_options_of_a_group_where_the_group_stands():
    shown = brewed("--help").output
    order = [shown.index(name) for name in ("--minutes", "--herb", "--origin", "--sugar", "--verbose")]
    assert order == sorted(order)
    assert "How long it draws." in shown
    assert "env var: TEA_ORIGIN" in shown


def test_two_options_of_one_name_are_an_error():
    def brew(tea: Tea, *, minutes: int = 4) -> None:
        """Would hide the group's option."""

    with pytest.raises(ValueError, match="duplicate parameter name: 'minutes'"):
        command(typer.Typer(), "brew")(brew)


# ---- the groups there are -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("connection", "tls"),
    [
        (Connection(), None),
        (Connection(use_tls=True), Tls()),
        (Connection(tls_ca=Path("ca")), Tls(ca=Path("ca"))),
        (Connection(client_cert=Path("c"), client_key=Path("k")), Tls(cert=Path("c"), key=Path("k"))),
    ],
    ids=["plain text", "requested", "by its authority", "by its certificate"],
)
def test_a_certificate_implies_tls(connection: Connection, tls: Tls | None):
    assert connection.tls == tls


@pytest.mark.parametrize("flag", ["--client-cert", "--client-key"])
@pytest.mark.parametrize("words", ["transcribe", "stream", "batch", "bench", "jobs submit", "jobs list", "keys list"])
def test_a_certificate_and_its_key_go_together(words: str, flag: str):
    files = [] if words.endswith("list") else [__file__]
    result = CliRunner().invoke(app, [*words.split(), flag, __file__, *files])
    assert result.exit_code == 2
    assert "go together" in result.stderr


@pytest.mark.parametrize("words", ["transcribe", "stream", "batch", "bench"])
@pytest.mark.parametrize(
    "flags",
    [["-s", "host:1"], ["--api-key", "k"], ["--tls"], ["--tls-ca", __file__]],
    ids=lambda flags: flags[0],
)
def test_local_refuses_connection_options(words: str, flags: list[str]):
    result = CliRunner().invoke(app, [words, "--local", *flags, __file__])
    assert result.exit_code == 2
    assert "--local" in result.stderr


def test_local_ignores_the_variables_of_a_connection():
    shop = typer.Typer()

    @command(shop, "ask")
    def ask(target: Target) -> None:
        """Print the arguments."""
        typer.echo(f"{target.server} {target.local}")

    environment = {"TYPELESS_SERVER": "host:1", "TYPELESS_API_KEY": "k", "TYPELESS_TLS": "1"}
    result = CliRunner().invoke(shop, ["--local", "--model", "m"], env=environment)
    assert (result.exit_code, result.output) == (0, "host:1 True\n")


def test_calls_name_the_model_unless_local_starts_with_it():
    assert Target(model="tiny").requested_model == "tiny"
    assert Target(model="./models/mine", local=True).requested_model == ""


@pytest.mark.parametrize("decoding", [Decoding(), WholeDecoding()], ids=["spoken", "whole"])
def test_no_flags_request_no_options(decoding: Decoding):
    assert decoding.to_options("", words=False).message() == Options().message()


def test_every_decoding_flag_changes_the_request():
    given = {
        "language": "de",
        "allow_language": ["de"],
        "task": Task.TRANSLATE,
        "prompt": "P",
        "hotwords": ["a,b"],
        "beam_size": 3,
        "temperature": [0.5],
        "tidy": Tidy.BASIC,
        "replace": ["a=b"],
        "mask_profanity": True,
        "chunking": Chunking.VAD,
        "channels": Channels.SEPARATE,
    }
    assert set(given) == {field.name for field in fields(WholeDecoding)}
    options = [WholeDecoding(**{name: value}).to_options("", words=False) for name, value in given.items()]
    assert len({one.message().SerializeToString() for one in [Options(), *options]}) == 1 + len(given)


@pytest.mark.parametrize("flag", ["--chunking", "--format"])
def test_a_stream_takes_no_flags_of_whole_recordings(flag: str):
    result = CliRunner().invoke(app, ["stream", flag, "vad", __file__])
    assert result.exit_code == 2
    assert f"No such option: {flag}" in result.stderr
