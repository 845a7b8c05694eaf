"""Finds out why a server cannot listen, because grpc does not report it."""

from __future__ import annotations

import errno
import socket

from typeless_grpc.errors import SourceUnavailable


def cannot_listen(address: str, why: str) -> SourceUnavailable:
    """Return the error for an address. why: of `why_unusable`; "" if another program has it."""
    if why:
        return SourceUnavailable(f"Cannot listen on {address}: {why}.", reason="ADDRESS_UNUSABLE")
    in_use = "is another server running there? Choose another with --port"
    return SourceUnavailable(f"Cannot listen on {address}: {in_use}.", reason="ADDRESS_IN_USE")


def why_unusable(host: str, port: int) -> str:
    """Return why this machine cannot listen on an address, apart from other listeners; "" if it can.

    Blocks to resolve names.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return f"'{host}' is no address, and no name that is known here"
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return f"this machine has no address {host}; 0.0.0.0 stands for all that it has"
            if error.errno != errno.EADDRINUSE:
                return f"{error.strerror}"
    return ""


def check_free(host: str, port: int) -> None:
    """Raise SourceUnavailable if another program listens on an address. It does not matter here if it is unusable."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)  # it never listens, so it gets no connections
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise cannot_listen(f"{host}:{port}", "") from error
