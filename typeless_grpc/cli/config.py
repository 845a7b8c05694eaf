"""`typeless config`: the settings in force, and where each comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from typeless_grpc.cli.output import failures_as_lines
from typeless_grpc.cli.settings import load_settings

if TYPE_CHECKING:
    from typeless_grpc.config import Loaded


def config(
    file: Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of TOML.")] = False,
    describe: Annotated[bool, typer.Option("--describe", help="Add the description of each setting.")] = False,
    as_reference: Annotated[bool, typer.Option("--reference", help="Print all settings as Markdown.")] = False,
) -> None:
    """Print the settings in force; the output is a settings file.

    Example: typeless config > typeless.toml
    """
    with failures_as_lines():
        from typeless_grpc.cli.reference import reference
        from typeless_grpc.config import group_of, is_reloadable, public

        if as_reference:
            typer.echo(reference(), nl=False)
            return
        loaded = load_settings(file=file)
        if not as_json:
            typer.echo("\n".join(_lines(loaded, describe=describe)))
            return
        rows = {
            name: {
                "value": value,
                "origin": loaded.origins[name],
                "group": group_of(name),
                "reload": is_reloadable(name),
            }
            for name, value in public(loaded.settings).items()
        }
    typer.echo(json.dumps(rows, indent=2))


def _lines(loaded: Loaded, *, describe: bool) -> Iterator[str]:
    """Yield the lines of a settings file with a table for each group."""
    from typeless_grpc.config import GROUPS, is_secret, public

    shown, whole = public(loaded.settings), loaded.settings.model_dump(mode="json")
    for group, settings in GROUPS.items():
        if group != next(iter(GROUPS)):
            yield ""
        if describe:
            yield f"# {settings.__doc__}"
        yield f"[{group}]"
        for name, field in settings.model_fields.items():
            value, origin = shown[name], loaded.origins[name]
            if describe:
                yield f"# {field.description}"
            if value is None:
                # TOML has no null, and a mask would be read as the secret.
                is_set = is_secret(getattr(loaded.settings, name))
                yield f"# {name}: {'set, not shown' if is_set else 'not set'}  # {origin}"
            elif value != whole[name]:
                yield f"# {name}: set, shown without its password: {_toml(value)}  # {origin}"
            else:
                yield f"{name} = {_toml(value)}  # {origin}"


def _toml(value: object) -> str:
    """Format a value as TOML, in which JSON's scalars and strings are the same; a table becomes an inline table."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
