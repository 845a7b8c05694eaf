"""All settings as one flat set, put together from their groups."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from typeless_grpc.config.access import AccessSettings
from typeless_grpc.config.compat import GoogleSettings, RivaSettings
from typeless_grpc.config.console import ConsoleSettings
from typeless_grpc.config.engine import EngineSettings
from typeless_grpc.config.jobs import JobSettings
from typeless_grpc.config.limits import LimitSettings
from typeless_grpc.config.server import ServerSettings
from typeless_grpc.config.streams import StreamSettings
from typeless_grpc.config.telemetry import TelemetrySettings
from typeless_grpc.config.values import Group

ENV_PREFIX = "TYPELESS_"

# In the order in which they are printed; the names are also those of the tables in a settings file.
GROUPS: Mapping[str, type[Group]] = {
    "server": ServerSettings,
    "engine": EngineSettings,
    "access": AccessSettings,
    "limits": LimitSettings,
    "jobs": JobSettings,
    "streams": StreamSettings,
    "telemetry": TelemetrySettings,
    "console": ConsoleSettings,
    "riva": RivaSettings,
    "google": GoogleSettings,
}

# Old name to new. The old ones still work, with a warning.
RENAMED: Mapping[str, str] = {"redis_away": "redis_fallback", "stream_file_windows": "stream_file_chunks"}

# Settings that are secrets, or may contain a password.
SECRETS = frozenset(
    {
        "api_keys",
        "admin_keys",
        "database_url",
        "engine_key",
        "redis_url",
        "storage_url",
        "jwt_jwks_url",
        "audio_uri_prefixes",
    }
)


class Settings(
    ServerSettings,
    EngineSettings,
    AccessSettings,
    LimitSettings,
    JobSettings,
    StreamSettings,
    TelemetrySettings,
    ConsoleSettings,
    RivaSettings,
    GoogleSettings,
    BaseSettings,
):
    """The settings of a server. Their descriptions are the text of `docs/configuration.md`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments and the environment; `load` adds the settings file."""
        return (init_settings, env_settings)


def group_of(name: str) -> str:
    """Return the name of the group that a setting belongs to."""
    return next(group for group, settings in GROUPS.items() if name in settings.model_fields)


def private(settings: Settings) -> Settings:
    """Return settings for a server that only its own process calls: without keys, limits, TLS, metrics and console."""
    disabled = {"auth_enabled": False, "require_auth": False, "rate_limit_enabled": False}
    return settings.model_copy(update=disabled | {"tls_cert_file": None, "metrics_port": None, "console_port": None})
