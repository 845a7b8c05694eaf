"""Authenticates callers, and ends the calls of a key when the key is revoked or expires."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from typeless_grpc import account
from typeless_grpc.access import principal
from typeless_grpc.access.address import Network, caller_address, is_local
from typeless_grpc.access.gate import Credentials, Gate
from typeless_grpc.access.keys import KeyRing
from typeless_grpc.access.methods import Rules
from typeless_grpc.access.principal import Principal
from typeless_grpc.errors import RateLimited, TypelessError, Unauthenticated
from typeless_grpc.interceptors.seam import Call, Interceptor
from typeless_grpc.telemetry.metrics import Metrics

BEARER = "bearer "


class AuthInterceptor(Interceptor):
    """Admits each call through the gate, and runs it as the principal that the gate found."""

    def __init__(
        self,
        gate: Gate,
        ring: KeyRing | None,
        rules: Rules,
        trusted_proxies: Sequence[Network],
        metrics: Metrics,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """ring: keys that can end while calls run; None if keys are disabled. wall_s: Unix time in seconds."""
        self._gate = gate
        self._ring = ring
        self._rules = rules
        self._trusted_proxies = trusted_proxies
        self._metrics = metrics
        self._wall_s = wall_s

    def use(self, rules: Rules, trusted_proxies: Sequence[Network]) -> None:
        """Apply these from the next call on; see the constructor."""
        self._rules, self._trusted_proxies = rules, trusted_proxies

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        peer, forwarded_for = call.context.peer(), call.all_metadata("x-forwarded-for")
        address = caller_address(peer, forwarded_for, self._trusted_proxies)
        rule, is_from_here = self._rules[call.method], is_local(peer, forwarded_for)
        try:
            caller = await self._gate.admit(_credentials(call), address, rule, is_local=is_from_here)
        except TypelessError as error:
            reason = "TOO_MANY_WRONG_KEYS" if isinstance(error, RateLimited) else error.reason
            self._metrics.refused_callers.labels(reason).inc()
            raise
        account.current().identify(caller.id, caller.owner, caller.key_id)
        token = principal.enter(caller)
        try:
            async with self._while_valid(caller):
                yield
        finally:
            principal.leave(token)

    @asynccontextmanager
    async def _while_valid(self, caller: Principal) -> AsyncIterator[None]:
        """Cancel the body when the principal's key is revoked or expires."""
        if self._ring is None or not caller.key_id:
            yield
            return
        now_s = asyncio.get_running_loop().time()
        expires_s = None if caller.expires_s is None else now_s + caller.expires_s - self._wall_s()
        try:
            async with asyncio.timeout_at(expires_s) as limit:
                stop = self._ring.watch(caller.key_id, lambda: _end(limit))
                try:
                    yield
                finally:
                    stop()
        except TimeoutError as error:
            if not limit.expired():
                raise
            if expires_s is not None and limit.when() == expires_s:
                raise Unauthenticated("This key has expired.", reason="KEY_EXPIRED") from error
            raise Unauthenticated("This key was revoked.", reason="KEY_REVOKED") from error


def _end(limit: asyncio.Timeout) -> None:
    if not limit.expired():
        limit.reschedule(asyncio.get_running_loop().time())


def _credentials(call: Call) -> Credentials:
    authorization = call.metadata("authorization")
    bearer = None
    if authorization is not None:
        # A header with another scheme is a wrong key, not a missing one.
        bearer = authorization[len(BEARER) :].strip() if authorization.lower().startswith(BEARER) else authorization
    key = call.metadata("x-api-key")
    return Credentials(key if key is not None else call.metadata("x-goog-api-key"), bearer)
