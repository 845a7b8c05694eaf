"""Reloads the settings of a running server or worker.

A reload has two phases. First all new settings are read and checked, and every part prepares its new values; a failure
changes nothing. Then all parts take their values within one step of the event loop, so that every call sees either the
old settings or the new ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from typeless_grpc.app.tasks import cancelled
from typeless_grpc.config import Loaded, Settings, change, described
from typeless_grpc.errors import InvalidInput, TypelessError
from typeless_grpc.telemetry import logs

log = logs.get_logger(__name__)

T = TypeVar("T")
Take = Callable[[], None]
KEPT = "settings not reloaded: all old ones stay in force"


class Reloads:
    """The settings in force, and the parts of a process that follow them. settings: those in force now."""

    def __init__(self, settings: Settings, report: Callable[[bool], None] = lambda _: None) -> None:
        """report: called after each reload with whether it succeeded."""
        self.settings = settings
        self._report = report
        self._prepare: list[Callable[[Settings], Awaitable[Take]]] = []
        self._prepare_last: list[Callable[[Settings], Awaitable[Take]]] = []

    def follow(self, parse: Callable[[Settings], T], use: Callable[[T], None]) -> None:
        """Make a part follow the settings.

        parse: makes the part's value from the settings, in a thread; may raise a TypelessError. use: gives the part its
        new value; must not fail.
        """

        async def prepare(settings: Settings) -> Take:
            value = await asyncio.to_thread(parse, settings)
            return lambda: use(value)

        self._prepare.append(prepare)

    def follow_last(self, prepare: Callable[[Settings], Awaitable[Take]]) -> None:
        """Make a part follow the settings that writes to a store; it prepares after all others.

        prepare: returns a function that gives the part its new values, as `use` does; may raise a TypelessError.
        """
        self._prepare_last.append(prepare)

    @asynccontextmanager
    async def running(self, requested: asyncio.Event, load: Callable[[], Loaded]) -> AsyncIterator[None]:
        """Reload whenever the event is set, until the block ends. load: see `reload`."""
        task = asyncio.create_task(self._run(requested, load))
        try:
            yield
        finally:
            await cancelled(task)

    async def _run(self, requested: asyncio.Event, load: Callable[[], Loaded]) -> None:
        while True:  # requests that come during a reload cause one more
            await requested.wait()
            requested.clear()
            await self.reload(load)

    async def reload(self, load: Callable[[], Loaded]) -> bool:
        """Read the settings again, apply what can be applied, and log the result. Returns whether they were valid.

        load: reads them as at the start; called in a thread.
        """
        is_good = await self._has_reloaded(load)
        self._report(is_good)
        return is_good

    async def _has_reloaded(self, load: Callable[[], Loaded]) -> bool:
        """Reload, and log why the earlier settings are kept if that fails. Return whether it succeeded."""
        try:
            await self._reload(load)
        except InvalidInput as error:
            for problem in error.violations:
                log.error(KEPT, setting=problem.field, problem=problem.why)
        except TypelessError as error:
            log.error(KEPT, problem=error.message)
        except Exception:
            log.exception(KEPT)
        else:
            return True
        return False

    async def _reload(self, load: Callable[[], Loaded]) -> None:
        """Load the settings, and let every part prepare before the first one takes them: all change, or none."""
        loaded = await asyncio.to_thread(load)
        before, changes = self.settings, change(self.settings, loaded.settings)
        taking = [await prepare(changes.settings) for prepare in (*self._prepare, *self._prepare_last)]
        self.settings = changes.settings
        for take in taking:
            take()
        for warning in loaded.warnings:
            log.warning(warning)
        changed = {name: described(name, before, changes.settings) for name in changes.applied}
        log.info("settings reloaded", changed=changed)
        if changes.waiting:
            log.warning("changed settings need a restart", settings=list(changes.waiting))


def follow_logs(reloads: Reloads) -> None:
    """Make the log follow the settings of its level and format."""
    reloads.follow(lambda settings: settings, lambda settings: logs.configure(settings.log_level, settings.log_format))
