"""The number of files that the server may have open: each connection is one."""

from __future__ import annotations

import resource
from contextlib import suppress

from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

ENOUGH = 65_536
# Of a server without connections: the database, the storage, jobs, decoder processes and logs.
OTHERS = 250


def allow_open_files(max_connections: int) -> None:
    """Raise the soft limit as far as the hard one allows; warn if it is too low for max_connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft != resource.RLIM_INFINITY and soft < max_connections + OTHERS:
        log.warning("too few files may be open for max_connections", limit=soft, max_connections=max_connections)
