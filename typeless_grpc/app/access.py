"""Wires keys, tokens and quotas."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
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
from typeless_grpc.access.usage import UsageRecorder
from typeless_grpc.app.reloading import Reloads, Take
from typeless_grpc.app.tasks import cancelled
from typeless_grpc.app.usage import recorded
from typeless_grpc.clock import Clock, SystemClock
from typeless_grpc.config import Settings
from typeless_grpc.disk import make_directory
from typeless_grpc.errors import InvalidInput, SourceUnavailable
from typeless_grpc.health import HealthCheck
from typeless_grpc.interceptors.auth import AuthInterceptor
from typeless_grpc.interceptors.rate_limit import RateLimitInterceptor
from typeless_grpc.interceptors.seam import Interceptor
from typeless_grpc.servicers.admin import AdminServicer
from typeless_grpc.stores.buckets import FallbackBuckets, MemoryBuckets, RedisBuckets, RefusingBuckets
from typeless_grpc.stores.memory_access import MemoryAccessStore
from typeless_grpc.telemetry.calls import CallObserver
from typeless_grpc.telemetry.logs import get_logger
from typeless_grpc.telemetry.metrics import Metrics
from typeless_grpc.telemetry.reachability import Freshness, Reachability
from typeless_grpc.telemetry.usage import UsageObserver

log = get_logger(__name__)

# Time without an answer of the key store after which an error is logged, because revoked keys may still be accepted.
KEYS_STALE_S = 60.0
JWKS_TIMEOUT_S = 5.0  # for the identity provider to send its keys, a few kilobytes


@dataclass(frozen=True)
class Access:
    """Admission of callers, their quotas and usage.

    interceptors: enforce both, in order. checks: of the key store. recorder: of usage; None if keys are off.
    observers: report calls to it.
    """

    registry: Registry
    rules: Rules
    interceptors: Sequence[Interceptor]
    checks: Sequence[HealthCheck] = ()
    recorder: UsageRecorder | None = None
    observers: Sequence[CallObserver] = ()


@asynccontextmanager
async def open_access(settings: Settings, metrics: Metrics, reloads: Reloads) -> AsyncIterator[Access]:
    """Open keys, tokens and limits."""
    async with AsyncExitStack() as stack:
        clock, known = SystemClock(), rules(settings.open_services)
        quotas = Quotas(limits(settings), anonymous_percent=_anonymous_percent(settings))
        checks: list[HealthCheck] = []
        verifiers: _Verifiers | None = None
        recorder: UsageRecorder | None = None
        if settings.auth_enabled:
            registry = await stack.enter_async_context(open_registry(settings, quotas))
            checks.append(await stack.enter_async_context(_followed(registry, settings, metrics)))
            recorder = await stack.enter_async_context(recorded(registry.store, settings))
            verifiers = stack.enter_context(_verifiers(clock, metrics))
        else:  # keys and limits cannot be changed, so there is nothing to store
            registry = _registry(settings, MemoryAccessStore(), quotas)
        failures = Failures(
            buckets=MemoryBuckets(settings.rate_limit_max_buckets), quota=_wrong_keys(settings), clock=clock
        )
        gate = Gate(
            registry=registry if settings.auth_enabled else None,
            tokens=verifiers.verifier(settings) if verifiers else None,
            failures=failures,
            is_required=settings.require_auth,
        )
        auth = AuthInterceptor(
            gate=gate,
            ring=registry.ring if settings.auth_enabled else None,
            rules=known,
            trusted_proxies=networks(settings.trusted_proxies),
            metrics=metrics,
        )
        interceptors: list[Interceptor] = [auth]
        if settings.rate_limit_enabled:
            buckets = await stack.enter_async_context(_buckets(settings, clock, metrics))
            limiter = Limiter(quotas=quotas, buckets=buckets, long_audio_s=settings.long_audio_s)
            interceptors.append(RateLimitInterceptor(limiter=limiter, rules=known, metrics=metrics))
            reloads.follow(lambda settings: settings.long_audio_s, limiter.use)
        reloads.follow(
            lambda settings: (limits(settings), _anonymous_percent(settings)),
            lambda both: quotas.set_settings(both[0], anonymous_percent=both[1]),
        )
        reloads.follow(_wrong_keys, failures.use)
        reloads.follow(
            lambda settings: (rules(settings.open_services), networks(settings.trusted_proxies)),
            lambda both: auth.use(*both),
        )
        reloads.follow(
            lambda settings: (verifiers.verifier(settings) if verifiers else None, settings.require_auth),
            lambda both: gate.use(both[0], is_required=both[1]),
        )
        if settings.auth_enabled:
            reloads.follow_last(functools.partial(_prepare_keys, registry))
        yield Access(
            registry=registry,
            rules=known,
            interceptors=interceptors,
            checks=checks,
            recorder=recorder,
            observers=[UsageObserver(recorder)] if recorder is not None else [],
        )


async def _prepare_keys(registry: Registry, settings: Settings) -> Take:
    return await registry.prepare(settings_keys(settings), registry_options(settings))


def _wrong_keys(settings: Settings) -> Quota | None:
    return Quota.parse(settings.rate_limit_wrong_keys) if settings.rate_limit_enabled else None


@asynccontextmanager
async def _followed(registry: Registry, settings: Settings, metrics: Metrics) -> AsyncIterator[HealthCheck]:
    """Load the keys, then follow what other servers change. The check is of the key store."""
    await registry.load(settings_keys(settings))
    store = Reachability("key store", metrics.key_store_up)
    age = Freshness(
        "keys and limits cannot be read: keys that were revoked since are still accepted here",
        metrics.keys_read,
        KEYS_STALE_S,
    )
    age.report(True)  # they have just been loaded

    def report(answers: bool) -> None:
        store.report(answers)
        age.report(answers)

    following = asyncio.create_task(registry.follow(report))
    try:
        yield HealthCheck("key store", frozenset({AdminServicer.NAME}), lambda: store.answers and not following.done())
    finally:
        await cancelled(following)
        await _flush(registry)


async def _flush(registry: Registry) -> None:
    """Store when keys were last used. A failure is only logged."""
    try:
        await registry.flush()
    except SourceUnavailable:
        log.warning("the key store is unavailable: when keys were last used is not stored")


@asynccontextmanager
async def open_registry(settings: Settings, quotas: Quotas | None = None) -> AsyncIterator[Registry]:
    """Open keys and limits in the database of the settings. Raises SourceUnavailable if it cannot be reached."""
    from typeless_grpc.stores import sql_access

    url = settings.database_url.get_secret_value()
    if not url:
        make_directory(settings.data_dir)
        url = sql_access.sqlite_url(settings.data_dir / "access.sqlite3")
    store = sql_access.SqlAccessStore(url, time.time)
    try:
        await store.open()
        yield _registry(settings, store, quotas or Quotas([]))
    finally:
        await store.close()


def _registry(settings: Settings, store: AccessStore, quotas: Quotas) -> Registry:
    ring = KeyRing({key.digest: key.role for key in settings_keys(settings)})
    return Registry(store=store, ring=ring, quotas=quotas, options=registry_options(settings))


def registry_options(settings: Settings) -> RegistryOptions:
    """Return the registry's part of the settings."""
    return RegistryOptions(max_keys=settings.max_api_keys, refresh_s=settings.key_refresh_s)


@asynccontextmanager
async def _buckets(settings: Settings, clock: Clock, metrics: Metrics) -> AsyncIterator[BucketStore]:
    """Yield the store of rate limit buckets: in memory, or in Redis with the fallback that is configured."""
    local = MemoryBuckets(settings.rate_limit_max_buckets)
    if not (url := settings.redis_url.get_secret_value()):
        yield local
        return
    try:
        shared = RedisBuckets(url, timeout_s=settings.redis_timeout_s)
    except ValueError as error:  # its text could repeat a part of the password
        raise InvalidInput("redis_url", "is not the URL of a Redis", reason="CONFIG_INVALID") from error
    try:
        fallback = local if settings.redis_fallback == "local" else RefusingBuckets()
        buckets = FallbackBuckets(shared=shared, local=fallback, clock=clock, metrics=metrics)
        watching = asyncio.create_task(buckets.watch(), name="redis")
        try:
            yield buckets
        finally:
            await cancelled(watching)
    finally:
        await shared.close()


def settings_keys(settings: Settings) -> list[ApiKey]:
    """Return the keys of the settings."""
    roles = ((settings.api_keys, Role.USER), (settings.admin_keys, Role.ADMIN))
    return [settings_key(secret.get_secret_value(), role, time.time()) for secrets, role in roles for secret in secrets]


def limits(settings: Settings) -> list[Limit]:
    """Return the limits of the settings."""
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
    """Return the percentage of each limit for callers without a key: all of it while keys are disabled."""
    return settings.rate_limit_anonymous_percent if settings.auth_enabled else 100


class _Verifiers:
    """Makes verifiers of tokens; the keys of an identity provider are kept while its URL stays the same."""

    def __init__(self, clock: Clock, metrics: Metrics, threads: Executor) -> None:
        self._clock, self._threads = clock, threads
        self._report = Reachability("identity provider's keys", metrics.token_keys_up).report
        self._keys: dict[str, SigningKeys] = {}

    def verifier(self, settings: Settings) -> TokenVerifier | None:
        """Return the verifier for these settings; None if they accept no tokens."""
        if not settings.jwt_issuer:
            return None
        options, url = token_options(settings), settings.jwt_jwks_url
        if url not in self._keys:
            fetch = jwks(url, timeout_s=JWKS_TIMEOUT_S)
            keys = SigningKeys(
                fetch=fetch, threads=self._threads, clock=self._clock, options=options, report=self._report
            )
            self._keys = {url: keys}
        return TokenVerifier(keys=self._keys[url], options=options)


@contextmanager
def _verifiers(clock: Clock, metrics: Metrics) -> Iterator[_Verifiers]:
    with ThreadPoolExecutor(1, "token-keys") as threads:
        yield _Verifiers(clock, metrics, threads)


def token_options(settings: Settings) -> TokenOptions:
    """Return the tokens' part of the settings."""
    return TokenOptions(
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        algorithms=settings.jwt_algorithms,
        roles_claim=settings.jwt_roles_claim,
        user_role=settings.jwt_user_role,
        admin_role=settings.jwt_admin_role,
    )
