"""The store of keys, limits and usage, as a `Protocol`. Many servers may share one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from typeless_grpc.access.keys import ApiKey
from typeless_grpc.access.quota import Limit
from typeless_grpc.access.usage import UsageStore


@dataclass(frozen=True)
class Changes:
    """The changes since an earlier revision, and the revision to pass the next time."""

    revision: int
    keys: Sequence[ApiKey]
    limits: Sequence[Limit]


class AccessStore(UsageStore, Protocol):
    """Durable keys, limits and usage. Every call raises SourceUnavailable if the store is unavailable."""

    async def add_key(self, key: ApiKey, *, max_keys: int) -> ApiKey:
        """Store a new key, and return it with its position. An existing key with this id is returned unchanged.

        Raises TooLarge if there are max_keys usable keys.
        """
        ...

    async def revoke_key(self, key_id: str) -> ApiKey | None:
        """Revoke a key for good; None if there is none with this id."""
        ...

    async def keys_after(self, position: int, n_most: int) -> Sequence[ApiKey]:
        """Return at most n_most keys after this position, in the order of creation; 0 is the start."""
        ...

    async def record_uses(self, uses: Mapping[str, float]) -> None:
        """Store the last uses of keys, by id. An earlier time than the stored one changes nothing."""
        ...

    async def set_limit(self, limit: Limit) -> None:
        """Replace the limit with the same key, group and unit."""
        ...

    async def changes(self, since: int) -> Changes:
        """Return the keys added or revoked and the limits set after revision `since`; 0 is everything."""
        ...
