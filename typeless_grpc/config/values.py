"""Types of settings that flags, variables and files write as text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic_settings import NoDecode

from typeless_grpc.access.quota import Quota

MAX_PORT = 65535
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Group(BaseModel):
    """Settings that belong together. Frozen; unknown names are errors, and defaults are validated too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _expanded(path: Path) -> Path:
    return path.expanduser()


def _named_directories(value: Any) -> Any:
    """Parse `calls=/models/calls,notes=/models/notes`."""
    if not isinstance(value, str):
        return value
    pairs = [pair.strip().partition("=") for pair in value.split(",") if pair.strip()]
    if any(not (name and path) for name, _, path in pairs):
        raise ValueError("must be NAME=DIRECTORY pairs separated by commas")
    return {name.strip(): path.strip() for name, _, path in pairs}


def _names_by_name(value: Any) -> Any:
    """Parse `parakeet=base,whisper=large-v3`."""
    if not isinstance(value, str):
        return value
    pairs = [pair.strip().partition("=") for pair in value.split(",") if pair.strip()]
    if any(not (name.strip() and other.strip()) for name, _, other in pairs):
        raise ValueError("must be NAME=NAME pairs separated by commas")
    return {name.strip(): other.strip() for name, _, other in pairs}


def _words(value: Any) -> Any:
    """Parse `one,two`."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _rate(value: str) -> str:
    Quota.parse(value)
    return value


def host_and_port(address: str) -> tuple[str, int]:
    """Split `engine.example:50052` or `[::1]:50052`. Raises ValueError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > MAX_PORT or (":" in host and not host.startswith("[")):
        raise ValueError("must be HOST:PORT, for IPv6 [HOST]:PORT")
    return host.strip("[]"), int(port)


def _address(value: str) -> str:
    host_and_port(value)
    return value


def _duration_s(value: Any) -> Any:
    """Parse `90`, `90s`, `15m`, `24h` or `7d`."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9.]+)\s*([smhd]?)\s*", value)
    if match is None:
        raise ValueError("must be seconds, or a number with the unit s, m, h or d")
    return float(match[1]) * _UNITS_S[match[2]]


# Marks a setting whose changes take effect without a restart; `app/reloading.py` applies them.
RELOADABLE = "reloadable"
T = TypeVar("T")
Reloadable = Annotated[T, RELOADABLE]

HostAndPort = Annotated[str, AfterValidator(_address)]
ExpandedPath = Annotated[Path, AfterValidator(_expanded)]
NamedDirectories = Annotated[dict[str, ExpandedPath], NoDecode, BeforeValidator(_named_directories)]
Rate = Annotated[str, AfterValidator(_rate)]  # AMOUNT/PERIOD[:BURST], or off
Seconds = Annotated[float, BeforeValidator(_duration_s)]
NamesByName = BeforeValidator(_names_by_name)
SplitAtCommas = BeforeValidator(_words)
