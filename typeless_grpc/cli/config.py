"""`typeless config`: the settings in force, and where each comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from typeless_grpc.cli.output import failures_as_lines


def config(
    file: Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of TOML.")] = False,
    describe: Annotated[bool, typer.Option("--describe", help="With what each setting means.")] = False,
    as_reference: Annotated[bool, typer.Option("--reference", help="All settings there are, as Markdown.")] = False,
) -> None:
    """Print the settings in force; the output is a settings file.

    Example: typeless config > typeless.toml
    """
    with failures_as_lines():
        from typeless_grpc.cli.reference import reference
        from typeless_grpc.config import Settings, load

        if as_reference:
            typer.echo(reference(), nl=False)
            return
        loaded = load(file=file)
    values = loaded.settings.model_dump(mode="json")
    if as_json:
        typer.echo(
            json.dumps({name: {"value": v, "origin": loaded.origins[name]} for name, v in values.items()}, indent=2)
        )
        return
    for name, value in values.items():
        if describe:
            typer.echo(f"# {Settings.model_fields[name].description}")
        typer.echo(f"{name} = {_toml(value)}  # {loaded.origins[name]}")


def _toml(value: object) -> str:
    """JSON's scalars and strings are TOML's; a table is written inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
