"""Refuses calls that would find no slot, before their requests are read.

The servicer takes the slot once the request has arrived, because a slow request must not hold one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from typeless_grpc.access import principal
from typeless_grpc.access.methods import Rules
from typeless_grpc.interceptors.seam import Call, Handler, Interceptor


class SlotInterceptor(Interceptor):
    """Checks whether there is a slot for a call of the methods that take one."""

    def __init__(self, rules: Rules, check: Callable[[str], None]) -> None:
        """check: raises the refusal of a call of this caller, if there is no slot for it."""
        self._rules = rules
        self._check = check

    async def run(self, handler: Handler, requests: AsyncIterator[Any], call: Call) -> Any:
        """Run the handler if there is a slot."""
        if self._rules[call.method].takes_slot:
            self._check(principal.current().id)
        return await handler(requests, call)
