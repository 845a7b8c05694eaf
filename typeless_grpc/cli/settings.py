"""Reads the server's settings for commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typeless_grpc.cli.signals import say

if TYPE_CHECKING:
    from typeless_grpc.config import Loaded


def load_settings(flags: Mapping[str, Any] | None = None, *, file: Path | None = None) -> Loaded:
    """Read the settings and print their warnings to stderr. Raises InvalidInput with every problem at once."""
    from typeless_grpc.config import load

    loaded = load(flags, file=file)
    for warning in loaded.warnings:
        say(f"Warning: {warning}", to_stderr=True)
    return loaded
