"""A name for every call: the caller's `x-request-id` or a new one, back in the trailers and in every log line."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from typeless_grpc.interceptors.seam import Call, Interceptor
from typeless_grpc.telemetry.context import request_id
from typeless_grpc.telemetry.logs import get_logger

HEADER = "x-request-id"
# Printable and short, so that a caller cannot write its own lines into our logs.
ACCEPTED = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

log = get_logger(__name__)


class RequestIdInterceptor(Interceptor):
    """Outermost, so that everything inside, errors included, is done under the call's id."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        given = call.metadata(HEADER)
        current = given if given and ACCEPTED.fullmatch(given) else uuid.uuid4().hex
        token = request_id.set(current)
        call.context.set_trailing_metadata(((HEADER, current),))
        started_s = time.monotonic()
        try:
            yield
        finally:
            if log.isEnabledFor(logging.DEBUG):
                code = call.context.code()
                log.debug(
                    "call ended",
                    method=call.method,
                    code=getattr(code, "name", code) or "OK",
                    seconds=round(time.monotonic() - started_s, 4),
                )
            request_id.reset(token)
