"""The connection to an engine: what it reports, whether it is up, and when it is lost.

It is up while it reports its state, its default model is loaded, and it makes progress. It is lost when the connection
breaks, or when it sends nothing or makes no progress for too long. The connection is tried until it is there again.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from typeless_grpc.clock import Clock
from typeless_grpc.engine.interface import Lane
from typeless_grpc.engines.messages import MAX_SAMPLES_BYTES, VERSION, UnforeseenError
from typeless_grpc.engines.servicer import KEY_HEADER
from typeless_grpc.engines.shared_audio import SharedAudio
from typeless_grpc.errors import EngineFailed
from typeless_grpc.pb.engine.v1 import engine_pb2 as pb
from typeless_grpc.pb.engine.v1 import engine_pb2_grpc
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)  # between attempts to reach an engine elsewhere; the last one repeats
RETRY_OWN_S = 0.1  # the same for a process of this server, which listens within seconds
CHECK_EVERY_S = 0.25
SUSPICIOUS_S = 2.0  # without a report, after which an engine gets new calls only if no other is up
MAX_OWN_SILENCE_S = 15.0  # without a report, after which an engine process is lost, and killed
MAX_SILENCE_S = 6.0  # the same for an engine elsewhere, whose calls are only decoded again

DISCONNECTED = "disconnected"
BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # what calls end with when the engine ends

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),  # `run` decides when to try again
    ("grpc.min_reconnect_backoff_ms", 5000),  # for one attempt, with the handshake
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.http2.lookahead_bytes", 2 * MAX_SAMPLES_BYTES),
]


class EngineLost(EngineFailed):
    """The engine ended, cannot be reached, or hangs; another one may decode the call.

    was_alone: whether the call had begun, and the engine had nothing else.
    """

    def __init__(self, engine: str, why: str, *, was_alone: bool = False) -> None:
        super().__init__(f"The engine {engine} was lost: {why}.", reason="ENGINE_LOST")
        self.why = why
        self.was_alone = was_alone


@dataclass(frozen=True)
class RemoteOptions:
    """How an engine is used.

    target: as gRPC names it ("unix:/run/engine", "10.0.0.5:50052"). credentials: makes those of TLS for each
    connection, so that new files are used, and may raise OSError; None for no TLS. key: the secret that the engine
    wants. stall_s: without progress for so long, it hangs. is_own: its process is this server's, which logs its ends
    itself, and it has no other fronts. shared: memory that it shares with this process.
    """

    target: str
    credentials: Callable[[], grpc.ChannelCredentials] | None = None
    key: str = ""
    stall_s: float = 60.0
    is_own: bool = False
    shared: SharedAudio | None = None


@dataclass
class StateReport:
    """The last state that the engine sent, when it came, and the models."""

    state: pb.WatchResponse = field(default_factory=pb.WatchResponse)
    came_s: float = 0.0
    silent_s: float = 0.0
    models: Mapping[str, pb.Model] = field(default_factory=dict)


class EngineConnection:
    """What an engine reports. Belongs to one event loop; `run` keeps it connected."""

    def __init__(
        self,
        name: str,
        options: RemoteOptions,
        clock: Clock,
        *,
        on_change: Callable[[], None] = lambda: None,
        on_lost: Callable[[str], None] = lambda why: None,
    ) -> None:
        """name: for log lines and metrics. on_change: called when the engine is up or down.

        on_lost: called when it was lost, with the reason: DISCONNECTED, "silent" or "stalled".
        """
        self.name = name
        self.options = options
        self.clock = clock
        self.on_change, self._on_lost = on_change, on_lost
        self.front = uuid.uuid4().hex
        self.stall_s, self._key = options.stall_s, options.key
        self.report = StateReport()
        self.is_connected = False
        self.generation = 0  # of the connection: rises with each new one
        self._problem = ""
        self._broken = asyncio.Event()

    def follow_stall_s(self, stall_s: float) -> None:
        """Apply a new value of `engine_stall_s`."""
        self.stall_s = stall_s

    def follow_key(self, key: str) -> None:
        """Take a new value of the setting, for calls and connections that begin."""
        self._key = key

    def replay(self, reports: Sequence[pb.Report], offset_s: float) -> None:
        """Pass on the engine's reports since the last response.

        offset_s: difference of the clock here to the engine's.
        """

    def end_calls(self) -> None:
        """End all calls, because the engine is lost."""

    # ---- the state ----

    @property
    def is_up(self) -> bool:
        """Whether calls can be sent."""
        state = self.report.state
        is_running = self.is_connected and state.is_ready and not state.is_draining
        return is_running and state.stalled_s < self.stall_s

    @property
    def is_suspicious(self) -> bool:
        """Whether it has been silent for longer than a healthy engine."""
        return self.report.silent_s > SUSPICIOUS_S

    @property
    def is_reserved(self) -> bool:
        """Whether it takes no new calls for a moment, because one is to run alone."""
        return self.report.state.is_reserved

    @property
    def runs_on(self) -> str:
        """Where its models run, for people; "" until it has been reached."""
        return self.report.state.runs_on

    @property
    def default_model(self) -> str:
        """The name of its default model; "" until it has been reached."""
        return self.report.state.default_model

    @property
    def models(self) -> Mapping[str, pb.Model]:
        """The models that it knows, by name, as last reported."""
        return self.report.models

    def n_queued(self, lane: Lane) -> int:
        """Return how many windows of a lane are in its queue, as last reported."""
        return self.report.state.n_queued[lane] if self.is_connected and self.report.state.n_queued else 0

    @property
    def backlog_s(self) -> float:
        """See `Engine`; as last reported."""
        reported = self.report.state.backlog_s
        return reported[Lane.UNARY] if reported else 0.0

    @property
    def stalled_s(self) -> float:
        """See `Engine`."""
        if not self.is_connected:
            return float("inf")
        return self.report.state.stalled_s

    # ---- the connection ----

    async def run(self) -> None:
        """Keep the engine connected, until cancelled."""
        n_failed = 0
        while True:
            before = self.generation
            why = await self._connection()
            was_connected = self.generation != before
            n_failed = 0 if was_connected else n_failed + 1
            if was_connected:
                self._on_lost(why)
            pause_s = RETRY_S[min(n_failed, len(RETRY_S) - 1)]
            await asyncio.sleep(RETRY_OWN_S if self.options.is_own else pause_s)

    async def _connection(self) -> str:
        """Connect, and read reports until the engine is lost; return how.

        Each connection has a channel of its own, which resolves the name of the engine again.
        """
        target, credentials = self.options.target, self.options.credentials
        try:
            made = credentials() if credentials else None
        except OSError as error:
            self._log_problem(f"engine_ca_file cannot be read: {error.strerror}")
            return DISCONNECTED
        make = grpc.aio.insecure_channel
        channel = (
            make(target, CHANNEL_OPTIONS) if made is None else grpc.aio.secure_channel(target, made, CHANNEL_OPTIONS)
        )
        async with channel:
            self.stub = engine_pb2_grpc.EngineServiceStub(channel)
            try:
                return await self._watch()
            finally:
                self._lose()  # before the channel closes, so that nobody uses it

    async def _watch(self) -> str:
        """Read the engine's reports until it is lost; return the reason."""
        call: Any = self.stub.Watch(pb.WatchRequest(front=self.front), metadata=self.metadata)
        self._broken = asyncio.Event()
        tasks: list[asyncio.Task[str]] = [
            asyncio.create_task(self._silence(), name="engine-silence"),
            asyncio.create_task(self._read(call), name="engine-state"),
            asyncio.create_task(self._call_broke(), name="engine-calls"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            call.cancel()

    async def _call_broke(self) -> str:
        """Wait until a call finds the connection broken, which may be before the reports end."""
        await self._broken.wait()
        return DISCONNECTED

    async def _read(self, call: Any) -> str:
        """Take reports until the connection breaks."""
        problem = "it ended the connection"
        try:
            async for state in call:
                if state.contract != VERSION:
                    problem = f"its contract is {state.contract}, ours is {VERSION}: run the same version on both sides"
                    break
                self._take(state)
        except grpc.aio.AioRpcError as error:
            problem = error.details() or error.code().name
        self._log_problem(problem)
        return DISCONNECTED

    async def _silence(self) -> str:
        """Count the seconds without a report until there are too many, or the engine hangs; return which of them.

        They are counted in small steps, so that a pause of this process is not taken for one of the engine.
        """
        before_s = self.clock.now_s()
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            now_s = self.clock.now_s()
            self.report.silent_s += min(now_s - before_s, 2 * CHECK_EVERY_S)
            before_s = now_s
            if self.report.silent_s > min(MAX_OWN_SILENCE_S if self.options.is_own else MAX_SILENCE_S, self.stall_s):
                return "silent"
            if self.is_connected and self.report.state.stalled_s > self.stall_s:
                return "stalled"

    def _take(self, state: pb.WatchResponse) -> None:
        """Take a report of the engine's state, and the reports about its work that come with it."""
        report = self.report
        was_up, was_reserved = self.is_up, self.is_reserved
        if state.HasField("models"):
            report.models = {model.name: model for model in state.models.models}
        report.state, report.came_s, report.silent_s = state, self.clock.now_s(), 0.0
        if not self.is_connected:
            self.is_connected, self._problem = True, ""
            self.generation += 1
        self.replay(state.reports, report.came_s - state.now_s)
        if self.is_up and not was_up:
            log.info("engine is up", engine=self.name, runs_on=state.runs_on)
        if self.is_up != was_up or self.is_reserved != was_reserved:
            self.on_change()

    def _lose(self) -> None:
        """Forget the engine's state, and end its calls."""
        self.is_connected = False
        self.report.state = pb.WatchResponse(
            runs_on=self.report.state.runs_on, default_model=self.report.state.default_model
        )
        self.report.silent_s = 0.0
        self.end_calls()
        self.on_change()

    def _log_problem(self, problem: str) -> None:
        """Log why the engine cannot be used, once for each reason."""
        if problem != self._problem and not self.options.is_own:
            self._problem = problem
            log.warning("engine is down", engine=self.name, why=problem)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers of each call: the key, if there is one."""
        return ((KEY_HEADER, self._key),) if self._key else ()

    def failure(self, error: grpc.aio.AioRpcError) -> Exception:
        """Return the exception for a failed call. The engine is lost at once if its connection broke."""
        why = error.details() or error.code().name
        if error.code() not in BROKEN:
            return UnforeseenError(f"engine {self.name}: {why}")
        self.is_connected = False
        self._broken.set()
        return EngineLost(self.name, why)
