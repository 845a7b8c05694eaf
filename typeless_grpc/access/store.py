"""What is kept of keys and limits, as a `Protocol`: one store may be shared by many servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from typeless_grpc.access.keys import ApiKey
from typeless_grpc.access.quota import Limit


@dataclass(frozen=True)
class Changes:
    """What changed since an earlier revision, and the revision to ask with the next time."""

    revision: int
    keys: Sequence[ApiKey]
    limits: Sequence[Limit]


class AccessStore(Protocol):
    """Keys and limits, durable. Every call raises SourceUnavailable where the store cannot be reached."""

    async def add_key(self, key: ApiKey, *, max_keys: int) -> ApiKey:
        """Keep a new key, and return it with its position; one with the same id is left as it is and returned.

        Raises TooLarge if there are max_keys that can still be used.
        """
        ...

    async def revoke_key(self, key_id: str) -> ApiKey | None:
        """End a key for good; None where there is none with this id."""
        ...

    async def keys_after(self, position: int, n_most: int) -> Sequence[ApiKey]:
        """At most n_most keys after this position, in the order of creation; 0 is the start."""
        ...

    async def record_uses(self, uses: Mapping[str, float]) -> None:
        """Note the last use of keys, by id; an earlier moment than is known changes nothing."""
        ...

    async def set_limit(self, limit: Limit) -> None:
        """Keep a limit in place of the one with the same key, group and unit."""
        ...

    async def changes(self, since: int) -> Changes:
        """Keys added or revoked and limits set after revision `since`; 0 is everything."""
        ...
