"""Charges calls to the quotas of their callers.

A call is charged when it begins. The rest (a long recording, minutes of audio) is charged once it is known, through
`current()`, the charge of the current call. If the server refuses a call, or a recording of a batch, for its own
reasons, the charge is given back in full; a call with a mistake is not.
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

# Suggested wait for a caller with too many open calls, because it is unknown when one of them ends.
CONCURRENT_RETRY_S = 1.0


@dataclass(frozen=True)
class Taken:
    """The result of taking from a bucket.

    limit: its burst. remaining: its content. reset_after_s: time until it is full. retry_after_s: time until the same
    cost can be taken; 0 if it was taken, None if the bucket never holds that much.
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
        """Undo an allowed `take`; the bucket never exceeds its burst."""
        ...


class Charge(Protocol):
    """The charge of one running call, for servicers that know its cost only later."""

    def recording(self, audio_s: float) -> AbstractAsyncContextManager[None]:
        """Charge a whole recording, perhaps one of several in a call, while it is transcribed. Raises RateLimited.

        The charge is given back if the server refuses the recording for its own reasons.
        """
        ...

    @property
    def most_audio_s(self) -> float:
        """The longest audio that can be charged at once."""
        ...

    async def audio(self, audio_s: float) -> None:
        """Charge more audio of a stream, any fraction of a second. Raises RateLimited.

        It is never given back, because the audio was processed.
        """
        ...


class NoCharge:
    """No charge: limits are off."""

    most_audio_s = float("inf")

    @asynccontextmanager
    async def recording(self, audio_s: float) -> AsyncIterator[None]:
        """See `Charge`."""
        yield

    async def audio(self, audio_s: float) -> None:
        """See `Charge`."""


_current: ContextVar[Charge] = ContextVar("charge", default=NoCharge())  # noqa: B039 - it has no state


def current() -> Charge:
    """Return the charge of the current call."""
    return _current.get()


def enter(charge: Charge) -> object:
    """Make charge the current one. Pass the returned token to `leave`."""
    return _current.set(charge)


def leave(token: object) -> None:
    """Undo `enter`, in the same context."""
    _current.reset(token)  # type: ignore[arg-type]


class CallCharge:
    """What one call has taken so far.

    state: that of the bucket for the calls of its group, if there is one. is_counted: it counts as one of its caller's
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
            # All or nothing: otherwise a caller that waited for one bucket would find the other used up.
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
        """Take cost from a bucket of this caller; None if it has no such limit. Raises RateLimited.

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
        """Undo what was taken, except by recordings, which undo their own part."""
        taken, self._taken = self._taken, []
        for limit, cost in taken:
            await self._limiter.buckets.give_back(_bucket(self.principal, limit), limit.quota, cost)


def is_refused_for_load(error: TypelessError) -> bool:
    """Whether the server refused a call for its own reasons, so that the call costs nothing.

    Deadlines that cannot be met and audio that cannot be fetched depend on the request. If they were free, a caller
    could repeat them without end.
    """
    is_share = error.reason == "SHARE_USED_UP"  # the caller will retry soon, and its bucket must not be empty then
    is_load = isinstance(error, Overloaded | SourceUnavailable) and error.reason != "AUDIO_UNREACHABLE"
    return is_share or is_load


class Limiter:
    """Admits calls within the quotas of their callers. Each server counts open calls by itself."""

    def __init__(self, quotas: Quotas, buckets: BucketStore, *, long_audio_s: float) -> None:
        """long_audio_s: a longer recording is also charged to the group LONG."""
        self.quotas = quotas
        self.buckets = buckets
        self.long_audio_s = long_audio_s
        self._n_open: Counter[tuple[str, Group]] = Counter()

    def use(self, long_audio_s: float) -> None:
        """Count longer recordings as long from now on."""
        self.long_audio_s = long_audio_s

    async def admit(
        self, principal: Principal, group: Group, *, is_counted: bool = True, is_free: bool = False
    ) -> CallCharge:
        """Charge a call when it begins; `done` must follow. Raises RateLimited, SourceUnavailable.

        is_counted: it counts as one of its caller's open calls. Open calls are checked after the rate, because a caller
        with too many retries soon, and must not find the bucket empty. is_free: nothing is taken from a bucket.
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
        """Note the end of an admitted call."""
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
    if principal.is_local:  # most likely its operator, who tries it out
        message += " TYPELESS_RATE_LIMIT_ENABLED=false turns quotas off."
    return RateLimited(
        message,
        retry_after_s=retry_after_s,
        subject=principal.id,
        quota=f"{limit.group.value}: {limit}",
    )
