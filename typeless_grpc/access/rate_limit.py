"""What a call costs its caller, and what happens when the caller cannot pay.

A call is charged as it begins; what it turns out to be (a long recording, minutes of audio) is charged as it becomes
known, by whoever learns it: `current()` is the charge of the call that code works for. A call that the server refuses
for its own reasons is given back in full, one with a mistake in it is not.
"""

from __future__ import annotations

from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from typeless_grpc.access.methods import Group
from typeless_grpc.access.principal import Principal
from typeless_grpc.access.quota import Limit, Quota, Quotas, Unit, whole
from typeless_grpc.errors import RateLimited

# A caller with too many calls open is told to come back so soon: nobody knows when one of them ends.
CONCURRENT_RETRY_S = 1.0


@dataclass(frozen=True)
class Taken:
    """What came of asking a bucket. limit: its burst; remaining: what is in it; reset_after_s: until it is full.

    retry_after_s: until the same could be taken; 0 where it was, None where the bucket never holds so much.
    """

    is_allowed: bool
    limit: int
    remaining: int
    reset_after_s: float
    retry_after_s: float | None = 0.0


class BucketStore(Protocol):
    """Token buckets by name. Both calls may raise SourceUnavailable."""

    async def take(self, bucket: str, quota: Quota, cost: int) -> Taken:
        """Take cost at once, or nothing."""
        ...

    async def give_back(self, bucket: str, quota: Quota, cost: int) -> None:
        """Undo a `take` that was allowed; the bucket never gets fuller than full."""
        ...


class Charge(Protocol):
    """The bill of one call, for those that learn what it is while it runs."""

    async def recording(self, audio_s: float) -> None:
        """A whole recording of this length is to be transcribed. Raises RateLimited."""
        ...

    async def audio(self, audio_s: float) -> None:
        """So much more audio has arrived on a stream, any fraction of a second. Raises RateLimited."""
        ...


class NoCharge:
    """Everything is free: where limits are off."""

    async def recording(self, audio_s: float) -> None:
        """See `Charge`."""

    async def audio(self, audio_s: float) -> None:
        """See `Charge`."""


_current: ContextVar[Charge] = ContextVar("charge", default=NoCharge())  # noqa: B039 - it has no state


def current() -> Charge:
    """The charge of the call that this code works for."""
    return _current.get()


def enter(charge: Charge) -> object:
    """Make charge the current one; hand what this returns to `leave`."""
    return _current.set(charge)


def leave(token: object) -> None:
    """Undo `enter`, in the same context."""
    _current.reset(token)  # type: ignore[arg-type]


class CallCharge:
    """What one call has taken so far. state: of the bucket that its group's calls are taken from, if it has one."""

    def __init__(self, limiter: Limiter, principal: Principal, group: Group) -> None:
        self._limiter = limiter
        self._principal = principal
        self._group = group
        self._taken: list[tuple[Limit, int]] = []
        self._unpaid_s = 0.0
        self.state: Taken | None = None

    async def recording(self, audio_s: float) -> None:
        """See `Charge`."""
        if audio_s > self._limiter.long_audio_s:
            await self.take(Group.LONG, Unit.CALLS, 1)
        await self.take(self._group, Unit.AUDIO_SECONDS, whole(audio_s))

    async def audio(self, audio_s: float) -> None:
        """See `Charge`."""
        self._unpaid_s += audio_s
        if due := int(self._unpaid_s):
            self._unpaid_s -= due
            await self.take(self._group, Unit.AUDIO_SECONDS, due)

    async def take(self, group: Group, unit: Unit, cost: int) -> Taken | None:
        """Take cost from a bucket of this caller; None where it has no such limit. Raises RateLimited."""
        limit = self._limiter.quotas.of(self._principal, group, unit)
        if limit is None or not cost:
            return None
        taken = await self._limiter.buckets.take(_bucket(self._principal, limit), limit.quota, cost)
        if not taken.is_allowed:
            raise _refusal(self._principal, limit, cost, taken.retry_after_s)
        self._taken.append((limit, cost))
        return taken

    async def give_back(self) -> None:
        """Undo everything that was taken: the server did not do the work, for reasons of its own."""
        taken, self._taken = self._taken, []
        for limit, cost in taken:
            await self._limiter.buckets.give_back(_bucket(self._principal, limit), limit.quota, cost)


class Limiter:
    """Lets calls in as far as their callers' quotas go. Concurrent calls are counted on this server alone."""

    def __init__(self, quotas: Quotas, buckets: BucketStore, *, long_audio_s: float) -> None:
        """long_audio_s: a recording longer than this is charged to the group LONG too."""
        self.quotas = quotas
        self.buckets = buckets
        self.long_audio_s = long_audio_s
        self._n_open: Counter[tuple[str, Group]] = Counter()

    async def admit(self, principal: Principal, group: Group) -> CallCharge:
        """Charge a call as it begins; `done` must follow. Raises RateLimited, SourceUnavailable."""
        limit = self.quotas.of(principal, group, Unit.CONCURRENT_CALLS)
        if limit is not None and self._n_open[principal.id, group] >= limit.quota.burst:
            raise _refusal(principal, limit, 1, CONCURRENT_RETRY_S)
        self._n_open[principal.id, group] += 1
        charge = CallCharge(self, principal, group)
        try:
            charge.state = await charge.take(group, Unit.CALLS, 1)
        except BaseException:
            self.done(principal, group)
            raise
        return charge

    def done(self, principal: Principal, group: Group) -> None:
        """A call that was admitted has ended."""
        self._n_open[principal.id, group] -= 1
        if not self._n_open[principal.id, group]:
            del self._n_open[principal.id, group]


def _bucket(principal: Principal, limit: Limit) -> str:
    return f"{limit.bucket}:{principal.id}"


def _refusal(principal: Principal, limit: Limit, cost: int, retry_after_s: float | None) -> RateLimited:
    if retry_after_s is None:
        what = f"This needs {cost} {limit.unit.value.replace('_', ' ')} at once, more than the quota ever holds"
        message = f"{what}: {limit} (group {limit.group.value})."
    else:
        message = f"The quota is used up: {limit} (group {limit.group.value}). Try again in {retry_after_s:.1f} s."
    return RateLimited(
        message,
        retry_after_s=retry_after_s,
        subject=principal.id,
        quota=f"{limit.group.value}: {limit}",
    )
