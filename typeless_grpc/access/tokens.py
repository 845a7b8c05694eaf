"""JSON Web Tokens of an identity provider, beside API keys.

The operator chooses the algorithms, all of them asymmetric; the algorithm that a token names is never trusted. The
provider's keys are fetched once, again when they are old, and when a token names an unknown key (rotation), but not
more often than the options allow, because anyone can invent a name. While the provider is unavailable, known keys
continue to work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import jwt

from typeless_grpc.access.principal import Principal, Role
from typeless_grpc.clock import Clock
from typeless_grpc.errors import SourceUnavailable, Unauthenticated

# Asymmetric only: with an HMAC, everyone who can verify a token could also create one.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_SERVICE_ACCOUNTS = ".gserviceaccount.com"
# The accounts that `typeless keys google-account` writes. The tokens of the first carry an API key as `kid`.
KEY_ACCOUNT = "key@typeless.iam.gserviceaccount.com"
KEYLESS_ACCOUNT = "anonymous@typeless.iam.gserviceaccount.com"
RETRY_S = 1.0  # between fetches while there are no keys at all
MAX_SUBJECT_CHARACTERS = 255  # RFC 7519 and OpenID Connect Core, section 2


@dataclass(frozen=True)
class TokenOptions:
    """issuer, audience: what a token's `iss` and `aud` must be. algorithms: of `ALGORITHMS`.

    roles_claim: the claim with the roles, with dots into objects ("realm_access.roles"); a list, or words with spaces.
    user_role: the role that every caller needs, "" for none. admin_role: the role of admins, "" for none. leeway_s: how
    far clocks may differ. keys_max_age_s: age at which the provider's keys are fetched again. min_fetch_interval_s:
    time between fetches for unknown names.
    """

    issuer: str
    audience: str
    algorithms: Sequence[str] = ("RS256", "ES256")
    roles_claim: str = "roles"
    user_role: str = ""
    admin_role: str = "admin"
    leeway_s: float = 30.0
    keys_max_age_s: float = 300.0
    min_fetch_interval_s: float = 10.0


class SigningKeys:
    """The provider's public keys by name, fetched when needed."""

    def __init__(
        self,
        fetch: Callable[[], Mapping[str, jwt.PyJWK]],
        threads: Executor,
        clock: Clock,
        options: TokenOptions,
        report: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """fetch: reads the keys from the provider, in a thread; raises jwt.PyJWTError if it cannot.

        report: called after each fetch with whether the provider answered.
        """
        self._fetch = fetch
        self._report = report
        self._threads = threads
        self._clock = clock
        self._options = options
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._tried_s = float("-inf")
        self._fetched_s = float("-inf")
        self._is_unavailable = False
        self._fetching = asyncio.Lock()

    async def get(self, name: str) -> jwt.PyJWK | None:
        """Return the key of this name (`kid`), None if the provider has none. Raises SourceUnavailable."""
        # While the provider is unavailable, one caller at a time waits for a fetch; the others use the known keys.
        is_tried_by_another = self._is_unavailable and self._fetching.locked()
        if name not in self._keys or (self._is_old() and not is_tried_by_another):
            await self._refresh(name)
        return self._keys.get(name)

    def known(self, name: str) -> jwt.PyJWK | None:
        """Return the key of this name in the last fetched set."""
        return self._keys.get(name)

    def _is_old(self) -> bool:
        return self._clock.now_s() - self._fetched_s > self._options.keys_max_age_s

    async def _refresh(self, name: str) -> None:
        """Fetch the issuer's keys unless key `name` is known now, at most once per interval."""
        async with self._fetching:
            if name in self._keys and not self._is_old():
                return
            interval_s = self._options.min_fetch_interval_s if self._keys else RETRY_S
            if self._clock.now_s() - self._tried_s >= interval_s:
                await self._fetch_all()
            if not self._keys:
                raise SourceUnavailable(
                    "The identity provider's keys cannot be fetched now.",
                    reason="TOKEN_KEYS_UNAVAILABLE",
                    retry_after_s=RETRY_S,
                )

    async def _fetch_all(self) -> None:
        try:
            self._keys = await asyncio.get_running_loop().run_in_executor(self._threads, self._fetch)
        except jwt.PyJWTError:
            self._is_unavailable = True
        else:
            self._is_unavailable = False
            self._fetched_s = self._clock.now_s()
        finally:
            # From the end of the fetch: callers that waited for it share its result.
            self._tried_s = self._clock.now_s()
        self._report(not self._is_unavailable)


def jwks(url: str, *, timeout_s: float) -> Callable[[], Mapping[str, jwt.PyJWK]]:
    """Return a fetch for `SigningKeys`: the key set at url. Raises jwt.PyJWTError for a url that is not http(s)."""
    client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=timeout_s)

    def fetch() -> Mapping[str, jwt.PyJWK]:
        try:
            return {key.key_id: key for key in client.get_signing_keys() if key.key_id}
        except (OSError, ValueError) as error:
            # The library does not handle a proxy's page in place of JSON, or a connection that breaks halfway.
            raise jwt.PyJWKClientError(f"no key set came from there: {type(error).__name__}") from error

    return fetch


class TokenVerifier:
    """Verifies tokens, and returns their callers."""

    def __init__(self, keys: SigningKeys, options: TokenOptions) -> None:
        self._keys = keys
        self._options = options

    @property
    def issuer(self) -> str:
        """The issuer of the tokens that are accepted."""
        return self._options.issuer

    async def verify(self, token: str) -> Principal:
        """Return the caller of a token. Raises Unauthenticated, SourceUnavailable."""
        name = _key_name(token)
        return self._caller(token, await self._keys.get(name) if name is not None else None)

    def verify_at_once(self, token: str) -> Principal:
        """Return the caller of a token that a known key signed, without a fetch. Raises Unauthenticated."""
        name = _key_name(token)
        return self._caller(token, self._keys.known(name) if name is not None else None)

    def _caller(self, token: str, key: jwt.PyJWK | None) -> Principal:
        """Check a token's signature, issuer, audience and times, and return the principal that it names."""
        if key is None:
            raise _invalid("its signing key is not among the issuer's")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=list(self._options.algorithms),
                audience=self._options.audience,
                issuer=self._options.issuer,
                leeway=self._options.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated("This token has expired.", reason="TOKEN_EXPIRED") from error
        except jwt.PyJWTError as error:
            # Only the name of the error is shown: its text could repeat the content of the token.
            raise _invalid(type(error).__name__) from error
        return self._principal(claims)

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        """Return the principal of a valid token's claims. Raises Unauthenticated if the required role is missing."""
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_CHARACTERS:
            raise _invalid("it names no subject")
        if "\0" in subject or any("\ud800" <= character <= "\udfff" for character in subject):
            raise _invalid("its subject cannot be stored")  # neither JSON's NUL nor lone surrogates are text
        roles = _roles(claims, self._options.roles_claim)
        is_admin = bool(self._options.admin_role) and self._options.admin_role in roles
        if not is_admin and self._options.user_role and self._options.user_role not in roles:
            raise Unauthenticated(
                f"This token lacks the role '{self._options.user_role}', which this server requires.",
                reason="TOKEN_ROLE_MISSING",
            )
        name = f"token:{subject}"
        return Principal(name, name, Role.ADMIN if is_admin else Role.USER)


@dataclass(frozen=True)
class SelfSigned:
    """A token that a service account signed for itself, as Google's clients do.

    Its signature is not verified, so it proves nothing by itself. issuer: the account. key: the API key that it carries
    as the id of its signing key, if the account is `KEY_ACCOUNT`.
    """

    issuer: str
    key: str | None = None


def self_signed(token: str) -> SelfSigned | None:
    """Return what a service account's own token says; None for any other token."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
        name = jwt.get_unverified_header(token).get("kid")
    except jwt.PyJWTError:
        return None
    issuer = claims.get("iss")
    if not isinstance(issuer, str) or not issuer.endswith(_SERVICE_ACCOUNTS) or claims.get("sub") != issuer:
        return None
    return SelfSigned(issuer, name if issuer == KEY_ACCOUNT and isinstance(name, str) else None)


def _key_name(token: str) -> str | None:
    """Return the name of the key in the header of a token."""
    try:
        name = jwt.get_unverified_header(token).get("kid")
    except jwt.PyJWTError as error:
        raise _invalid(type(error).__name__) from error
    return name if isinstance(name, str) else None


def _roles(claims: Mapping[str, Any], path: str) -> Sequence[str]:
    value: Any = claims
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    if isinstance(value, str):
        return value.split()
    return [role for role in value if isinstance(role, str)] if isinstance(value, list) else []


def _invalid(why: str) -> Unauthenticated:
    return Unauthenticated(f"This token is not good here: {why}.", reason="TOKEN_INVALID")
