"""Authenticates and authorizes every call.

If keys are off, everyone may make every call except those that manage keys. If they are on, a wrong key is always
refused, and a missing key is refused if one is required. Wrong keys are limited per address: an address that has sent
too many is refused for a while, even with a right key, because otherwise a search for keys could continue at full
speed. A caller whose key or token was accepted from that address before is still admitted, so that a neighbour behind
the same proxy cannot lock it out.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from typeless_grpc.access.keys import ApiKey
from typeless_grpc.access.methods import Access, Rule
from typeless_grpc.access.principal import Principal
from typeless_grpc.access.quota import Quota
from typeless_grpc.access.rate_limit import BucketStore
from typeless_grpc.access.registry import Registry
from typeless_grpc.access.tokens import SelfSigned, TokenVerifier, self_signed
from typeless_grpc.clock import Clock
from typeless_grpc.errors import PermissionDenied, RateLimited, TypelessError, Unauthenticated

# Reasons that count as wrong keys. Expired and revoked keys do not: they were right once.
_GUESSES = frozenset({"KEY_INVALID", "TOKEN_INVALID"})


@dataclass(frozen=True)
class Credentials:
    """The credentials that a caller sent, None if not sent.

    key: `x-api-key`, or `x-goog-api-key`; bearer: `authorization: Bearer`.
    """

    key: str | None = None
    bearer: str | None = None


class Failures:
    """Remembers which addresses sent wrong keys, and which callers sent right ones; both are bounded."""

    def __init__(self, buckets: BucketStore, quota: Quota | None, clock: Clock, *, max_entries: int = 10_000) -> None:
        """quota: wrong keys per address, None for no limit. max_entries: beyond it, the oldest entries are dropped."""
        self._buckets = buckets
        self._quota = quota
        self._clock = clock
        self._max_entries = max_entries
        self._blocked_until_s: OrderedDict[str, float] = OrderedDict()
        self._proven: OrderedDict[tuple[str, str], None] = OrderedDict()

    def use(self, quota: Quota | None) -> None:
        """Count wrong keys with this quota from now on; None for no limit."""
        self._quota = quota

    @property
    def n_remembered(self) -> tuple[int, int]:
        """How many blocked addresses, and how many callers with a good key, are remembered."""
        return len(self._blocked_until_s), len(self._proven)

    def check(self, address: str, caller: str = "") -> None:
        """Raise RateLimited if the address has sent too many wrong keys, unless caller was accepted from it before."""
        wait_s = self._blocked_until_s.get(address, 0.0) - self._clock.now_s()
        if wait_s > 0 and (address, caller) not in self._proven:
            raise self._refusal(address, wait_s)

    def succeeded(self, address: str, caller: str) -> None:
        """Note that a caller was accepted from this address."""
        self._proven[address, caller] = None
        self._proven.move_to_end((address, caller))
        if len(self._proven) > self._max_entries:
            self._proven.popitem(last=False)

    async def failed(self, address: str) -> None:
        """Count a wrong key from this address. Raises RateLimited if there were too many."""
        if self._quota is None:
            return
        taken = await self._buckets.take(f"wrong keys:{address}", self._quota, 1)
        if taken.is_allowed:
            return
        wait_s = taken.retry_after_s or 0.0
        self._blocked_until_s[address] = self._clock.now_s() + wait_s
        self._blocked_until_s.move_to_end(address)
        if len(self._blocked_until_s) > self._max_entries:
            self._blocked_until_s.popitem(last=False)
        raise self._refusal(address, wait_s)

    def _refusal(self, address: str, wait_s: float) -> RateLimited:
        return RateLimited(
            f"Too many wrong keys came from this address. Try again in {wait_s:.1f} s.",
            retry_after_s=wait_s,
            subject=f"address:{address}",
            quota=f"wrong keys: {self._quota}",
        )


class Gate:
    """Turns credentials into a principal, and checks whether it may make the call."""

    def __init__(
        self,
        registry: Registry | None,
        tokens: TokenVerifier | None,
        failures: Failures,
        *,
        is_required: bool,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """registry: None if keys are off. tokens: None if tokens are not accepted. wall_s: Unix time in seconds."""
        self._registry = registry
        self._tokens = tokens
        self._failures = failures
        self._is_required = is_required
        self._wall_s = wall_s

    def use(self, tokens: TokenVerifier | None, *, is_required: bool) -> None:
        """Apply these from the next call on; see the constructor."""
        self._tokens, self._is_required = tokens, is_required

    async def admit(self, credentials: Credentials, address: str, rule: Rule, *, is_local: bool = False) -> Principal:
        """Return the caller, if it may make this call. is_local: it calls from this machine, not through a proxy.

        Raises Unauthenticated, PermissionDenied, RateLimited (too many wrong keys) or SourceUnavailable.
        """
        principal = await self._identify(credentials, address, is_local=is_local)
        needs_admin = rule.access is Access.ADMIN_KEY or (rule.access is Access.ADMIN and self._registry is not None)
        if needs_admin and not principal.is_admin:
            if principal.is_anonymous:
                raise Unauthenticated("This call needs an admin key" + self._how(), reason="KEY_REQUIRED")
            raise PermissionDenied("This call needs an admin key; this is a user's.", reason="ADMIN_KEY_REQUIRED")
        if rule.access is Access.USER and principal.is_anonymous and self._is_required:
            raise Unauthenticated("This call needs a key" + self._how(), reason="KEY_REQUIRED")
        return principal

    def _how(self) -> str:
        if self._registry is None:
            return ", and this server has none: its operator has left TYPELESS_AUTH_ENABLED off."
        return ": send it as `x-api-key`, or as `authorization: Bearer`."

    async def _identify(self, credentials: Credentials, address: str, *, is_local: bool) -> Principal:
        """Return the principal of the credentials; without any, an anonymous one named after its address."""
        if self._registry is None:
            return Principal(f"address:{address}", owner="", is_anonymous=True, is_local=is_local)
        key, bearer = credentials.key, credentials.bearer
        if key is None and bearer is not None and (token := self._self_signed(bearer)) is not None:
            key, bearer = token.key, None
        sent = key if key is not None else bearer
        if sent is None:
            return Principal(f"address:{address}", owner=f"address:{address}", is_anonymous=True)
        try:
            principal = await self._look_up(sent, address, is_bearer=key is None)
        except TypelessError as error:
            if error.reason in _GUESSES:
                await self._failures.failed(address)
            raise
        self._failures.check(address, principal.id)
        self._failures.succeeded(address, principal.id)
        return principal

    def _self_signed(self, bearer: str) -> SelfSigned | None:
        """Return what Google's clients send without being asked: a token that they signed themselves, else None."""
        token = self_signed(bearer) if bearer.count(".") == 2 else None
        is_verified = token is not None and self._tokens is not None and self._tokens.issuer == token.issuer
        return None if is_verified else token

    async def _look_up(self, sent: str, address: str, *, is_bearer: bool) -> Principal:
        """Return the holder of a key or token. An unknown one is looked up only while the address has attempts left."""
        assert self._registry is not None
        tokens = self._tokens if is_bearer and sent.count(".") == 2 else None
        if (key := self._registry.ring.find(sent)) is None:
            # An unknown caller must not cause more fetches of keys than its address has attempts.
            try:
                self._failures.check(address)
            except RateLimited as refusal:
                return _at_once(tokens, sent, refusal)
            if tokens is not None:
                return await tokens.verify(sent)
            key = await self._registry.find(sent)
        return self._holder(key)

    def _holder(self, key: ApiKey | None) -> Principal:
        assert self._registry is not None
        if key is None:
            raise Unauthenticated("This key is not known here.", reason="KEY_INVALID")
        if key.is_revoked:
            raise Unauthenticated("This key was revoked.", reason="KEY_REVOKED")
        now_s = self._wall_s()
        if key.expires_s is not None and key.expires_s <= now_s:
            raise Unauthenticated("This key has expired.", reason="KEY_EXPIRED")
        self._registry.ring.used(key.key_id, now_s)
        return key.principal


def _at_once(tokens: TokenVerifier | None, sent: str, refusal: RateLimited) -> Principal:
    """Return the caller of a token if it can be verified without a fetch; otherwise raise the refusal."""
    if tokens is None:
        raise refusal
    try:
        return tokens.verify_at_once(sent)
    except Unauthenticated:
        raise refusal from None
