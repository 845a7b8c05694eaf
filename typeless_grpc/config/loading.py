"""Reads settings from flags, the environment and a TOML file, and reports all problems at once."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from typeless_grpc.config.settings import ENV_PREFIX, GROUPS, RENAMED, SECRETS, Settings, group_of
from typeless_grpc.errors import FieldViolation, InvalidInput

# Variables with the same prefix that configure the command line and the client, not the server.
CLIENT_VARIABLES = frozenset(
    {
        "TYPELESS_SERVER",
        "TYPELESS_API_KEY",
        "TYPELESS_API_KEY_FILE",
        "TYPELESS_TLS",
        "TYPELESS_TLS_CA",
        "TYPELESS_CLIENT_CERT",
        "TYPELESS_CLIENT_KEY",
        "TYPELESS_CONFIG",
        "TYPELESS_SHARED_AUDIO",
    }
)
_MAX_SECRET_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Loaded:
    """Settings in force.

    origins: where each came from, "flag", "environment", "file" or "default". warnings: sentences about names that are
    out of use.
    """

    settings: Settings
    origins: Mapping[str, str]
    warnings: Sequence[str] = ()


@dataclass
class _Layer:
    """The settings of one origin. written: how the user wrote a setting's name there, if not as the origin implies."""

    origin: str
    values: dict[str, Any] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    problems: list[FieldViolation] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def set(self, name: str, value: Any, written: str) -> None:
        """Add a setting under its present or its old name."""
        current = RENAMED.get(name, name)
        if current in self.values:
            self.problems.append(FieldViolation(written, f"{self.written[current]} already sets {current}"))
            return
        if current != name:
            self.warnings.append(f"{written} is an old name that still works; the setting is now called {current}.")
        self.values[current] = value
        self.written[current] = written


def default_config_file() -> Path:
    """Return the settings file that is read if none is named."""
    return platformdirs.user_config_path("typeless") / "typeless.toml"


def load(flags: Mapping[str, Any] | None = None, *, file: Path | None = None) -> Loaded:
    """Read the settings: flags (those that are not None) > environment > TOML file > defaults.

    file: must exist if it is named here or by TYPELESS_CONFIG; the default file may be missing.
    Raises InvalidInput with every problem at once, each under the name that the user wrote.
    """
    from_flags = _Layer("flag")
    for name, value in (flags or {}).items():
        if value is not None:
            from_flags.set(name, value, "--" + name.replace("_", "-"))
    layers = [from_flags, _environment(), _settings_file(_file_to_read(file))]
    problems = [problem for layer in layers for problem in layer.problems]
    try:
        settings = _validated(layers)
    except ValidationError as error:
        problems += [_violation(detail["loc"], detail["msg"], layers) for detail in error.errors()]
    if problems:
        raise InvalidInput.of(problems, reason="CONFIG_INVALID")
    origins = {
        name: next((layer.origin for layer in layers if name in layer.values), "default")
        for name in Settings.model_fields
    }
    return Loaded(settings, origins, [warning for layer in layers for warning in layer.warnings])


def _validated(layers: Sequence[_Layer]) -> Settings:
    flags, *others = layers

    class FromLayers(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **sources: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (sources["init_settings"], *(InitSettingsSource(settings_cls, layer.values) for layer in others))

    return FromLayers(**flags.values)


# ---- a settings file ------------------------------------------------------------------------------------------------


def _file_to_read(named: Path | None) -> Path | None:
    """Return the settings file, None if there is none. Raises InvalidInput if a named one is missing."""
    variable = os.environ.get("TYPELESS_CONFIG")
    chosen = named or (Path(variable).expanduser() if variable else None)
    if chosen is None:
        usual = default_config_file()
        return usual if usual.is_file() else None
    if not chosen.is_file():
        raise InvalidInput("config", f"there is no file {chosen}", reason="CONFIG_INVALID")
    return chosen


def _settings_file(path: Path | None) -> _Layer:
    """Read a TOML file: settings at its top, or in tables with the names of their groups."""
    layer = _Layer("file")
    if path is None:
        return layer
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput("config", f"{path} is not TOML: {error}", reason="CONFIG_INVALID") from error
    except OSError as error:
        raise InvalidInput("config", f"{path} cannot be read: {error.strerror}", reason="CONFIG_INVALID") from error
    for key, value in content.items():
        if key in GROUPS and isinstance(value, dict):
            for name, inner in value.items():
                _set_from_file(layer, name, inner, path, table=key)
        else:
            _set_from_file(layer, key, value, path)
    return layer


def _set_from_file(layer: _Layer, name: str, value: Any, path: Path, *, table: str = "") -> None:
    written = f"{table}.{name} ({path})" if table else f"{name} ({path})"
    current = RENAMED.get(name, name)
    if current not in Settings.model_fields:
        layer.problems.append(FieldViolation(written, _no_such_setting(name, Settings.model_fields)))
    elif table and table != group_of(current):
        layer.problems.append(FieldViolation(written, f"belongs to the table [{group_of(current)}]"))
    else:
        layer.set(name, value, written)


# ---- the environment ------------------------------------------------------------------------------------------------


def _environment() -> _Layer:
    """Read variables, and the files that variables with the suffix _FILE name."""
    layer = _Layer("environment")
    names = [*Settings.model_fields, *RENAMED]
    for name in names:
        variable = ENV_PREFIX + name.upper()
        file = os.environ.get(f"{variable}_FILE", "") if name in SECRETS else ""
        if file and os.environ.get(variable):
            layer.problems.append(FieldViolation(f"{variable}_FILE", f"{variable} is set too; set only one of them"))
        elif file:
            _set_from_secret_file(layer, name, variable, file)
        elif variable in os.environ:
            layer.set(name, os.environ[variable], variable)
    known = {ENV_PREFIX + name.upper() for name in names} | CLIENT_VARIABLES
    known |= {f"{ENV_PREFIX}{name.upper()}_FILE" for name in SECRETS}
    # In any case, so that `typeless_port` does not pass unnoticed.
    for variable in sorted(name for name in os.environ if name.upper().startswith(ENV_PREFIX) and name not in known):
        layer.problems.append(FieldViolation(variable, _no_such_setting(variable.upper(), known)))
    return layer


def _set_from_secret_file(layer: _Layer, name: str, variable: str, file: str) -> None:
    try:
        text = _secret(Path(file).expanduser())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        layer.problems.append(FieldViolation(f"{variable}_FILE", f"{file} cannot be used: {why}"))
    else:
        # Several values may be separated by line ends.
        layer.set(name, text if name.endswith("_url") else ",".join(text.splitlines()), f"{variable}_FILE")


def _secret(file: Path) -> str:
    """Return a file's text without surrounding white space. Raises OSError, or ValueError without the text."""
    with file.open("rb") as content:
        data = content.read(_MAX_SECRET_BYTES + 1)
    if len(data) > _MAX_SECRET_BYTES:
        raise ValueError(f"it has more than {_MAX_SECRET_BYTES} bytes")
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    if not text:
        raise ValueError("it is empty")
    return text


# ---- problems -------------------------------------------------------------------------------------------------------


def _violation(location: tuple[int | str, ...], why: str, layers: Sequence[_Layer]) -> FieldViolation:
    name = str(location[0]) if location else ""
    written = next((layer.written[name] for layer in layers if name in layer.values), name)
    return FieldViolation(written, why.removeprefix("Value error, "))


def _no_such_setting(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return "no setting has this name" + (f"; did you mean {close[0]}?" if close else "")
