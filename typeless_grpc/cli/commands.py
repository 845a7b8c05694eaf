"""The command tree. Commands that serve import the server's libraries only when they run."""

from __future__ import annotations

from typing import Annotated

import typer

from typeless_grpc.cli import batch, bench, config, jobs, keys, models, serve, stream, transcribe, worker
from typeless_grpc.version import VERSION

app = typer.Typer(
    name="typeless",
    help="Speech to text over gRPC: serve it, and use it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve.serve)
app.command("worker")(worker.worker)
app.command("transcribe")(transcribe.transcribe)
app.command("stream")(stream.stream)
app.command("batch")(batch.batch)
app.command("config")(config.config)
app.command("bench")(bench.bench)
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"typeless {VERSION}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Speech to text over gRPC: serve it, and use it."""
