"""Starts decoder processes: `python -m typeless_grpc.audio.sandbox.fork_server DESCRIPTOR`.

It has imported what they need, so a new process is a fork that takes milliseconds and shares its memory. The server
starts it afresh, with a clean environment and no descriptor but a socket: it has no key, no setting and no audio in its
memory that a decoder could inherit. It has one thread, because a fork copies no other.
"""

from __future__ import annotations

import array
import gc
import io
import os
import resource
import select
import signal
import socket
import struct
import sys
import wave
from contextlib import suppress
from dataclasses import dataclass

from typeless_grpc.audio.decode import DecodeLimits, iter_decode
from typeless_grpc.audio.formats import AudioFormat
from typeless_grpc.audio.sandbox import confinement, decoder

FORK, KILL, ALLOW_CPU = b"F", b"K", b"C"
COMMAND = struct.Struct("<cQI")  # kind, number of the process, seconds of CPU time
READY = struct.Struct("<?")  # whether system calls are filtered
ENDED = struct.Struct("<id")  # wait status, seconds of CPU time

_CONNECTION = 3  # the one descriptor of a decoder process, beside its input


@dataclass
class _Child:
    """A decoder process that was forked. number: the server's, in commands."""

    number: int
    ended: socket.socket  # where its end is reported


class ForkServer:
    """Forks, kills and reaps decoder processes, until its own server ends."""

    def __init__(self, control: socket.socket, decode: decoder.Decode) -> None:
        self._control, self._decode = control, decode
        self._children: dict[int, _Child] = {}
        self._pids: dict[int, int] = {}
        self._nothing = os.open(os.devnull, os.O_RDWR)
        self._base_bytes = confinement.address_space_bytes()

    def run(self) -> None:
        """Serve. Returns when the server has ended."""
        woken, waking = os.pipe()
        for descriptor in (woken, waking):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._control.send(READY.pack(self._is_filtered()))
        while True:
            ready, _, _ = select.select([self._control.fileno(), woken], [], [])
            if woken in ready:
                os.read(woken, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._command():
                return

    def _command(self) -> bool:
        """Carry out one command of the server: fork, kill or limit a process. Return False once it has closed."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, COMMAND.size, 2)
        except ConnectionResetError:
            return False
        if not data:
            return False
        kind, number, cpu_s = COMMAND.unpack(data)
        if kind == FORK:
            self._fork(number, *(socket.socket(fileno=one) for one in descriptors))
        elif number in self._pids:  # not reaped yet, so the id is still its own
            if kind == KILL:
                os.kill(self._pids[number], signal.SIGKILL)
            else:
                resource.prlimit(self._pids[number], resource.RLIMIT_CPU, (cpu_s, resource.RLIM_INFINITY))
        return True

    def _fork(self, number: int, connection: socket.socket, ended: socket.socket) -> None:
        """Fork a process that serves `connection`; `ended` gets a report when it has ended."""
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            connection.close()
            ended.close()  # without a report, because it does not exist
            return
        if pid:
            connection.close()
            self._children[pid] = _Child(number, ended)
            self._pids[number] = pid
            return
        try:
            confinement.die_with_parent(parent)
            self._serve(connection)
        except BaseException:
            os._exit(1)
        os._exit(0)

    def _serve(self, connection: socket.socket) -> None:
        """Decode, in the new process, with no descriptor of this one."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (0, 1, 2):
            os.dup2(self._nothing, descriptor)
        os.dup2(connection.detach(), _CONNECTION)
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor > _CONNECTION:
                with suppress(OSError):  # that of the list itself
                    os.close(descriptor)
        gc.enable()
        decoder.serve(socket.socket(fileno=_CONNECTION), self._base_bytes, self._decode)

    def _reap(self) -> None:
        while self._children:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                return
            child = self._children.pop(pid, None)
            if child is None:
                continue
            del self._pids[child.number]
            with child.ended, suppress(OSError):  # the server may not read the report any more
                child.ended.send(ENDED.pack(status, usage.ru_utime + usage.ru_stime))

    def _is_filtered(self) -> bool:
        """Confine a process, to see whether this machine can."""
        pid = os.fork()
        if not pid:
            try:
                is_filtered = confinement.confine(resource.RLIM_INFINITY, 10)
                os._exit(0 if is_filtered else 1)
            finally:
                os._exit(2)
        return os.waitpid(pid, 0)[1] == 0


def main(control: int, decode: decoder.Decode = decoder.decode) -> None:
    """Serve the socket with this descriptor. decode: what decoder processes do with a request."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a terminal signals all processes
        signal.signal(number, signal.SIG_IGN)
    confinement.prefer_in_out_of_memory()
    _warm_up()
    gc.collect()
    gc.disable()
    gc.freeze()  # a collection would write to memory that is shared
    ForkServer(socket.socket(fileno=control), decode).run()


def _warm_up() -> None:
    """Decode a second of silence, so that all is imported."""
    file = io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setnchannels(2)
        recording.setsampwidth(2)
        recording.setframerate(48_000)
        recording.writeframes(array.array("h", [0]) * 96_000)
    for _ in iter_decode(file.getvalue(), AudioFormat(), DecodeLimits(max_duration_s=2.0)):
        pass


if __name__ == "__main__":
    main(int(sys.argv[1]))
