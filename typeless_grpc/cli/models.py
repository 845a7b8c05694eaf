"""`typeless models`: lists, downloads, verifies and approves models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from typeless_grpc.cli.failures import command
from typeless_grpc.cli.files import name_of
from typeless_grpc.cli.output import EXIT_FAILED, download_bar, failures_as_lines, print_table, working
from typeless_grpc.cli.settings import load_settings
from typeless_grpc.cli.signals import say

app = typer.Typer(help="List, download and verify models.", no_args_is_help=True)


@command(app, "list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List all models, and their directories on this machine.

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
    name: Annotated[str, typer.Argument(help="Name of a model: base, tiny.en, large-v3, …")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Download a model if needed, and print its directory.

    The model is also calibrated for this machine.

    Example: typeless models pull tiny.en
    """
    with failures_as_lines():
        from typeless_grpc.app.models import catalog, integrity

        settings = load_settings().settings
        known = catalog(settings)
        path = fetch(known, name)
        integrity(settings, known).check(name, Path(path))
        _calibrate(settings, name, Path(path))
    typer.echo(json.dumps({"name": name, "path": name_of(path)}) if as_json else path)


@command(app, "verify")
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Names of models; all on this machine if none.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare all files of models with what is known or approved.

    Exit code 1 if a file differs.

    Example: typeless models verify
    """
    with failures_as_lines():
        from typeless_grpc.app.models import integrity
        from typeless_grpc.errors import TypelessError

        settings = load_settings().settings
        catalog = _catalog()
        files = integrity(settings, catalog)
        chosen = names or [name for name in catalog.names() if catalog.find(name)]
        rows = []
        for name in chosen:
            try:
                result, is_good = files.check(name, _installed(catalog, name), reads_all=True).value, True
            except TypelessError as error:
                result, is_good = error.message, False
            rows.append({"name": name, "result": result, "good": is_good})
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        table = Table("model", Column("files", overflow="fold"), box=None)
        for row in rows:
            table.add_row(Text(str(row["name"])), Text(str(row["result"])))
        print_table(table)
    if not all(row["good"] for row in rows):
        raise typer.Exit(EXIT_FAILED)


@command(app, "approve")
def approve(
    name: Annotated[str, typer.Argument(help="Name of a model on this machine.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Approve the files of a model as they are now.

    Prints their SHA-256; other files are refused from then on. Compare the digests with those of the
    model's source first.

    Example: typeless models approve large-v3
    """
    with failures_as_lines():
        from typeless_grpc.app.models import integrity

        settings = load_settings().settings
        catalog = _catalog()
        with working(f"Reading model {name}"):
            digests = integrity(settings, catalog).approve(name, _installed(catalog, name))
    if as_json:
        typer.echo(json.dumps({"name": name, "sha256": digests}, indent=2))
        return
    for file, digest in digests.items():
        typer.echo(f"{digest}  {file}")


def _installed(catalog: Any, name: str) -> Path:
    """Return the directory of a model on this machine. Raises NotFound."""
    from typeless_grpc.errors import NotFound

    if (directory := catalog.find(name)) is None:
        raise NotFound(f"There is no model '{name[:128]}' on this machine.", reason="MODEL_NOT_FOUND")
    return Path(directory)


def fetch(catalog: Any, name: str) -> str:
    """Download a model if needed, with a progress bar. Returns its directory. Raises what `Catalog.get` raises."""
    if found := catalog.find(name):
        return str(found)
    with download_bar(f"Fetching model {name}") as bar:
        return str(
            catalog.get(name, lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total or None))
        )


def _calibrate(settings: Any, name: str, directory: Path) -> None:
    """Measure the model's output for silence, which speeds up its first start. Only reports a failure."""
    from typeless_grpc.app.models import calibrate, needs_calibration
    from typeless_grpc.errors import TypelessError

    if not needs_calibration(settings, directory):
        return
    try:
        with working(f"Calibrating model {name}"):
            calibrate(settings, name, directory)
    except TypelessError as error:
        say(f"Model {name} was not calibrated: {error.message}", to_stderr=True)


def _catalog() -> Any:
    from typeless_grpc.app.models import catalog

    return catalog(load_settings().settings)
