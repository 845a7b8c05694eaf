"""What a call costs its caller, and what happens when the caller cannot pay.

A call is charged as it begins; what it turns out to be (a long recording, minutes of audio) is charged as it becomes
known, by whoever learns it: `current()` is the charge of the call that code works for. A call that the server refuses
for its own reasons is given back in full, and so is a recording of a batch; one with a mistake in it is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from typeless_grpc.access.methods import Group
from typeless_grpc.access.principal import Principal
from typeless_grpc.access.quota import Limit, Quota, Quotas, Unit, whole
from typeless_grpc.errors import Overloaded, RateLimited, SourceUnavailable, TypelessError

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

    def recording(self, audio_s: float) -> AbstractAsyncContextManager[None]:
        """A whole recording of this length is transcribed inside, of several in a call perhaps. Raises RateLimited.

        What it cost is given back if the server refuses it for reasons of its own.
        """
        ...

    @property
    def most_audio_s(self) -> float:
        """The most that can be charged at once."""
        ...

    async def audio(self, audio_s: float) -> None:
        """So much more audio has arrived on a stream, any fraction of a second. Raises RateLimited.

        It is not given back: whatever becomes of the call, the audio was worked on.
        """
        ...


class NoCharge:
    """Everything is free: where limits are off."""

    most_audio_s = float("inf")

    @asynccontextmanager
    async def recording(self, audio_s: float) -> AsyncIterator[None]:
        """See `Charge`."""
        yield

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
    """What one call has taken so far.

    state: of the bucket that its group's calls are taken from, if it has one. is_counted: it is one of its caller's
    open calls.
    """

    def __init__(self, limiter: Limiter, principal: Principal, group: Group) -> None:
        self._limiter = limiter
        self.principal = principal
        self.group = group
        self._taken: list[tuple[Limit, int]] = []
        self._unpaid_s = 0.0
        self.state: Taken | None = None
        self.is_counted = False

    @asynccontextmanager
    async def recording(self, audio_s: float) -> AsyncIterator[None]:
        """See `Charge`."""
        own = CallCharge(self._limiter, self.principal, self.group)
        try:
            if audio_s > self._limiter.long_audio_s:
                await own.take(Group.LONG, Unit.CALLS, 1)
            await own.take(self.group, Unit.AUDIO_SECONDS, whole(audio_s))
        except BaseException:
            # All or nothing, or waiting for what was refused would find the other used up.
            await own.give_back()
            raise
        try:
            yield
        except TypelessError as error:
            if is_refused_for_load(error):
                await own.give_back()
            raise

    @property
    def most_audio_s(self) -> float:
        """See `Charge`."""
        limit = self._limiter.quotas.of(self.principal, self.group, Unit.AUDIO_SECONDS)
        return limit.quota.burst if limit is not None else float("inf")

    async def audio(self, audio_s: float) -> None:
        """See `Charge`."""
        self._unpaid_s += audio_s
        if due := int(self._unpaid_s):
            self._unpaid_s -= due
            await self.take(self.group, Unit.AUDIO_SECONDS, due, is_final=True)

    async def take(self, group: Group, unit: Unit, cost: int, *, is_final: bool = False) -> Taken | None:
        """Take cost from a bucket of this caller; None where it has no such limit. Raises RateLimited.

        is_final: it is never given back.
        """
        limit = self._limiter.quotas.of(self.principal, group, unit)
        if limit is None or not cost:
            return None
        taken = await self._limiter.buckets.take(_bucket(self.principal, limit), limit.quota, cost)
        if not taken.is_allowed:
            raise _refusal(self.principal, limit, cost, taken.retry_after_s)
        if not is_final:
            self._taken.append((limit, cost))
        return taken

    async def give_back(self) -> None:
        """Undo what was taken; recordings see to their own part."""
        taken, self._taken = self._taken, []
        for limit, cost in taken:
            await self._limiter.buckets.give_back(_bucket(self.principal, limit), limit.quota, cost)


def is_refused_for_load(error: TypelessError) -> bool:
    """Whether an error is the server's own, so that what it ended costs nothing.

    A deadline that cannot be met and audio that cannot be fetched depend on what the caller asked for: free of charge,
    they could be asked for without end.
    """
    is_share = error.reason == "SHARE_USED_UP"  # to come back soon, and not to find the bucket empty then
    is_load = isinstance(error, Overloaded | SourceUnavailable) and error.reason != "AUDIO_UNREACHABLE"
    return is_share or is_load


class Limiter:
    """Lets calls in as far as their callers' quotas go. Concurrent calls are counted on this server alone."""

    def __init__(self, quotas: Quotas, buckets: BucketStore, *, long_audio_s: float) -> None:
        """long_audio_s: a recording longer than this is charged to the group LONG too."""
        self.quotas = quotas
        self.buckets = buckets
        self.long_audio_s = long_audio_s
        self._n_open: Counter[tuple[str, Group]] = Counter()

    async def admit(
        self, principal: Principal, group: Group, *, is_counted: bool = True, is_free: bool = False
    ) -> CallCharge:
        """Charge a call as it begins; `done` must follow. Raises RateLimited, SourceUnavailable.

        is_counted: whether it is one of those of which only so many may be open at once. They are looked at after the
        rate, since whoever is refused for them is told to come back soon, and must not find the bucket empty then.
        is_free: nothing is taken from a bucket.
        """
        charge = CallCharge(self, principal, group)
        if not is_free:
            charge.state = await charge.take(group, Unit.CALLS, 1)
        if is_counted:
            limit = self.quotas.of(principal, group, Unit.CONCURRENT_CALLS)
            if limit is not None and self._n_open[principal.id, group] >= limit.quota.burst:
                await charge.give_back()
                raise _refusal(principal, limit, 1, CONCURRENT_RETRY_S)
            self._n_open[principal.id, group] += 1
            charge.is_counted = True
        return charge

    def done(self, charge: CallCharge) -> None:
        """A call that was admitted has ended."""
        if not charge.is_counted:
            return
        key = charge.principal.id, charge.group
        self._n_open[key] -= 1
        if not self._n_open[key]:
            del self._n_open[key]


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
