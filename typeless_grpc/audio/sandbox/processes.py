"""The decoder processes of a server: a few wait for work, and each decodes one recording or stream."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from typeless_grpc.audio.observer import DecoderObserver
from typeless_grpc.audio.sandbox import fork_server
from typeless_grpc.audio.sandbox.failures import Ended, Failure, error_of, unavailable
from typeless_grpc.errors import SourceUnavailable, TypelessError

FORK_SERVER = ("-m", "typeless_grpc.audio.sandbox.fork_server")
_KEPT_VARIABLES = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TZ")  # the rest may hold secrets
_START_S, _STOP_S = 60.0, 5.0
_RESTART_S = 1.0  # least time between two starts of the fork server
_END_S = 2.0  # for the report of a process that has ended
_INPUT_BYTES_PER_CPU_S = 20_000_000
_GRANTED_AT_ONCE_S = 30


@dataclass(frozen=True)
class SandboxOptions:
    """memory_bytes: memory that a decoder process may use besides its own at the start, 64 MiB or more.

    cpu_s: CPU time besides that for its input and output. stall_s: seconds without progress after which a process is
    ended. n_waiting: processes that wait for work.
    """

    memory_bytes: int = 512 << 20
    cpu_s: int = 10
    stall_s: float = 30.0
    n_waiting: int = 2

    def allowed_cpu_s(self, n_bytes: int, audio_s: float) -> int:
        """Return the CPU time for n_bytes of input and audio_s of output."""
        return self.cpu_s + n_bytes // _INPUT_BYTES_PER_CPU_S + int(audio_s)


class DecoderProcess:
    """A process that decodes one recording or stream, seen from the server."""

    def __init__(self, number: int, owner: DecoderProcesses, connection: socket.socket, ended: socket.socket) -> None:
        self.connection = connection
        self._number, self._owner, self._ended = number, owner, ended
        self._granted_s = owner.options.cpu_s

    def is_there(self) -> bool:
        """Whether it has not ended, while it has nothing to send."""
        try:
            return bool(self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def allow_cpu(self, n_bytes: int, audio_s: float) -> None:
        """Raise its limit of CPU time for n_bytes of input and audio_s of output in all; it is never lowered."""
        due_s = self._owner.options.allowed_cpu_s(n_bytes, audio_s)
        if due_s >= self._granted_s + _GRANTED_AT_ONCE_S:
            self._granted_s = due_s
            self._owner.command(fork_server.ALLOW_CPU, self._number, self._granted_s)

    def end(self) -> None:
        """Kill it, unless it has ended."""
        self._owner.command(fork_server.KILL, self._number)

    def ended(self) -> Ended | None:
        """Wait for its end, and return it; None if the fork server has ended, too. Blocks for 2 s at most."""
        self._ended.settimeout(_END_S)
        with suppress(OSError):
            if data := self._ended.recv(fork_server.ENDED.size):
                return Ended(*fork_server.ENDED.unpack(data))
        return None

    def failed(self, failure: Failure, field: str) -> TypelessError:
        """Count a failure, and return the error for the caller."""
        if self._owner.observer is not None:
            self._owner.observer.decoder_failed(failure.value)
        return error_of(failure, field)

    def close(self) -> None:
        """Close the connection. A process that waits for the server ends then. Another one takes its place."""
        self.discard()
        self._owner.refill()

    def discard(self) -> None:
        """Close the connection."""
        self.connection.close()
        self._ended.close()


class DecoderProcesses:
    """Starts decoder processes. Threads may share it."""

    def __init__(
        self,
        options: SandboxOptions | None = None,
        observer: DecoderObserver | None = None,
        program: Sequence[str] = FORK_SERVER,
    ) -> None:
        """program: arguments of Python that start the fork server."""
        self.options, self.observer = options or SandboxOptions(), observer
        self._program = program
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._started_s = float("-inf")
        self._waiting: deque[DecoderProcess] = deque()
        self._last_number = 0
        self._is_closed = False

    def start(self) -> bool:
        """Start the fork server, and wait until it is ready. Return whether system calls are filtered. Blocks.

        Raises SourceUnavailable.
        """
        with self._lock:
            control = self._restarted()
            self._fill(control)
        ready, _, _ = select.select([control.fileno()], [], [], _START_S)  # without the lock: `take` need not wait
        data = b""
        with suppress(OSError):
            data = control.recv(fork_server.READY.size) if ready else b""
        if not data:
            message = "The process that starts decoder processes ended, or is not ready after a minute."
            raise SourceUnavailable(message, reason="DECODER_NOT_STARTED")
        return bool(fork_server.READY.unpack(data)[0])

    def take(self) -> DecoderProcess:
        """Return a process that is waiting, or a new one; it need not have begun. Raises Overloaded."""
        with self._lock:
            if self._is_closed:
                raise unavailable("This server stops. Try another replica.")
            control = self._control
            if control is None or self._helper is None or self._helper.poll() is not None:
                if time.monotonic() - self._started_s < _RESTART_S:
                    raise unavailable("Decoder processes start again. Repeat the call.")
                control = self._restarted()
            while self._waiting:
                process = self._waiting.popleft()
                if process.is_there():
                    return process
                process.failed(Failure.KILLED, "")
                process.discard()
            return self._forked(control)

    def refill(self) -> None:
        """Start processes until n_waiting wait for work. Called when a process has ended, not while it decodes."""
        with self._lock, suppress(TypelessError):
            if not self._is_closed and self._control is not None:
                self._fill(self._control)

    def command(self, kind: bytes, number: int, cpu_s: int = 0) -> None:
        """Send a command about a process. It is lost if the fork server has ended: its processes end with it."""
        control = self._control
        if control is not None:
            with suppress(OSError):
                control.send(fork_server.COMMAND.pack(kind, number, cpu_s))

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._is_closed = True
            self._stop()

    def _fill(self, control: socket.socket) -> None:
        """Start as many processes as should wait for work."""
        while len(self._waiting) < self.options.n_waiting:
            self._waiting.append(self._forked(control))

    def _forked(self, control: socket.socket) -> DecoderProcess:
        """Return a new process, which the fork server starts. Raises Overloaded."""
        self._last_number += 1
        connection, its_connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ended, its_ended = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = fork_server.COMMAND.pack(fork_server.FORK, self._last_number, 0)
        with its_connection, its_ended:
            try:
                socket.send_fds(control, [command], [its_connection.fileno(), its_ended.fileno()])
            except OSError as error:
                connection.close()
                ended.close()
                raise unavailable("Too many decoder processes start at once. Repeat the call.") from error
        return DecoderProcess(self._last_number, self, connection, ended)

    def _restarted(self) -> socket.socket:
        """Start the fork server, in place of one that has ended."""
        self._stop()
        self._started_s = time.monotonic()
        control, its_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its_control:
            self._helper = subprocess.Popen(
                [sys.executable, "-I", *self._program, str(its_control.fileno())],
                stdin=subprocess.DEVNULL,
                cwd="/",
                env=_environment(),
                pass_fds=[its_control.fileno()],
            )
        control.setblocking(False)
        self._control = control
        return control

    def _stop(self) -> None:
        """Stop the helper, which ends its processes too."""
        while self._waiting:
            self._waiting.popleft().discard()
        if self._control is not None:
            self._control.close()  # it ends, and the kernel ends its processes
            self._control = None
        if self._helper is not None:
            try:
                self._helper.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._helper.kill()
                self._helper.wait()
            self._helper = None


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    # A fork copies one thread only, so OpenBLAS must not have others.
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
