"""AdminService: keys, limits and usage while the server runs."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from typeless_grpc.access import principal
from typeless_grpc.access.keys import ApiKey
from typeless_grpc.access.methods import Group
from typeless_grpc.access.principal import Role
from typeless_grpc.access.quota import MAX_AMOUNT, Limit, Quota, Unit, is_counted
from typeless_grpc.access.registry import Registry
from typeless_grpc.access.usage import DailyUsage, UsageQuery, UsageReader, caller_of_key
from typeless_grpc.errors import FieldViolation, InvalidInput
from typeless_grpc.pb.v1 import admin_pb2, admin_pb2_grpc
from typeless_grpc.telemetry.logs import get_logger
from typeless_grpc.version import VERSION

log = get_logger(__name__)

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_NAME_CHARACTERS = 256
MAX_TIMESTAMP_S = 253_402_300_799  # the last second of the year 9999, the range of google.protobuf.Timestamp

ROLES: Mapping[int, Role] = {
    admin_pb2.API_KEY_ROLE_UNSPECIFIED: Role.USER,
    admin_pb2.API_KEY_ROLE_USER: Role.USER,
    admin_pb2.API_KEY_ROLE_ADMIN: Role.ADMIN,
}
UNITS: Mapping[admin_pb2.RateLimitUnit.ValueType, Unit] = {
    admin_pb2.RATE_LIMIT_UNIT_UNSPECIFIED: Unit.CALLS,
    admin_pb2.RATE_LIMIT_UNIT_CALLS: Unit.CALLS,
    admin_pb2.RATE_LIMIT_UNIT_AUDIO_SECONDS: Unit.AUDIO_SECONDS,
    admin_pb2.RATE_LIMIT_UNIT_CONCURRENT_CALLS: Unit.CONCURRENT_CALLS,
}


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """The gate admits only admins to these calls."""

    NAME = "typeless.v1.AdminService"

    def __init__(
        self,
        registry: Registry,
        usage: UsageReader,
        settings: Mapping[str, str],
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """settings: for GetConfig, without secrets. wall_s: Unix time in seconds."""
        self._registry = registry
        self._usage = usage
        self._settings = settings
        self._wall_s = wall_s

    def use(self, settings: Mapping[str, str]) -> None:
        """Answer GetConfig with these settings from now on."""
        self._settings = settings

    def register(self, server: grpc.aio.Server) -> None:
        """Register this service with a server."""
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self, server)

    async def CreateApiKey(
        self, request: admin_pb2.CreateApiKeyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.CreateApiKeyResponse:
        """Create a key, and return its secret, which is not stored."""
        problems = []
        if request.role not in ROLES:
            problems.append(FieldViolation("role", "is none of ApiKeyRole"))
        if "\0" in request.display_name:
            problems.append(FieldViolation("display_name", "holds a NUL character"))
        if len(request.display_name) > MAX_NAME_CHARACTERS:
            problems.append(FieldViolation("display_name", f"must have at most {MAX_NAME_CHARACTERS} characters"))
        expires_s = None
        if request.HasField("expire_time"):
            expires_s = request.expire_time.seconds + request.expire_time.nanos / 1e9
            if not self._wall_s() < expires_s <= MAX_TIMESTAMP_S:
                problems.append(FieldViolation("expire_time", "must be in the future, and before the year 10000"))
        if problems:
            raise InvalidInput.of(problems)
        key, secret = await self._registry.create_key(request.display_name, ROLES[request.role], expires_s)
        log.info("key created", key_id=key.key_id, role=key.role.value, by=principal.current().id)
        return admin_pb2.CreateApiKeyResponse(api_key=_key(key), secret=secret)

    async def ListApiKeys(
        self, request: admin_pb2.ListApiKeysRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.ListApiKeysResponse:
        """Return a page of keys, oldest first."""
        size = _page_size(request.page_size)
        # A page token is the position of the last key of the page before.
        if request.page_token and not (request.page_token.isdecimal() and len(request.page_token) <= 18):
            raise InvalidInput("page_token", "is not one that ListApiKeys gave", reason="PAGE_TOKEN_INVALID")
        keys = await self._registry.keys_after(int(request.page_token or 0), size + 1)
        return admin_pb2.ListApiKeysResponse(
            api_keys=[_key(key) for key in keys[:size]],
            next_page_token=str(keys[size - 1].position) if len(keys) > size else "",
        )

    async def RevokeApiKey(
        self, request: admin_pb2.RevokeApiKeyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.RevokeApiKeyResponse:
        """Revoke a key, and end the calls made with it."""
        if not request.key_id:
            raise InvalidInput("key_id", "must be set")
        key = await self._registry.revoke_key(_key_id(request.key_id))
        log.info("key revoked", key_id=key.key_id, by=principal.current().id)
        return admin_pb2.RevokeApiKeyResponse(api_key=_key(key))

    async def GetConfig(
        self, request: admin_pb2.GetConfigRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.GetConfigResponse:
        """Return the settings of this server, and the current limits."""
        return admin_pb2.GetConfigResponse(
            version=VERSION,
            rate_limits=[_limit(limit) for limit in self._registry.quotas.for_everyone()],
            settings=self._settings,
        )

    async def UpdateRateLimit(
        self, request: admin_pb2.UpdateRateLimitRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.UpdateRateLimitResponse:
        """Set a limit for one key, or for all."""
        limit = parse_limit(request.rate_limit, _key_id(request.key_id), "rate_limit")
        await self._registry.set_limit(limit)
        log.info("limit set", limit=f"{limit.group.value}: {limit}", key_id=limit.key_id, by=principal.current().id)
        return admin_pb2.UpdateRateLimitResponse(rate_limit=_limit(limit))

    async def ListUsage(
        self, request: admin_pb2.ListUsageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.ListUsageResponse:
        """Return a page of usage, earliest day first."""
        size = _page_size(request.page_size)
        query = UsageQuery(
            n_most=size + 1,
            caller=caller_of_key(_key_id(request.key_id)) if request.key_id else None,
            first_day=_day(request.first_day, "first_day"),
            last_day=_day(request.last_day, "last_day"),
            after=_page_start(request.page_token),
        )
        if query.first_day and query.last_day and query.last_day < query.first_day:
            raise InvalidInput("last_day", "is before first_day")
        rows = await self._usage.page(query)
        return admin_pb2.ListUsageResponse(
            usage=[_daily_usage(row) for row in rows[:size]],
            next_page_token=_page_token(rows[size - 1]) if len(rows) > size else "",
        )


def parse_limit(message: admin_pb2.RateLimit, key_id: str, field: str) -> Limit:
    """Convert a limit. Raises InvalidInput with all problems at once."""
    problems = []
    groups = {group.value: group for group in Group}
    if message.group not in groups:
        problems.append(FieldViolation(f"{field}.group", f"must be one of {', '.join(groups)}"))
    unit = UNITS.get(message.unit)
    if unit is None:
        problems.append(FieldViolation(f"{field}.unit", "is none of RateLimitUnit"))
    elif message.group in groups and not is_counted(groups[message.group], unit):
        what = unit.value.replace("_", " ")
        problems.append(FieldViolation(f"{field}.unit", f"{what} are not counted in the group '{message.group}'"))
    if unit is Unit.CONCURRENT_CALLS:
        problems += [
            FieldViolation(f"{field}.{name}", "must be 0 for CONCURRENT_CALLS")
            for name in ("amount", "period_seconds")
            if getattr(message, name)
        ]
        quota = Quota.at_once(message.burst)
    else:
        problems += [
            FieldViolation(f"{field}.{name}", "must be above 0")
            for name in ("amount", "period_seconds")
            if getattr(message, name) <= 0
        ]
        quota = Quota(message.amount, message.period_seconds, message.burst or message.amount)
    if not 0 < quota.burst <= MAX_AMOUNT and not problems:
        problems.append(FieldViolation(f"{field}.burst", "must be above 0"))
    if problems:
        raise InvalidInput.of(problems)
    assert unit is not None
    return Limit(groups[message.group], unit, quota, key_id)


def _key_id(value: str) -> str:
    if "\0" in value:  # PostgreSQL stores none
        raise InvalidInput("key_id", "holds a NUL character")
    return value


def _page_size(value: int) -> int:
    if not 0 <= value <= MAX_PAGE_SIZE:
        raise InvalidInput("page_size", f"must be 0 to {MAX_PAGE_SIZE}")
    return value or DEFAULT_PAGE_SIZE


def _day(text: str, field: str) -> date | None:
    if not text:
        return None
    try:
        day = date.fromisoformat(text)
        if day.isoformat() != text:
            raise ValueError("another form of ISO 8601")
        return day
    except ValueError as error:
        raise InvalidInput(field, 'must be a day such as "2025-01-31"') from error


def _page_token(last: DailyUsage) -> str:
    return base64.urlsafe_b64encode(f"{last.day.isoformat()}/{last.caller}".encode()).decode()


def _page_start(token: str) -> tuple[date, str] | None:
    """Return the day and the caller of the last row of the page before."""
    if not token:
        return None
    try:
        day, _, caller = base64.urlsafe_b64decode(token.encode("ascii")).decode().partition("/")
        if "\0" in caller:
            raise ValueError("a NUL character")
        return date.fromisoformat(day), caller
    except (ValueError, binascii.Error) as error:
        raise InvalidInput("page_token", "is not one that ListUsage gave", reason="PAGE_TOKEN_INVALID") from error


def _daily_usage(row: DailyUsage) -> admin_pb2.DailyUsage:
    message = admin_pb2.DailyUsage(
        day=row.day.isoformat(),
        key_id=row.key_id,
        token_subject=row.token_subject,
        calls=row.usage.calls,
        failed_calls=row.usage.failed_calls,
        jobs=row.usage.jobs,
    )
    message.audio_duration.FromMicroseconds(row.usage.audio_us)
    return message


def _key(key: ApiKey) -> admin_pb2.ApiKey:
    return admin_pb2.ApiKey(
        key_id=key.key_id,
        display_name=key.display_name,
        prefix=key.prefix,
        role=admin_pb2.API_KEY_ROLE_ADMIN if key.role is Role.ADMIN else admin_pb2.API_KEY_ROLE_USER,
        create_time=_timestamp(key.created_s),
        expire_time=None if key.expires_s is None else _timestamp(key.expires_s),
        last_use_time=None if key.last_use_s is None else _timestamp(key.last_use_s),
        revoked=key.is_revoked,
    )


def _timestamp(unix_s: float) -> Timestamp:
    message = Timestamp()
    message.FromMicroseconds(round(unix_s * 1e6))
    return message


def _limit(limit: Limit) -> admin_pb2.RateLimit:
    return admin_pb2.RateLimit(
        group=limit.group.value,
        amount=limit.quota.amount,
        period_seconds=limit.quota.period_s,
        burst=limit.quota.burst,
        unit=next(number for number, unit in UNITS.items() if unit is limit.unit and number),
    )
