"""Turns failures into one line with the reason and what to do; -v adds all details."""

from __future__ import annotations

import errno
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import grpc
import typer

from typeless_grpc.cli.files import name_of
from typeless_grpc.cli.options import expanded, sign
from typeless_grpc.cli.output import EXIT_FAILED, complain, drop_stdout, fail, failures_as_lines
from typeless_grpc.client import CallFailed
from typeless_grpc.client.target import host_of, proxy_variable

# Hints for the user, where the server's message has none.
HINTS = {
    "ADMIN_KEY_REQUIRED": "use an admin key",
    "AUDIO_TOO_LONG": "`typeless jobs submit` accepts longer recordings",
    "CALL_TOO_LONG": "`typeless jobs submit` has no time limit",
    "JOB_NOT_FOUND": "`typeless jobs list` shows your jobs",
    "JOB_RUNNING": "`typeless jobs cancel` ends it",
    "KEY_EXPIRED": "set TYPELESS_API_KEY to a valid key",
    "KEY_INVALID": "check TYPELESS_API_KEY or --api-key",
    "KEY_NOT_FOUND": "`typeless keys list` shows their ids",
    "KEY_REQUIRED": "set TYPELESS_API_KEY or --api-key",
    "KEY_REVOKED": "set TYPELESS_API_KEY to a valid key",
    "MESSAGE_TOO_LARGE": "`typeless jobs submit` uploads in chunks",
    "MODEL_NOT_FOUND": "`typeless models list` shows the names, `typeless models pull` downloads a model",
    "TOO_MANY_ITEMS": "reduce --size",
}

# What gRPC writes about a connection that failed, and what the user can do. The first that matches counts.
CONNECTION_HINTS = {
    "WRONG_VERSION_NUMBER": "what answers there does not use TLS: leave out --tls and --tls-ca",
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not trusted: name its authority with --tls-ca",
    "Hostname Verification Check failed": "the server's certificate is for another name: use that one in --server",
    "an http1.x server": "what answers there is not a gRPC server: check the port",
    "hostname lookup error|DNS resolution failed": "this name cannot be resolved: check --server",
    "^failed to connect.*(Socket closed|Connection reset)": "what answers there closes the connection: check the port; "
    "a server with TLS needs --tls, and one that requires certificates needs --client-cert",
}

# Errors of standard output. Those of files have a file name.
_UNWRITTEN = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


class _Detail:
    """Whether -v is set. One process runs one command."""

    is_wanted = False


Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show full error details.")]
Function = TypeVar("Function", bound=Callable[..., None])


def command(app: typer.Typer, name: str) -> Callable[[Function], Function]:
    """Register a function as a command of app, with the options of its groups (see `options`) and -v."""

    def register(function: Function) -> Function:
        flat = expanded(function)

        @functools.wraps(function)
        def run(*, verbose: bool, **values: Any) -> None:
            _Detail.is_wanted = verbose
            flat(**values)

        option = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
        sign(run, [*inspect.signature(flat).parameters.values(), option])
        app.command(name)(run)
        return function

    return register


@contextmanager
def system_failures_as_lines() -> Iterator[None]:
    """Print errors of the operating system as one line.

    A closed pipe on standard output ends the command without one.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        fail(f"'{name_of(error.object)}' is not UTF-8")
    except OSError as error:
        if error.filename is not None:
            fail(f"{name_of(error.filename)}: {error.strerror}")
        if error.errno not in _UNWRITTEN:
            raise
        drop_stdout()
        if not isinstance(error, BrokenPipeError):
            fail(f"standard output cannot be written: {error.strerror}")
        raise typer.Exit(EXIT_FAILED) from None


def error_text(failed: CallFailed) -> str:
    """Return the line for the user, and with -v the details below it."""
    line = str(failed)
    if hint := HINTS.get(failed.reason):
        line += f": {hint}"
    elif failed.retry_after_s is not None:
        line += f": try again in {max(1, round(failed.retry_after_s))} s"
    return "\n  ".join([line, *details(failed)])


def details(failed: CallFailed) -> list[str]:
    """Return the details of a failure besides its message; nothing without -v."""
    if not _Detail.is_wanted:
        return []
    lines = [f"status: {failed.code.name}"]
    lines += [f"reason: {failed.reason}"] if failed.reason else []
    lines += [f"field: {path}: {why}" for path, why in failed.fields]
    lines += [f"retry after: {failed.retry_after_s:.1f} s"] if failed.retry_after_s is not None else []
    lines += [f"request id: {failed.request_id}"] if failed.request_id else []
    return lines


def is_unavailable(failed: CallFailed) -> bool:
    """Whether the call reached no server: a server gives a reason."""
    return failed.code is grpc.StatusCode.UNAVAILABLE and not failed.reason


def fail_with(failed: CallFailed, server: str, *, otherwise: str = "or add --local") -> None:
    """Print the failure and exit with code 1. otherwise: the alternative to starting a server."""
    if is_unavailable(failed):
        why = [failed.message, *details(failed)] if _Detail.is_wanted else []
        fail("\n  ".join([f"{_no_connection(failed.message, server, otherwise)}.", *why]))
    fail(error_text(failed))


def _no_connection(message: str, server: str, otherwise: str) -> str:
    if proxy := proxy_variable(message):
        avoid = f"The call went through the proxy that {proxy} names: set no_proxy={host_of(server)} to avoid it"
        return f"no server answers at {server}. {avoid}"
    if re.fullmatch(r"[^:/,]+", server):
        server += " (port 443, because the address names none)"
    for pattern, hint in CONNECTION_HINTS.items():
        if re.search(pattern, message):
            return f"cannot connect to {server}: {hint}"
    choices = filter(None, ["Start one with `typeless serve`", "name another with --server", otherwise])
    return f"no server answers at {server}. {', '.join(choices)}"


@contextmanager
def calls_as_lines(server: str, *, otherwise: str = "or add --local") -> Iterator[None]:
    """Print failed calls as one line, as `system_failures_as_lines` does for other errors.

    Ctrl-C ends with exit code 130.
    """
    try:
        with failures_as_lines():
            yield
    except CallFailed as error:
        fail_with(error, server, otherwise=otherwise)
    except KeyboardInterrupt:
        complain("typeless: interrupted")
        raise typer.Exit(130) from None
