"""Gives every call an id: the caller's `x-request-id` or a new one. It is in the trailers and in every log line."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from typeless_grpc.interceptors.seam import Call, Interceptor
from typeless_grpc.telemetry.context import request_id

HEADER = "x-request-id"
# Printable and short, so that callers cannot inject lines into the log.
ACCEPTED = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestIdInterceptor(Interceptor):
    """The outermost interceptor, so that everything inside, errors included, has the id."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        given = call.metadata(HEADER)
        current = given if given and ACCEPTED.fullmatch(given) else _new_id()
        token = request_id.set(current)
        call.context.set_trailing_metadata(((HEADER, current),))
        try:
            yield
        finally:
            request_id.reset(token)


def _new_id() -> str:
    """Return a unique id. It is not a secret, so a generator without system calls is enough."""
    return f"{random.getrandbits(128):032x}"
