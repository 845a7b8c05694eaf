"""Settings of keys and tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from typeless_grpc.config.values import Group, Reloadable, SplitAtCommas

OpenService = Literal["health", "reflection", "server"]
JwtAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class AccessSettings(Group):
    """API keys and JSON Web Tokens: which callers are admitted, and as users or admins."""

    auth_enabled: bool = Field(
        False,
        description="Check callers' keys. If disabled, anyone who can reach the port may make every call except "
        "those of AdminService.",
    )
    require_auth: Reloadable[bool] = Field(
        False,
        description="Refuse callers without a key. If disabled, they are anonymous and have a part of each limit. "
        "Wrong keys are always refused.",
    )
    api_keys: Reloadable[Annotated[tuple[SecretStr, ...], NoDecode, SplitAtCommas]] = Field(
        (), description="Keys of users, separated by commas, in addition to those created with AdminService."
    )
    admin_keys: Reloadable[Annotated[tuple[SecretStr, ...], NoDecode, SplitAtCommas]] = Field(
        (),
        description="Keys of admins, separated by commas. Use one to create the first key with AdminService.",
    )
    open_services: Reloadable[Annotated[tuple[OpenService, ...], NoDecode, SplitAtCommas]] = Field(
        ("health", "reflection", "server"),
        description="Services that need no key even if `require_auth` is on: health, reflection, server "
        "(ServerService).",
    )
    max_api_keys: Reloadable[int] = Field(
        10_000, ge=1, le=1_000_000, description="Keys that may exist. Revoked and expired keys do not count."
    )
    key_refresh_s: float = Field(
        1.0,
        ge=0.05,
        le=60,
        description="Seconds between reads of the database for keys and limits that other servers changed.",
    )
    usage_retention_days: int = Field(
        400,
        ge=1,
        le=36_500,
        description="Days for which the usage of each caller is kept: calls, audio and jobs by day "
        "(`typeless keys usage`). Usage is counted while `auth_enabled` is on.",
    )

    jwt_issuer: Reloadable[str] = Field(
        "", description="Accept JSON Web Tokens of this issuer (`iss`) in addition to keys. Tokens are off by default."
    )
    jwt_audience: Reloadable[str] = Field(
        "", description="Required `aud` of a token: the name of this service at the issuer."
    )
    jwt_jwks_url: Reloadable[str] = Field("", description="URL of the issuer's signing keys, https://…/jwks.json.")
    jwt_algorithms: Reloadable[Annotated[tuple[JwtAlgorithm, ...], NoDecode, SplitAtCommas]] = Field(
        ("RS256", "ES256"),
        min_length=1,
        description="Accepted signature algorithms. A token signed with another one is refused.",
    )
    jwt_roles_claim: Reloadable[str] = Field(
        "roles",
        min_length=1,
        description="Claim with the caller's roles. Dots separate nested claims (realm_access.roles).",
    )
    jwt_user_role: Reloadable[str] = Field(
        "", description="Role that a token must have. By default every valid token may call."
    )
    jwt_admin_role: Reloadable[str] = Field(
        "admin", description="Role that makes a caller an admin. Empty means no role does."
    )

    @field_validator("require_auth", "api_keys", "admin_keys", "jwt_issuer")
    @classmethod
    def _requires_auth_enabled(cls, value: Any, others: ValidationInfo) -> Any:
        if value and not others.data.get("auth_enabled", True):
            raise ValueError("has no effect unless auth_enabled is true")
        return value

    @field_validator("admin_keys")
    @classmethod
    def _have_one_role_each(cls, keys: tuple[SecretStr, ...], others: ValidationInfo) -> tuple[SecretStr, ...]:
        if set(keys) & set(others.data.get("api_keys", ())):
            raise ValueError("a key cannot be in both api_keys and admin_keys")
        return keys

    @field_validator("jwt_audience", "jwt_jwks_url")
    @classmethod
    def _check_set_with_issuer(cls, value: str, others: ValidationInfo) -> str:
        if "jwt_issuer" in others.data and bool(value) != bool(others.data["jwt_issuer"]):
            raise ValueError("jwt_issuer, jwt_audience and jwt_jwks_url must be set together")
        return value

    @field_validator("jwt_jwks_url")
    @classmethod
    def _check_http_url(cls, url: str) -> str:
        if url and not url.startswith(("https://", "http://")):
            raise ValueError("must be an http(s) URL")
        return url
