"""Keys, limits and usage in memory, for tests. It passes the same contract tests as the real stores."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date

from typeless_grpc.access.keys import ApiKey
from typeless_grpc.access.quota import Limit
from typeless_grpc.access.store import Changes
from typeless_grpc.access.usage import DailyUsage, Usage, UsageBatch, UsageQuery
from typeless_grpc.errors import SourceUnavailable, TooLarge


class MemoryAccessStore:
    """See `AccessStore`. Set `is_unavailable` to make all calls fail."""

    def __init__(self, wall_s: Callable[[], float] = time.time) -> None:
        self._wall_s = wall_s
        self._revision = 0
        self._keys: dict[str, tuple[int, ApiKey]] = {}
        self._limits: dict[tuple[object, ...], tuple[int, Limit]] = {}
        self._usage: dict[tuple[date, str], Usage] = {}
        self._sequences: dict[str, int] = {}
        self.is_unavailable = False

    async def add_key(self, key: ApiKey, *, max_keys: int) -> ApiKey:
        """See `AccessStore`."""
        self._reach()
        if key.key_id in self._keys:
            return self._keys[key.key_id][1]
        now_s = self._wall_s()
        n_live = sum(
            not known.is_revoked and (known.expires_s is None or known.expires_s > now_s)
            for _, known in self._keys.values()
        )
        if n_live >= max_keys:
            raise too_many_keys(max_keys)
        self._revision += 1
        return self._keep(replace(key, position=self._revision))

    async def revoke_key(self, key_id: str) -> ApiKey | None:
        """See `AccessStore`."""
        self._reach()
        if key_id not in self._keys:
            return None
        self._revision += 1
        return self._keep(replace(self._keys[key_id][1], is_revoked=True))

    def _keep(self, key: ApiKey) -> ApiKey:
        self._keys[key.key_id] = (self._revision, key)
        return key

    async def keys_after(self, position: int, n_most: int) -> Sequence[ApiKey]:
        """See `AccessStore`."""
        self._reach()
        keys = sorted((key for _, key in self._keys.values()), key=lambda key: key.position)
        return [key for key in keys if key.position > position][:n_most]

    async def record_uses(self, uses: Mapping[str, float]) -> None:
        """See `AccessStore`."""
        self._reach()
        for key_id, used_s in uses.items():
            if known := self._keys.get(key_id):
                revision, key = known
                self._keys[key_id] = (revision, replace(key, last_use_s=max(used_s, key.last_use_s or 0.0)))

    async def set_limit(self, limit: Limit) -> None:
        """See `AccessStore`."""
        self._reach()
        self._revision += 1
        self._limits[limit.key_id, limit.group, limit.unit] = (self._revision, limit)

    async def changes(self, since: int) -> Changes:
        """See `AccessStore`."""
        self._reach()
        return Changes(
            self._revision,
            [key for revision, key in self._keys.values() if revision > since],
            [limit for revision, limit in self._limits.values() if revision > since],
        )

    async def add_usage(self, batch: UsageBatch) -> None:
        """See `UsageStore`."""
        self._reach()
        if self._sequences.get(batch.writer_id, 0) >= batch.sequence:
            return
        self._sequences[batch.writer_id] = batch.sequence
        for row in batch.rows:
            key = row.day, row.caller
            self._usage[key] = self._usage.get(key, Usage()) + row.usage

    async def usage(self, query: UsageQuery) -> Sequence[DailyUsage]:
        """See `UsageSource`."""
        self._reach()
        rows = [
            DailyUsage(day, caller, usage)
            for (day, caller), usage in sorted(self._usage.items(), key=lambda item: item[0])
            if (query.caller is None or caller == query.caller)
            and (query.first_day is None or day >= query.first_day)
            and (query.last_day is None or day <= query.last_day)
            and (query.after is None or (day, caller) > query.after)
        ]
        return rows[: query.n_most]

    async def delete_usage(self, before: date) -> None:
        """See `UsageStore`."""
        self._reach()
        self._usage = {key: usage for key, usage in self._usage.items() if key[0] >= before}

    def _reach(self) -> None:
        if self.is_unavailable:
            raise unavailable()


def too_many_keys(max_keys: int) -> TooLarge:
    """Return the error for a key beyond the maximum."""
    return TooLarge(f"There are {max_keys} keys already, the most this server keeps.", reason="TOO_MANY_KEYS")


def unavailable() -> SourceUnavailable:
    """Return the error of a store that cannot be reached."""
    return SourceUnavailable("The store of keys is unavailable now.", reason="KEY_STORE_UNAVAILABLE", retry_after_s=1.0)
