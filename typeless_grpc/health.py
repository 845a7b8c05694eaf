"""What `grpc.health.v1` answers: kept up to date, and told to watchers without waiting for them.

The library's own servicer writes to its watchers while it holds what a change of status needs: one that does not read
would keep everybody's checks at what was true before.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

SERVER = ""  # the name under which health checks ask for the server as a whole
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LOOK_EVERY_S = 0.5
ASK_EVERY_S = 1.0
ANSWER_WITHIN_S = 5.0  # longer than a busy database takes, shorter than a caller is patient


@dataclass(frozen=True)
class Vital:
    """What services cannot do without. what: for people. is_well: answers at once, without I/O.

    services: their full names; SERVER among them where the server is of no use without it.
    """

    what: str
    services: frozenset[str]
    is_well: Callable[[], bool]


class Probe:
    """Asks something that may be away, in a thread of its own: it may also never answer, and hold up nothing else."""

    def __init__(self, ask: Callable[[], None]) -> None:
        """ask: blocks; raises where there is no answer."""
        self._ask = ask
        self.answers = True

    async def run(self) -> None:
        """Ask again and again, until cancelled."""
        while True:
            asked = asyncio.get_running_loop().create_future()
            threading.Thread(target=self._asked, args=(asked,), name="probe", daemon=True).start()
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    self.answers = await asyncio.shield(asked)
            except TimeoutError:
                self.answers = False
                self.answers = await asked  # no second question beside one that is not answered
            await asyncio.sleep(ASK_EVERY_S)

    def _asked(self, asked: asyncio.Future[bool]) -> None:
        try:
            self._ask()
        except Exception:
            answer = False
        else:
            answer = True
        with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop is closed
            asked.get_loop().call_soon_threadsafe(_answer, asked, answer)


def _is_well(vital: Vital) -> bool:
    """Whatever it fails with, the others are looked at, and this one again."""
    try:
        return vital.is_well()
    except Exception:
        log.exception("cannot be looked at", what=vital.what)
        return False


def _answer(asked: asyncio.Future[bool], answer: bool) -> None:
    if not asked.done():
        asked.set_result(answer)


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """The status of each service and of the server as a whole: NOT_SERVING until `begin`, and again from `end` on."""

    def __init__(self, services: Iterable[str], vitals: Iterable[Vital] = ()) -> None:
        self._names = (SERVER, *services)
        self._vitals = tuple(vitals)
        self._ill: set[str] = set()
        self._is_begun = self._is_over = False
        self._status: Mapping[str, int] = dict.fromkeys(self._names, NOT_SERVING)
        self._changed = asyncio.Event()
        self._told = asyncio.Event()
        self._behind: set[object] = set()  # watchers that have not been told of the last change yet
        self._watchers: set[object] = set()

    def begin(self) -> None:
        """Calls are welcome, as far as all is well."""
        self._is_begun = True
        self.look()

    def end(self) -> None:
        """Calls are not welcome any more, whatever comes."""
        self._is_over = True
        self.look()

    async def told(self) -> None:
        """Wait until every watcher has been told of the last change."""
        while self._behind:
            self._told.clear()
            await self._told.wait()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Take up how everything is, and tell those who watch."""
        ill = {vital.what for vital in self._vitals if not _is_well(vital)}
        for what in sorted(ill ^ self._ill):
            log.warning("not well" if what in ill else "well again", what=what)
        self._ill = ill
        lost = {name for vital in self._vitals if vital.what in ill for name in vital.services}
        can_serve = self._is_begun and not self._is_over
        status = {name: SERVING if can_serve and name not in lost else NOT_SERVING for name in self._names}
        if status != self._status:
            self._status = status
            self._behind = set(self._watchers)
            self._changed.set()
            self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """The status of one service; NOT_FOUND where there is none of the name."""
        status = self._status.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "This server has no such service.")
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> health_pb2.HealthListResponse:
        """The status of every service."""
        statuses = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._status.items()}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status of one service now and each time that it changes; SERVICE_UNKNOWN where there is none."""
        watcher = object()
        self._watchers.add(watcher)
        said: int | None = None
        try:
            while True:
                changed, status = self._changed, self._status.get(request.service, UNKNOWN)
                if status != said:
                    said = status
                    yield health_pb2.HealthCheckResponse(status=status)
                if changed is self._changed:
                    self._behind.discard(watcher)
                    self._told.set()
                await changed.wait()
        finally:
            self._watchers.discard(watcher)
            self._behind.discard(watcher)
            self._told.set()
