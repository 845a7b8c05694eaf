"""The settings of a server: one flat tree, each with its unit, default and the reason to change it.

A value comes from a flag, else the environment (`TYPELESS_PORT`), else a TOML file (`port = 50051`), else its default.
Names that nobody knows are errors wherever they stand, and all problems are reported at once. `load` is the only place
that reads any of these; everything else is handed values.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from typeless_grpc.errors import FieldViolation, InvalidInput

ENV_PREFIX = "TYPELESS_"

# Variables of the same prefix that belong to callers (the command line and the client), not to the server.
CLIENT_VARIABLES = frozenset({"TYPELESS_SERVER", "TYPELESS_API_KEY", "TYPELESS_CONFIG", "TYPELESS_SHARED_AUDIO"})


def default_config_file() -> Path:
    """Where a settings file is looked for when none is named."""
    return platformdirs.user_config_path("typeless") / "typeless.toml"


def _expanded(path: Path) -> Path:
    return path.expanduser()


ExpandedPath = Annotated[Path, AfterValidator(_expanded)]


def _named_directories(value: Any) -> Any:
    """Read `calls=/models/calls,notes=/models/notes`, the form that fits a variable or a flag."""
    if not isinstance(value, str):
        return value
    pairs = [pair.strip().partition("=") for pair in value.split(",") if pair.strip()]
    if any(not (name and path) for name, _, path in pairs):
        raise ValueError("must be NAME=DIRECTORY pairs with commas between them")
    return {name.strip(): path.strip() for name, _, path in pairs}


class Settings(BaseSettings):
    """What a server is told. Frozen; the descriptions are what `docs/configuration.md` prints."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, validate_default=True)

    host: str = Field(
        "127.0.0.1", description="Address to listen on. 0.0.0.0 or [::] to be reached from other machines."
    )
    port: int = Field(50051, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    data_dir: ExpandedPath = Field(
        default_factory=lambda: platformdirs.user_data_path("typeless"),
        description="Directory for models and all that is kept; a platform's usual place unless set.",
    )

    model: str = Field(
        "base", min_length=1, description="Default model: a name of the catalogue, or a directory's path."
    )
    model_dirs: Annotated[dict[str, ExpandedPath], NoDecode, BeforeValidator(_named_directories)] = Field(
        default_factory=dict,
        description="Names for directories that hold converted models: `calls=/models/calls,notes=/models/notes`.",
    )
    model_download: bool = Field(
        True, description="Fetch a default model that is not here yet; off on machines without a way out."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run; auto is a GPU where there is one."
    )
    compute_type: str = Field(
        "auto",
        description="CTranslate2 compute type (int8, float16, float32, …); auto is float16 on a GPU, int8 on a CPU.",
    )
    cpu_threads: int = Field(
        0, ge=0, le=256, description="Threads for one inference on the CPU; 0 is one for each core."
    )
    beam_size: int = Field(
        1, ge=1, le=10, description="Beams where a call does not say; more is slower and a little better."
    )

    max_message_bytes: int = Field(
        32 * 1024 * 1024,
        ge=64 * 1024,
        le=1024 * 1024 * 1024,
        description="Largest request message, in bytes.",
    )
    max_audio_s: float = Field(
        3600.0, gt=0, le=86400, description="Longest recording of Transcribe, in seconds; checked while decoding."
    )
    max_model_memory_bytes: int = Field(
        4 * 1024**3, ge=0, description="Memory of all loaded models; above it the least recently used are unloaded."
    )
    encoder_window: Literal["auto", "full"] = Field(
        "auto",
        description="How much audio the encoder is shown: auto is what speech needs, full is faster-whisper's 30 s.",
    )
    max_batch: int = Field(
        8, ge=1, le=64, description="Windows decoded together; more is faster for many callers, slower for the first."
    )
    engine_workers: int = Field(
        1, ge=1, le=16, description="Batches decoded side by side, each with cpu_threads threads of its own."
    )
    max_held_audio_s: float = Field(
        14400.0, gt=0, description="Decoded audio that all calls hold together, in seconds of 64 kB; more is refused."
    )
    max_concurrent_calls: int = Field(
        64,
        ge=1,
        le=100_000,
        description="Transcriptions at once, waiting ones included; more are refused with UNAVAILABLE.",
    )
    decode_threads: int = Field(2, ge=1, le=64, description="Recordings decoded to samples at the same time.")
    drain_timeout_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="Seconds that running calls may go on after SIGTERM, before they are cancelled.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log lines to write."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="Log lines; auto is text on a terminal, JSON elsewhere."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flag, then environment, then file."""
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls))


@dataclass(frozen=True)
class Loaded:
    """Settings in force, and where each came from: "flag", "environment", "file" or "default"."""

    settings: Settings
    origins: Mapping[str, str]


def load(flags: Mapping[str, Any] | None = None, *, file: Path | None = None) -> Loaded:
    """Read the settings: flags (those that are not None) > environment > TOML file > defaults.

    file: must exist where it is named here or by TYPELESS_CONFIG; the usual place may be empty.
    Raises InvalidInput with every problem at once, each under the name the user wrote.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    named = file or (Path(os.environ["TYPELESS_CONFIG"]).expanduser() if os.environ.get("TYPELESS_CONFIG") else None)
    if named is not None and not named.is_file():
        raise InvalidInput("config", f"there is no file {named}", reason="CONFIG_INVALID")
    from_file = named or default_config_file()

    class FromHere(Settings):
        model_config = SettingsConfigDict(toml_file=from_file)

    try:
        layers = {
            "flag": given,
            "environment": {name: 0 for name in Settings.model_fields if ENV_PREFIX + name.upper() in os.environ},
            "file": TomlConfigSettingsSource(FromHere)(),
        }
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput("config", f"{from_file} is not TOML: {error}", reason="CONFIG_INVALID") from error
    origins = {
        name: next((origin for origin, values in layers.items() if name in values), "default")
        for name in Settings.model_fields
    }
    problems = _unknown_variables()
    try:
        settings = FromHere(**given)
    except ValidationError as error:
        problems += [_violation(detail["loc"], detail["msg"], origins, from_file) for detail in error.errors()]
    if problems:
        raise InvalidInput.of(problems)
    return Loaded(settings, origins)


def _unknown_variables() -> list[FieldViolation]:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | CLIENT_VARIABLES
    # In any case, because pydantic would take `typeless_port` for what it is not documented to be.
    ours = sorted(name for name in os.environ if name.upper().startswith(ENV_PREFIX))
    unknown = [name for name in ours if name not in known]
    return [FieldViolation(name, "no setting has this name" + _did_you_mean(name.upper(), known)) for name in unknown]


def _violation(location: tuple[int | str, ...], why: str, origins: Mapping[str, str], file: Path) -> FieldViolation:
    name = str(location[0]) if location else ""
    if name not in Settings.model_fields:
        return FieldViolation(
            f"{name} ({file})", "no setting has this name" + _did_you_mean(name, Settings.model_fields)
        )
    written = {
        "flag": "--" + name.replace("_", "-"),
        "environment": ENV_PREFIX + name.upper(),
        "file": f"{name} ({file})",
        "default": name,
    }[origins[name]]
    return FieldViolation(written, why)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
