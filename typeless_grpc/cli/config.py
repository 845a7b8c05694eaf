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
        from typeless_grpc.config import Settings, is_secret, load, public

        if as_reference:
            typer.echo(reference(), nl=False)
            return
        loaded = load(file=file)
    values = public(loaded.settings)
    secrets = {name for name in values if is_secret(getattr(loaded.settings, name))}
    whole = loaded.settings.model_dump(mode="json")
    if as_json:
        rows = {name: {"value": value, "origin": loaded.origins[name]} for name, value in values.items()}
        typer.echo(json.dumps(rows, indent=2))
        return
    for name, value in values.items():
        if describe:
            typer.echo(f"# {Settings.model_fields[name].description}")
        if value is None:
            # TOML has no word for nothing, and a mask in the place of a secret would be taken for one.
            typer.echo(f"# {name}: {'set, not shown' if name in secrets else 'not set'}  # {loaded.origins[name]}")
        elif value != whole[name]:
            typer.echo(f"# {name}: set, not shown as a whole: {_toml(value)}  # {loaded.origins[name]}")
        else:
            typer.echo(f"{name} = {_toml(value)}  # {loaded.origins[name]}")


def _toml(value: object) -> str:
    """JSON's scalars and strings are TOML's; a table is written inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
