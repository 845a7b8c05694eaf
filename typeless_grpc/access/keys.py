"""API keys: made once, kept as a hash, found in constant time.

A key's secret is 256 random bits, so a plain SHA-256 is all the hash it needs: there is nothing to guess, and a slow
hash would only make every call slow. Keys of the settings may be weaker, and are hashed the same way; they never leave
the process but as that hash.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from typeless_grpc.access.principal import Principal, Role

SECRET_PREFIX = "tl_"  # so that a leaked key is recognized for what it is
SECRET_BYTES = 32
SHOWN_CHARACTERS = 9  # of a secret, as ApiKey.prefix

# Compared with where no key has the digest, so that a wrong key takes as long as a right one.
_NO_DIGEST = bytes(32)
_INDEX_BYTES = 8


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key; times are Unix seconds.

    position: its place in the order of creation, given by the store. from_settings: it stands in the settings of a
    server, and holds only on servers that have it there.
    """

    key_id: str
    display_name: str
    prefix: str
    role: Role
    digest: bytes
    created_s: float
    expires_s: float | None = None
    last_use_s: float | None = None
    is_revoked: bool = False
    from_settings: bool = False
    position: int = 0

    @property
    def principal(self) -> Principal:
        """The caller that this key makes of whoever sends it."""
        name = f"key:{self.key_id}"
        return Principal(name, name, self.role, self.key_id, self.expires_s)


def digest_of(secret: str) -> bytes:
    """What is kept of a secret: SHA-256, 32 bytes."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def new_key(display_name: str, role: Role, created_s: float, expires_s: float | None) -> tuple[ApiKey, str]:
    """A key and its secret, which exists nowhere else."""
    secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    key_id = f"k{secrets.token_hex(8)}"
    prefix = secret[:SHOWN_CHARACTERS]
    return ApiKey(key_id, display_name, prefix, role, digest_of(secret), created_s, expires_s), secret


def settings_key(secret: str, role: Role, created_s: float) -> ApiKey:
    """The key that a secret of the settings is; its id stays the same over restarts and on every server."""
    digest = digest_of(secret)
    key_id = "s" + hashlib.sha256(b"typeless key id" + digest).hexdigest()[:16]
    name = "TYPELESS_ADMIN_KEYS" if role is Role.ADMIN else "TYPELESS_API_KEYS"
    # A key that people chose may be short: its first characters would be too much of it.
    shown = secret[:SHOWN_CHARACTERS] if len(secret) >= 4 * SHOWN_CHARACTERS else ""
    return ApiKey(key_id, name, shown, role, digest, created_s, from_settings=True)


class KeyRing:
    """The keys in memory: found by secret, and watched by those who must know when one ends."""

    def __init__(self, settings_roles: Mapping[bytes, Role] | None = None) -> None:
        """settings_roles: digest to role, of the secrets in this server's settings."""
        self._settings_roles = settings_roles or {}
        self._keys: dict[str, ApiKey] = {}
        self._index: dict[bytes, set[str]] = {}
        self._watchers: dict[str, set[Callable[[], None]]] = {}
        self._last_uses_s: dict[str, float] = {}

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._keys

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret, ended ones too; None where no key has it."""
        digest = digest_of(secret)
        found = None
        for key_id in self._index.get(digest[:_INDEX_BYTES], ()):
            key = self._keys[key_id]
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            hmac.compare_digest(_NO_DIGEST, digest)
        return found

    def used(self, key_id: str, now_s: float) -> None:
        """A call was made with it."""
        self._last_uses_s[key_id] = now_s

    def take_uses(self) -> Mapping[str, float]:
        """Key to the moment of its last use, of those used since this was asked last."""
        uses, self._last_uses_s = self._last_uses_s, {}
        return uses

    def apply(self, keys: Iterable[ApiKey]) -> None:
        """Take up keys as the store has them; those who watch one that is revoked are told."""
        for key in keys:
            role = self._settings_roles.get(key.digest) if key.from_settings else key.role
            if role is None:
                continue
            self._keys[key.key_id] = replace(key, role=role)
            self._index.setdefault(key.digest[:_INDEX_BYTES], set()).add(key.key_id)
            if key.is_revoked:
                for tell in tuple(self._watchers.get(key.key_id, ())):
                    tell()

    def watch(self, key_id: str, on_end: Callable[[], None]) -> Callable[[], None]:
        """Call on_end when the key is revoked; returns what ends the watch."""
        watchers = self._watchers.setdefault(key_id, set())
        watchers.add(on_end)

        def stop() -> None:
            watchers.discard(on_end)
            if not watchers and self._watchers.get(key_id) is watchers:
                del self._watchers[key_id]

        return stop
