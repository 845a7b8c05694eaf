"""The command tree. Commands that serve import the server's libraries only when they run."""

from __future__ import annotations

from typing import Annotated

import typer

from typeless_grpc.cli import (
    batch,
    bench,
    config,
    engine,
    google_account,
    jobs,
    keys,
    models,
    serve,
    stream,
    transcribe,
    usage,
    worker,
)
from typeless_grpc.cli.failures import command
from typeless_grpc.version import VERSION

app = typer.Typer(
    name="typeless",
    help="Speech to text over gRPC: serve it, and use it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 success; 1 failure; 2 invalid command line; 130 interrupted.",
)
command(app, "serve")(serve.serve)
command(app, "worker")(worker.worker)
command(app, "engine")(engine.engine)
command(app, "transcribe")(transcribe.transcribe)
command(app, "stream")(stream.stream)
command(app, "batch")(batch.batch)
command(app, "config")(config.config)
command(app, "bench")(bench.bench)
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
command(keys.app, "usage")(usage.usage)
command(keys.app, "google-account")(google_account.google_account)
app.add_typer(keys.app, name="keys")


def _version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"typeless {VERSION}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Speech to text over gRPC: serve it, and use it."""
