"""Who may call, and how much: keys, tokens, quotas."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from typeless_grpc.access.address import networks
from typeless_grpc.access.gate import Failures, Gate
from typeless_grpc.access.keys import ApiKey, KeyRing, settings_key
from typeless_grpc.access.methods import Group, Rules, rules
from typeless_grpc.access.principal import Role
from typeless_grpc.access.quota import Limit, Quota, Quotas, Unit, is_counted
from typeless_grpc.access.rate_limit import BucketStore, Limiter
from typeless_grpc.access.registry import Registry, RegistryOptions
from typeless_grpc.access.store import AccessStore
from typeless_grpc.access.tokens import SigningKeys, TokenOptions, TokenVerifier, jwks
from typeless_grpc.app.tasks import ended
from typeless_grpc.clock import Clock, SystemClock
from typeless_grpc.config import Settings
from typeless_grpc.errors import InvalidInput, SourceUnavailable
from typeless_grpc.health import Vital
from typeless_grpc.interceptors.auth import AuthInterceptor
from typeless_grpc.interceptors.rate_limit import RateLimitInterceptor
from typeless_grpc.interceptors.seam import Interceptor
from typeless_grpc.servicers.admin import AdminServicer
from typeless_grpc.stores.buckets import FallbackBuckets, MemoryBuckets, RedisBuckets, RefusingBuckets
from typeless_grpc.stores.memory_access import MemoryAccessStore
from typeless_grpc.telemetry.logs import get_logger
from typeless_grpc.telemetry.metrics import Metrics
from typeless_grpc.telemetry.reachability import Freshness, Reachability

log = get_logger(__name__)

# Without an answer of their store for so long, keys may be good that no longer should be: that is an error.
KEYS_STALE_S = 60.0
JWKS_TIMEOUT_S = 5.0  # for the identity provider to send its keys, a few kilobytes


@dataclass(frozen=True)
class Access:
    """Who may call, and how much. interceptors: those that see to it, in order. vitals: what changing keys needs."""

    registry: Registry
    rules: Rules
    interceptors: Sequence[Interceptor]
    vitals: Sequence[Vital] = ()


@asynccontextmanager
async def open_access(settings: Settings, metrics: Metrics) -> AsyncIterator[Access]:
    """Keys, tokens and limits as the settings want them."""
    async with AsyncExitStack() as stack:
        clock = SystemClock()
        known = rules(settings.open_services)
        quotas = Quotas(limits(settings), anonymous_percent=_anonymous_percent(settings))
        # While keys are off nobody can change anything, and there is nothing to keep.
        registry = _registry(settings, MemoryAccessStore(), quotas)
        if settings.auth_enabled:
            registry = await stack.enter_async_context(open_registry(settings, quotas))
        tokens = None
        vitals: list[Vital] = []
        if settings.auth_enabled:
            await registry.load(settings_keys(settings))
            stack.push_async_callback(_flush, registry)
            reached = Reachability("store of keys", metrics.key_store_up)
            fresh = Freshness(
                "keys and limits have not been read: keys that were revoked since are still good here",
                metrics.keys_read,
                KEYS_STALE_S,
            )
            fresh.report(True)  # they have just been loaded

            def report(answers: bool) -> None:
                reached.report(answers)
                fresh.report(answers)

            following = asyncio.create_task(registry.follow(report))
            stack.push_async_callback(ended, following)
            is_reached = functools.partial(_is_reached, reached, following)
            vitals.append(Vital("store of keys", frozenset({AdminServicer.NAME}), is_reached))
            if settings.jwt_issuer:
                threads = stack.enter_context(ThreadPoolExecutor(1, "token-keys"))
                provider = Reachability("identity provider's keys", metrics.token_keys_up)
                tokens = _tokens(settings, threads, clock, provider.report)
        wrong_keys = Quota.parse(settings.rate_limit_wrong_keys) if settings.rate_limit_enabled else None
        failures = Failures(MemoryBuckets(settings.rate_limit_max_buckets), wrong_keys, clock)
        gate = Gate(registry if settings.auth_enabled else None, tokens, failures, is_required=settings.require_auth)
        ring = registry.ring if settings.auth_enabled else None
        interceptors: list[Interceptor] = [
            AuthInterceptor(gate, ring, known, networks(settings.trusted_proxies), metrics)
        ]
        if settings.rate_limit_enabled:
            buckets = await stack.enter_async_context(_buckets(settings, clock, metrics))
            limiter = Limiter(quotas, buckets, long_audio_s=settings.long_audio_s)
            interceptors.append(RateLimitInterceptor(limiter, known, metrics))
        yield Access(registry, known, interceptors, vitals)


def _is_reached(reached: Reachability, following: asyncio.Task[None]) -> bool:
    return reached.answers and not following.done()


async def _flush(registry: Registry) -> None:
    """Write down when keys were last used, if that can be done: nothing depends on it."""
    try:
        await registry.flush()
    except SourceUnavailable:
        log.warning("when keys were last used is not written down: their store does not answer")


@asynccontextmanager
async def open_registry(settings: Settings, quotas: Quotas | None = None) -> AsyncIterator[Registry]:
    """Keys and limits with the store that the settings name. Raises SourceUnavailable if it cannot be reached."""
    from typeless_grpc.stores import sql_access

    url = settings.database_url.get_secret_value()
    if not url:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        url = sql_access.sqlite_url(settings.data_dir / "access.sqlite3")
    store = sql_access.SqlAccessStore(url, time.time)
    try:
        await store.open()
        yield _registry(settings, store, quotas or Quotas([]))
    finally:
        await store.close()


def _registry(settings: Settings, store: AccessStore, quotas: Quotas) -> Registry:
    ring = KeyRing({key.digest: key.role for key in settings_keys(settings)})
    return Registry(store, ring, quotas, RegistryOptions(settings.max_api_keys, settings.key_refresh_s))


@asynccontextmanager
async def _buckets(settings: Settings, clock: Clock, metrics: Metrics) -> AsyncIterator[BucketStore]:
    local = MemoryBuckets(settings.rate_limit_max_buckets)
    if not (url := settings.redis_url.get_secret_value()):
        yield local
        return
    try:
        shared = RedisBuckets(url, timeout_s=settings.redis_timeout_s)
    except ValueError as error:  # its text could repeat a part of the password
        raise InvalidInput("redis_url", "is no URL of a Redis", reason="CONFIG_INVALID") from error
    try:
        fallback = local if settings.redis_fallback == "local" else RefusingBuckets()
        yield FallbackBuckets(shared, fallback, clock, metrics)
    finally:
        await shared.close()


def settings_keys(settings: Settings) -> list[ApiKey]:
    """The keys that stand in the settings."""
    roles = ((settings.api_keys, Role.USER), (settings.admin_keys, Role.ADMIN))
    return [settings_key(secret.get_secret_value(), role, time.time()) for secrets, role in roles for secret in secrets]


def limits(settings: Settings) -> list[Limit]:
    """The limits that stand in the settings."""
    calls = {group: Quota.parse(getattr(settings, f"rate_limit_{group.value}")) for group in Group}
    found = [Limit(group, Unit.CALLS, quota) for group, quota in calls.items() if quota is not None]
    if (audio := Quota.parse(settings.rate_limit_audio)) is not None:
        found += [Limit(g, Unit.AUDIO_SECONDS, audio) for g in Group if is_counted(g, Unit.AUDIO_SECONDS)]
    for group in Group:
        n_open = settings.max_streams_per_caller if group is Group.STREAM else settings.max_calls_per_caller
        if is_counted(group, Unit.CONCURRENT_CALLS):
            found.append(Limit(group, Unit.CONCURRENT_CALLS, Quota.at_once(n_open)))
    return found


def _anonymous_percent(settings: Settings) -> int:
    """Where keys are off, nobody has one, and the limits are meant for everyone."""
    return settings.rate_limit_anonymous_percent if settings.auth_enabled else 100


def _tokens(
    settings: Settings, threads: ThreadPoolExecutor, clock: Clock, report: Callable[[bool], None]
) -> TokenVerifier:
    options = TokenOptions(
        settings.jwt_issuer,
        settings.jwt_audience,
        settings.jwt_algorithms,
        settings.jwt_roles_claim,
        settings.jwt_user_role,
        settings.jwt_admin_role,
    )
    fetch = jwks(settings.jwt_jwks_url, timeout_s=JWKS_TIMEOUT_S)
    return TokenVerifier(SigningKeys(fetch, threads, clock, options, report), options)
