"""Keys and limits in memory, synchronized with a store that other servers also write to.

Calls are checked against memory, so they neither wait for the store nor fail with it. The store numbers its changes, so
reading those after the last one seen is cheap enough to do every second. An unknown key may be new, so it causes a read
at once. So a new key works on all servers, and a revoked one ends on all within seconds.

The numbers of a store that was restored from an older copy begin again at a lower one, so everything is read then, and
after each outage of the store. Keys that the copy lacks stop working. Revocations that it lacks are made again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from typeless_grpc.access.keys import ApiKey, KeyRing, new_key
from typeless_grpc.access.principal import Role
from typeless_grpc.access.quota import Limit, Quotas
from typeless_grpc.access.store import AccessStore, Changes
from typeless_grpc.errors import NotFound, SourceUnavailable, TooLarge

log = logging.getLogger(__name__)

RESTORE_S = 60.0  # a restore may write one table after the other: rows appear without a new number


@dataclass(frozen=True)
class RegistryOptions:
    """max_keys: how many usable keys may exist. refresh_s: between reads of the store.

    flush_s: between writes of the last uses of keys.
    """

    max_keys: int = 10_000
    refresh_s: float = 1.0
    flush_s: float = 30.0


class Registry:
    """Keys and limits: read from memory, written through to the store."""

    def __init__(
        self,
        store: AccessStore,
        ring: KeyRing,
        quotas: Quotas,
        options: RegistryOptions,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """wall_s: Unix time in seconds."""
        self.ring = ring
        self.quotas = quotas
        self.store = store
        self._options = options
        self._wall_s = wall_s
        self._revision = 0
        self._n_begun = self._n_answered = 0  # reads of the store
        self._failure: SourceUnavailable | None = None
        self._restored_until_s = 0.0
        self._refreshing = asyncio.Lock()

    async def load(self, settings_keys: Sequence[ApiKey]) -> None:
        """Read the store, and add the keys of the settings to it, so that they can be listed and revoked."""
        for key in settings_keys:
            await self.store.add_key(key, max_keys=self._options.max_keys)
        await self.refresh()

    async def prepare(self, settings_keys: Sequence[ApiKey], options: RegistryOptions) -> Callable[[], None]:
        """Store the keys of new settings; the returned function puts them and the options in force.

        Raises TooLarge, SourceUnavailable.
        """
        stored = [await self.store.add_key(key, max_keys=options.max_keys) for key in settings_keys]

        def use() -> None:
            self._options = options
            self.ring.set_settings_roles({key.digest: key.role for key in settings_keys})
            self.ring.apply(stored)

        return use

    async def refresh(self) -> None:
        """Read what changed in the store. Callers that arrive during a read share the next one."""
        wanted = self._n_begun + 1  # a read that begins from now on; the running one may have begun too early
        async with self._refreshing:
            if self._n_answered < wanted:
                await self._refresh()
            if self._failure is not None:
                raise self._failure

    async def _refresh(self) -> None:
        """Take over the changes of keys and limits since the last revision, or keep the store's error."""
        self._n_begun += 1
        try:
            changes = None if self._must_read_all() else await self.store.changes(self._revision)
            if changes is None or changes.revision < self._revision:
                changes = await self._all()
        except SourceUnavailable as error:
            self._failure = error
        else:
            self.ring.apply(changes.keys)
            self.quotas.apply(changes.limits)
            self._revision = changes.revision
            self._failure = None
        # Not if it was cancelled or failed otherwise: then there is no result to share.
        self._n_answered = self._n_begun

    def _must_read_all(self) -> bool:
        return self._failure is not None or time.monotonic() < self._restored_until_s

    async def _all(self) -> Changes:
        """Read everything, drop what the store lacks, and make its lost revocations again. Raises SourceUnavailable."""
        keys, limits = self.ring.known(), self.quotas.at_run_time()  # what is made during the read may not be in it
        changes = await self.store.changes(0)
        there = {key.key_id for key in changes.keys}
        lost = [key for key in keys if key.key_id not in there]
        revoked = self.ring.lost_revocations(changes.keys)
        if lost or revoked or changes.revision < self._revision:
            what = f"{len(lost)} keys are lost, {len(revoked)} are revoked again"
            log.error("the store of keys was restored from an older copy: %s", what)
            self._restored_until_s = time.monotonic() + RESTORE_S
        for key in lost:
            if key.from_settings:
                with suppress(TooLarge):
                    await self.store.add_key(key, max_keys=self._options.max_keys)
        for key_id in revoked:
            await self.store.revoke_key(key_id)
        self.ring.forget(key for key in lost if not key.from_settings)
        set_there = {limit.place for limit in changes.limits}
        self.quotas.forget(limit for limit in limits if limit.place not in set_there)
        return changes

    async def find(self, secret: str) -> ApiKey | None:
        """Return the key with this secret, ended ones too. Unknown ones may raise SourceUnavailable."""
        if (key := self.ring.find(secret)) is not None:
            return key
        await self.refresh()
        return self.ring.find(secret)

    async def create_key(self, display_name: str, role: Role, expires_s: float | None) -> tuple[ApiKey, str]:
        """Create a key, and return it with its secret. Raises TooLarge, SourceUnavailable."""
        key, secret = new_key(display_name, role, self._wall_s(), expires_s)
        kept = await self.store.add_key(key, max_keys=self._options.max_keys)
        self.ring.apply([kept])
        return kept, secret

    async def revoke_key(self, key_id: str) -> ApiKey:
        """End a key and the calls made with it. Raises NotFound, SourceUnavailable."""
        key = await self.store.revoke_key(key_id)
        if key is None:
            raise _no_key(key_id)
        self.ring.apply([key])
        return key

    async def keys_after(self, position: int, n_most: int) -> Sequence[ApiKey]:
        """Return a page of keys, their last uses on this server included. Raises SourceUnavailable."""
        await self.flush()
        return await self.store.keys_after(position, n_most)

    async def set_limit(self, limit: Limit) -> None:
        """Put a limit in force, for one key or for all. Raises NotFound (an unknown key), SourceUnavailable."""
        if limit.key_id and limit.key_id not in self.ring:
            await self.refresh()
            if limit.key_id not in self.ring:
                raise _no_key(limit.key_id)
        await self.store.set_limit(limit)
        self.quotas.apply([limit])

    async def flush(self) -> None:
        """Write the last uses of keys to the store. Raises SourceUnavailable."""
        if uses := self.ring.take_uses():
            await self.store.record_uses(uses)

    async def follow(self, report: Callable[[bool], None]) -> None:
        """Read the store periodically, until cancelled. Calls report each time with whether it answered.

        The loop survives every error of a read, because without it revoked keys would stay valid.
        """
        flushed_s = time.monotonic()
        is_logged = False
        while True:
            await asyncio.sleep(self._options.refresh_s)
            try:
                await self.refresh()
                if time.monotonic() - flushed_s >= self._options.flush_s:
                    flushed_s = time.monotonic()
                    await self.flush()
            except SourceUnavailable:
                report(False)
            except Exception:
                if not is_logged:  # the first of a row
                    log.exception("keys and limits cannot be read from the store; retrying")
                is_logged = True
                report(False)
            else:
                is_logged = False
                report(True)


def _no_key(key_id: str) -> NotFound:
    return NotFound(f"There is no key '{key_id}'.", reason="KEY_NOT_FOUND")
