"""API keys, which are stored as a hash and looked up in constant time.

A key's secret is 256 random bits, so a plain SHA-256 is enough: nobody can find it by brute force, and a slow hash
would only slow down every call. Keys in the settings may be weaker. They are hashed in the same way, and only this hash
leaves the process.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from typeless_grpc.access.principal import Principal, Role

SECRET_PREFIX = "tl_"  # so that scanners for leaked secrets recognize it
SECRET_BYTES = 32
SHOWN_CHARACTERS = 9  # of a secret, as ApiKey.prefix

# Compared if no key has the digest, so that a wrong key takes as long as a right one.
_NO_DIGEST = bytes(32)
_INDEX_BYTES = 8


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret. Times are Unix seconds.

    position: in the order of creation, assigned by the store. from_settings: it comes from the settings of a server,
    and is valid only on servers with that setting.
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
        """The caller of a call with this key."""
        name = f"key:{self.key_id}"
        return Principal(name, name, self.role, self.key_id, self.expires_s)


def digest_of(secret: str) -> bytes:
    """Return the hash of a secret: SHA-256, 32 bytes."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def new_key(display_name: str, role: Role, created_s: float, expires_s: float | None) -> tuple[ApiKey, str]:
    """Return a new key and its secret, which is not stored."""
    secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    key_id = f"k{secrets.token_hex(8)}"
    prefix = secret[:SHOWN_CHARACTERS]
    return ApiKey(key_id, display_name, prefix, role, digest_of(secret), created_s, expires_s), secret


def settings_key(secret: str, role: Role, created_s: float) -> ApiKey:
    """Return the key for a secret of the settings. Its id is the same after restarts and on every server."""
    digest = digest_of(secret)
    key_id = "s" + hashlib.sha256(b"typeless key id" + digest).hexdigest()[:16]
    name = "TYPELESS_ADMIN_KEYS" if role is Role.ADMIN else "TYPELESS_API_KEYS"
    # A key that a person chose may be short, so its first characters could reveal too much.
    shown = secret[:SHOWN_CHARACTERS] if len(secret) >= 4 * SHOWN_CHARACTERS else ""
    return ApiKey(key_id, name, shown, role, digest, created_s, from_settings=True)


class KeyRing:
    """The keys in memory, found by secret. Calls can be notified when a key ends."""

    def __init__(self, settings_roles: Mapping[bytes, Role] | None = None) -> None:
        """settings_roles: digest to role, of the secrets in this server's settings."""
        self._settings_roles = settings_roles or {}
        self._keys: dict[str, ApiKey] = {}
        self._index: dict[bytes, set[str]] = {}
        self._watchers: dict[str, set[Callable[[], None]]] = {}
        self._last_uses_s: dict[str, float] = {}

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._keys

    def set_settings_roles(self, roles: Mapping[bytes, Role]) -> None:
        """Replace the secrets of the settings. A key that is no longer among them is forgotten, and its calls end."""
        self._settings_roles = roles
        for key in [key for key in self._keys.values() if key.from_settings]:
            if (role := roles.get(key.digest)) is not None:
                self._keys[key.key_id] = replace(key, role=role)
                continue
            self._forget(key)

    def find(self, secret: str) -> ApiKey | None:
        """Return the key with this secret, ended ones too; None if there is none."""
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
        """Note that a call used the key."""
        self._last_uses_s[key_id] = now_s

    def take_uses(self) -> Mapping[str, float]:
        """Return the times of the last uses of keys, by id, for the keys used since the last call of this."""
        uses, self._last_uses_s = self._last_uses_s, {}
        return uses

    def apply(self, keys: Iterable[ApiKey]) -> None:
        """Replace keys by those of the store, and notify the watchers of revoked ones. A revoked key stays revoked."""
        for key in keys:
            role = self._settings_roles.get(key.digest) if key.from_settings else key.role
            if role is None:
                continue
            is_revoked = key.is_revoked or self._is_revoked(key.key_id)
            self._keys[key.key_id] = replace(key, role=role, is_revoked=is_revoked)
            self._index.setdefault(key.digest[:_INDEX_BYTES], set()).add(key.key_id)
            if key.is_revoked:
                self._notify(key.key_id)

    def known(self) -> list[ApiKey]:
        """The keys in memory, ended ones too."""
        return list(self._keys.values())

    def forget(self, keys: Iterable[ApiKey]) -> None:
        """Drop keys that the store no longer has, and notify their watchers."""
        for key in keys:
            self._forget(key)

    def lost_revocations(self, keys: Iterable[ApiKey]) -> list[str]:
        """The ids of those of the store's keys that are revoked here and not there."""
        return [key.key_id for key in keys if not key.is_revoked and self._is_revoked(key.key_id)]

    def _is_revoked(self, key_id: str) -> bool:
        return key_id in self._keys and self._keys[key_id].is_revoked

    def _forget(self, key: ApiKey) -> None:
        self._keys.pop(key.key_id, None)
        self._index.get(key.digest[:_INDEX_BYTES], set()).discard(key.key_id)
        self._notify(key.key_id)

    def _notify(self, key_id: str) -> None:
        for tell in tuple(self._watchers.get(key_id, ())):
            tell()

    def watch(self, key_id: str, on_end: Callable[[], None]) -> Callable[[], None]:
        """Call on_end when the key is revoked. Returns a function that ends the watch."""
        watchers = self._watchers.setdefault(key_id, set())
        watchers.add(on_end)

        def stop() -> None:
            watchers.discard(on_end)
            if not watchers and self._watchers.get(key_id) is watchers:
                del self._watchers[key_id]

        return stop
