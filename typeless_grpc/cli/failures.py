"""How commands tell of calls that failed: a line with the reason and what to do; with -v all that the server said."""

from __future__ import annotations

import errno
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import grpc
import typer

from typeless_grpc.cli.files import name_of
from typeless_grpc.cli.options import expanded, sign
from typeless_grpc.cli.output import EXIT_FAILED, drop_stdout, errors, fail, failures_as_lines
from typeless_grpc.client import CallFailed
from typeless_grpc.client.target import host_of, proxy_variable

# What the caller can do about it, where the server's message does not say so already.
HINTS = {
    "ADMIN_KEY_REQUIRED": "call with an admin's key",
    "AUDIO_TOO_LONG": "`typeless jobs submit` takes longer ones",
    "CALL_TOO_LONG": "`typeless jobs submit` takes as long as it needs",
    "JOB_NOT_FOUND": "`typeless jobs list` shows yours",
    "JOB_RUNNING": "`typeless jobs cancel` ends it",
    "KEY_EXPIRED": "set TYPELESS_API_KEY to one that is good",
    "KEY_INVALID": "look at TYPELESS_API_KEY or --api-key",
    "KEY_NOT_FOUND": "`typeless keys list` shows their ids",
    "KEY_REQUIRED": "set TYPELESS_API_KEY or --api-key",
    "KEY_REVOKED": "set TYPELESS_API_KEY to one that is good",
    "MESSAGE_TOO_LARGE": "`typeless jobs submit` uploads in pieces",
    "MODEL_NOT_FOUND": "`typeless models list` shows their names, `typeless models pull` fetches one",
    "TOO_MANY_ITEMS": "make --size smaller",
}

# What a write fails with, which does not say where; files do.
_UNWRITTEN = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


class _Detail:
    """Whether -v was given. One process runs one command."""

    is_wanted = False


Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Of an error, all that is known.")]
Function = TypeVar("Function", bound=Callable[..., None])


def command(app: typer.Typer, name: str) -> Callable[[Function], Function]:
    """Make a function a command of app, with the options of its groups (see `options`) and -v."""

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
    """What this machine refuses: standard output that nobody reads ends a command quietly, as in a shell."""
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


def told(failed: CallFailed) -> str:
    """The line for people, and with -v the lines below it."""
    line = str(failed)
    if hint := HINTS.get(failed.reason):
        line += f": {hint}"
    elif failed.retry_after_s is not None:
        line += f": try again in {max(1, round(failed.retry_after_s))} s"
    return "\n  ".join([line, *details(failed)])


def details(failed: CallFailed) -> list[str]:
    """All that the server said beside its message; nothing without -v."""
    if not _Detail.is_wanted:
        return []
    lines = [f"status: {failed.code.name}"]
    lines += [f"reason: {failed.reason}"] if failed.reason else []
    lines += [f"field: {path}: {why}" for path, why in failed.fields]
    lines += [f"retry after: {failed.retry_after_s:.1f} s"] if failed.retry_after_s is not None else []
    lines += [f"request id: {failed.request_id}"] if failed.request_id else []
    return lines


def is_away(failed: CallFailed) -> bool:
    """Whether no server was reached: one that is, gives a reason."""
    return failed.code is grpc.StatusCode.UNAVAILABLE and not failed.reason


def fail_with(failed: CallFailed, server: str, *, otherwise: str = "or add --local") -> None:
    """Print what happened and stop with exit code 1. otherwise: what to do where no server answers but start one."""
    if is_away(failed):
        why = [failed.message, *details(failed)] if _Detail.is_wanted else []
        start = ", ".join(filter(None, ["Start one with `typeless serve`", otherwise]))
        if proxy := proxy_variable(failed.message):
            start = f"It was called through the proxy that {proxy} names: no_proxy={host_of(server)} calls it directly"
        fail("\n  ".join([f"no server answers at {server}. {start}.", *why]))
    fail(told(failed))


@contextmanager
def calls_as_lines(server: str, *, otherwise: str = "or add --local") -> Iterator[None]:
    """`failures_as_lines`, and what a server refuses; Ctrl-C ends quietly with 130, as in a shell."""
    try:
        with failures_as_lines():
            yield
    except CallFailed as error:
        fail_with(error, server, otherwise=otherwise)
    except KeyboardInterrupt:
        errors.print("typeless: interrupted")
        raise typer.Exit(130) from None
