"""What a reload of the settings changes: which changes take effect at once, and which wait for a restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typeless_grpc.config.display import is_secret, public
from typeless_grpc.config.settings import GROUPS, SECRETS, Settings
from typeless_grpc.config.values import RELOADABLE

# While one of these differs from the running server, the group's other settings wait for the restart with it: the keys
# of a file that turns keys off are not the keys of a server that still checks them.
SWITCHES = {"auth_enabled": "access"}


@dataclass(frozen=True)
class Change:
    """settings: in force after the reload. applied, waiting: names of changed settings; waiting need a restart."""

    settings: Settings
    applied: Sequence[str]
    waiting: Sequence[str]


def is_reloadable(name: str) -> bool:
    """Whether a change of this setting takes effect without a restart."""
    return any(one is RELOADABLE for one in Settings.model_fields[name].metadata)


def change(current: Settings, wanted: Settings) -> Change:
    """Compare the settings in force with those that were read now."""
    changed = [name for name in Settings.model_fields if getattr(current, name) != getattr(wanted, name)]
    held_back = {name for switch, group in SWITCHES.items() if switch in changed for name in GROUPS[group].model_fields}
    applied = [name for name in changed if is_reloadable(name) and name not in held_back]
    settings = current.model_copy(update={name: getattr(wanted, name) for name in applied})
    return Change(settings, applied, [name for name in changed if name not in applied])


def described(name: str, before: Settings, after: Settings) -> str:
    """Return a change as text, "3600.0 -> 60.0". Of settings that may be secret it is only "changed"."""
    if name in SECRETS or is_secret(getattr(before, name)) or is_secret(getattr(after, name)):
        return "changed"
    return f"{_text(public(before)[name])} -> {_text(public(after)[name])}"


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
