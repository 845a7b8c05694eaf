"""Wires the console, whose libraries are imported only if it has a port."""

from __future__ import annotations

import asyncio
import importlib
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from typeless_grpc.access.address import networks
from typeless_grpc.config import Settings

if TYPE_CHECKING:
    from typeless_grpc.console.port import Console
    from typeless_grpc.telemetry.metrics import Metrics

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_BODIES_BYTES = 64 * 1024 * 1024


async def open_console(stack: AsyncExitStack, settings: Settings, metrics: Metrics) -> Console | None:
    """Listen for the console until the stack closes; None if it has no port. Raises SourceUnavailable."""
    if settings.console_port is None:
        return None
    await asyncio.to_thread(importlib.import_module, "typeless_grpc.console.port")
    from typeless_grpc.console.activity import activity
    from typeless_grpc.console.bridge import BridgeOptions
    from typeless_grpc.console.port import ConsoleOptions
    from typeless_grpc.console.port import open_console as listen

    options = ConsoleOptions(
        host=settings.console_host,
        port=settings.console_port,
        max_connections=settings.max_console_connections,
        proxies=networks(settings.trusted_proxies),
    )
    bridge_options = BridgeOptions(
        origins=settings.console_origins,
        max_body_bytes=min(MAX_BODY_BYTES, settings.max_message_bytes),
        max_bodies_bytes=MAX_BODIES_BYTES,
        arrival_timeout_s=settings.request_arrival_timeout_s,
    )
    return await stack.enter_async_context(listen(options, bridge_options, activity(metrics.registry)))
