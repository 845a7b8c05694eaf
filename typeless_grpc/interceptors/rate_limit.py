"""Charges every call to its caller's quota, and reports the rest of the quota in the trailers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from typeless_grpc.access import principal, rate_limit
from typeless_grpc.access.methods import Group, Rules
from typeless_grpc.access.quota import whole
from typeless_grpc.access.rate_limit import Limiter, Taken, is_refused_for_load
from typeless_grpc.errors import RateLimited, TypelessError
from typeless_grpc.interceptors.seam import Call, Interceptor
from typeless_grpc.telemetry.metrics import Metrics


class RateLimitInterceptor(Interceptor):
    """Charges a call when it starts, and refunds it if the server refuses it because of its own load."""

    def __init__(self, limiter: Limiter, rules: Rules, metrics: Metrics) -> None:
        self._limiter = limiter
        self._rules = rules
        self._metrics = metrics

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        rule = self._rules[call.method]
        # A health check must not fail because of many watches: its caller would consider the server dead.
        is_counted = rule.group is not Group.HEALTH or rule.is_long_lived
        try:
            charge = await self._limiter.admit(
                principal.current(), rule.group, is_counted=is_counted, is_free=rule.is_free
            )
            if charge.state is not None:
                call.add_trailers(*_standing(charge.state))
            token = rate_limit.enter(charge)
            is_answered = False
            try:
                yield
                is_answered = True
            except TypelessError as error:
                if is_refused_for_load(error):
                    await charge.give_back()
                raise
            finally:
                rate_limit.leave(token)
                if is_answered:
                    # The call is open until its answer is sent, which its caller can delay.
                    call.context.add_done_callback(lambda _: self._limiter.done(charge))  # type: ignore[arg-type]
                else:
                    self._limiter.done(charge)
        except RateLimited:
            self._metrics.rate_limited.labels(rule.group.value).inc()
            raise


def _standing(state: Taken) -> tuple[tuple[str, str], ...]:
    """Return the trailers for a quota.

    Headers would be sent at once, and clients do not retry a call after its headers.
    """
    return (
        ("ratelimit-limit", str(state.limit)),
        ("ratelimit-remaining", str(state.remaining)),
        ("ratelimit-reset", str(whole(state.reset_after_s))),
    )
