"""Quotas: token buckets by group of calls and by unit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from typeless_grpc.access.methods import Group
from typeless_grpc.access.principal import Principal

MAX_AMOUNT = 2**31 - 1  # the contract's int32
NO_LIMIT = "off"

_PERIODS_S = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400}
_PERIODS_S["day"] = 86400
_RATE = re.compile(r"(?P<amount>\d{1,10})\s*/\s*(?P<count>\d{0,6})\s*(?P<period>[a-z]+)\s*(:\s*(?P<burst>\d{1,10}))?")


class Unit(Enum):
    """The unit of a quota."""

    CALLS = "calls"
    AUDIO_SECONDS = "audio_seconds"
    CONCURRENT_CALLS = "concurrent_calls"


def is_counted(group: Group, unit: Unit) -> bool:
    """Whether this unit exists for a group. Audio counts only in calls whose caller waits for the transcript."""
    match unit:
        case Unit.AUDIO_SECONDS:
            return group in (Group.TRANSCRIBE, Group.BATCH, Group.STREAM, Group.RIVA, Group.GOOGLE)
        case Unit.CONCURRENT_CALLS:
            return group is not Group.LONG  # which counts recordings, as parts of other calls
        case Unit.CALLS:
            return True


@dataclass(frozen=True)
class Quota:
    """A token bucket that holds burst, and refills evenly by amount per period_s.

    For CONCURRENT_CALLS, burst is the number of open calls, and the others are 0.
    """

    amount: int
    period_s: int
    burst: int

    @classmethod
    def parse(cls, text: str) -> Quota | None:
        """Read "10/minute", "10/minute:20" (with a burst) or "100/30s"; None for "off". Raises ValueError."""
        if text.strip().lower() == NO_LIMIT:
            return None
        match = _RATE.fullmatch(text.strip().lower())
        period_s = _PERIODS_S.get(match["period"].rstrip("s") or "s") if match else None
        if not match or not period_s:
            raise ValueError(f'must be AMOUNT/PERIOD or AMOUNT/PERIOD:BURST, as "10/minute:20", or "{NO_LIMIT}"')
        amount = int(match["amount"])
        quota = cls(amount, period_s * int(match["count"] or 1), int(match["burst"] or amount))
        if not all(0 < number <= MAX_AMOUNT for number in (quota.amount, quota.period_s, quota.burst)):
            raise ValueError(f"amount, period and burst must be 1 to {MAX_AMOUNT}")
        return quota

    @classmethod
    def at_once(cls, n_calls: int) -> Quota:
        """Return the quota for this number of open calls."""
        return cls(0, 0, n_calls)

    def share(self, percent: int) -> Quota:
        """Return a part of this quota, at least 1."""

        def part(number: int) -> int:
            return max(1, number * percent // 100) if number else 0

        return Quota(part(self.amount), self.period_s, part(self.burst))

    def __str__(self) -> str:
        return f"{self.amount}/{self.period_s}s:{self.burst}" if self.period_s else f"{self.burst} at once"


@dataclass(frozen=True)
class Limit:
    """One limit. key_id: of the API key it is for, "" for everyone."""

    group: Group
    unit: Unit
    quota: Quota
    key_id: str = ""

    @property
    def place(self) -> tuple[str, Group, Unit]:
        """What a limit is for: another one of the same place replaces it."""
        return self.key_id, self.group, self.unit

    @cached_property
    def bucket(self) -> str:
        """The name of its buckets. A changed quota gets new buckets."""
        return f"{self.group.value}:{self.unit.value}:{self.quota}"

    def __str__(self) -> str:
        """Return the limit for people: "10 calls in 60 s"."""
        what = self.unit.value.replace("_", " ")
        if self.unit is Unit.CONCURRENT_CALLS:
            return f"{self.quota.burst} {what}"
        burst = f", {self.quota.burst} at once" if self.quota.burst != self.quota.amount else ""
        return f"{self.quota.amount} {what} in {self.quota.period_s} s{burst}"


class Quotas:
    """The limit for each caller: that of its key, otherwise the one set at run time, otherwise that of the settings."""

    def __init__(self, limits: Iterable[Limit], *, anonymous_percent: int = 100) -> None:
        """limits: of the settings. anonymous_percent: the part of each for callers without a key."""
        self._limits: dict[tuple[str, Group, Unit], Limit] = {}
        self.set_settings(limits, anonymous_percent=anonymous_percent)

    def set_settings(self, limits: Iterable[Limit], *, anonymous_percent: int) -> None:
        """Replace the limits of the settings, from the next call on. Those that were set at run time stay in force."""
        self._of_settings = {limit.place: limit for limit in limits}
        self._anonymous_percent = anonymous_percent

    def apply(self, limits: Iterable[Limit]) -> None:
        """Set limits at run time, from the next call on; each replaces that of the same key, group and unit."""
        for limit in limits:
            self._limits[limit.place] = limit

    def at_run_time(self) -> list[Limit]:
        """The limits that were set at run time."""
        return list(self._limits.values())

    def forget(self, limits: Iterable[Limit]) -> None:
        """Drop limits that the store no longer has, unless they were set again meanwhile."""
        for limit in limits:
            if self._limits.get(limit.place) is limit:
                del self._limits[limit.place]

    def of(self, principal: Principal, group: Group, unit: Unit) -> Limit | None:
        """Return the limit of this caller; None if there is none."""
        own = self._limits.get((principal.key_id, group, unit)) if principal.key_id else None
        limit = own or self._limits.get(("", group, unit)) or self._of_settings.get(("", group, unit))
        if limit is None or not principal.is_anonymous or self._anonymous_percent >= 100:
            return limit
        return Limit(group, unit, limit.quota.share(self._anonymous_percent))

    def for_everyone(self) -> list[Limit]:
        """Return the limits for every key, in the order of the groups."""
        order: Mapping[Enum, int] = {member: n for n, member in enumerate((*Group, *Unit))}
        everyone = [limit for (key_id, _, _), limit in (self._of_settings | self._limits).items() if not key_id]
        return sorted(everyone, key=lambda limit: (order[limit.group], order[limit.unit]))


def whole(seconds: float) -> int:
    """Return the cost of audio: its seconds, rounded up after removing floating-point errors."""
    return math.ceil(seconds - 1e-6)
