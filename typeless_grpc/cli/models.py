"""`typeless models`: what can be named, what is here, and fetching it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from typeless_grpc.cli.failures import command
from typeless_grpc.cli.files import name_of
from typeless_grpc.cli.output import download_bar, failures_as_lines, print_table
from typeless_grpc.cli.settings import load_settings

app = typer.Typer(help="Show and fetch models.", no_args_is_help=True)


@command(app, "list")
def list_models(as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False) -> None:
    """Every model of the catalogue, and where it lies on this machine.

    Example: typeless models list
    """
    with failures_as_lines():
        catalog = _catalog()
        found = {name: catalog.find(name) for name in catalog.names()}
    if as_json:
        rows = [{"name": name, "path": name_of(path) if path else None} for name, path in found.items()]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("model", Column("on this machine", overflow="fold"), box=None)
    for name, path in found.items():
        table.add_row(Text(name), Text(name_of(path) if path else "-"))
    print_table(table)


@command(app, "pull")
def pull(
    name: Annotated[str, typer.Argument(help="A name of the catalogue: base, tiny.en, large-v3, …")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Fetch a model, unless it is here already, and print its directory.

    Example: typeless models pull tiny.en
    """
    with failures_as_lines():
        path = fetch(_catalog(), name)
    typer.echo(json.dumps({"name": name, "path": name_of(path)}) if as_json else path)


def fetch(catalog: Any, name: str) -> str:
    """The model's directory, fetched with a progress bar where it is not here. Raises what `Catalog.get` raises."""
    if found := catalog.find(name):
        return str(found)
    with download_bar(f"Fetching model {name}") as bar:
        return str(
            catalog.get(name, lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total or None))
        )


def _catalog() -> Any:
    from typeless_grpc.app.models import catalog

    return catalog(load_settings().settings)
