"""A client of HTTP/2 that sends any frames, legal or not, and reads what comes back."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import unquote

import hpack
from hyperframe import frame as frames
from hyperframe.frame import Frame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TIMEOUT_S = 10.0
WINDOW_BYTES = 2**31 - 1
DEFAULT_WINDOW_BYTES = 65_535


def settings(**values: int) -> bytes:
    """A SETTINGS frame: settings(INITIAL_WINDOW_SIZE=0)."""
    numbered = {getattr(frames.SettingsFrame, name): value for name, value in values.items()}
    return frames.SettingsFrame(0, settings=numbered).serialize()


def raw(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """Any frame, also one that no library makes. length: what it claims to have, if that is not the truth."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def message(data: bytes = b"", *, flag: int = 0, length: int | None = None) -> bytes:
    """A message of gRPC with its prefix. length: what the prefix claims, if that is not the truth."""
    return struct.pack(">BI", flag, len(data) if length is None else length) + data


def headers_of(
    method: str, *more: tuple[str, str], key: str = "", instead: dict[str, str] | None = None
) -> list[tuple[str, str]]:
    """The headers of a call. instead: values of the usual ones; "" leaves one out."""
    usual = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "test",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    chosen = [(name, value) for name, value in (usual | (instead or {})).items() if value]
    return [*chosen, *([("x-api-key", key)] if key else []), *more]


@dataclass
class Answer:
    """What has come back for a stream. error: of its RST_STREAM."""

    headers: list[tuple[str, str]] = field(default_factory=list)
    data: bytes = b""
    error: int | None = None
    has_ended: bool = False

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")

    @property
    def status(self) -> int | None:
        """The status of the call; None without one."""
        text = self.header("grpc-status")
        return int(text) if text else None

    @property
    def text(self) -> str:
        return unquote(self.header("grpc-message"))


class Peer:
    """One connection. Bytes that the other side no longer takes are dropped: the server may close whenever it likes."""

    def __init__(self, port: int, *, begin: bytes | None = None, receive_bytes: int = 0, source: str = "") -> None:
        """begin: the first bytes, if they are not those of a client. receive_bytes: the size of the socket's buffer."""
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        if source:
            self.socket.bind((source, 0))
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._received = bytearray()
        self.answers: dict[int, Answer] = {}
        self.is_closed = False
        self.next_stream = 1
        self.used: dict[int, int] = {}  # bytes of data sent, by stream
        self._windows: dict[int, int] = {0: DEFAULT_WINDOW_BYTES}
        self._initial_window_bytes = DEFAULT_WINDOW_BYTES
        self.send(PREFACE + settings(INITIAL_WINDOW_SIZE=WINDOW_BYTES) if begin is None else begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self, *, abruptly: bool = False) -> None:
        """Close the connection; abruptly with a reset of TCP."""
        if abruptly:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # ---- sending ----

    def send(self, *data: bytes) -> bool:
        """Send bytes; return whether the other side took them."""
        if self.is_closed:
            return False
        try:
            self.socket.sendall(b"".join(data))
        except (ConnectionError, TimeoutError):
            self.is_closed = True
        return not self.is_closed

    def opening(
        self, headers: Iterable[tuple[str, str]], *, flags: Sequence[str] = ("END_HEADERS",)
    ) -> tuple[int, bytes]:
        """Return a new stream's number, and its HEADERS frame."""
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        made = frames.HeadersFrame(stream, self.encoder.encode(list(headers)), flags=list(flags))
        return stream, made.serialize()

    def call(self, headers: Iterable[tuple[str, str]], *messages: bytes, end: bool = True) -> int:
        """Begin a call with these messages; return its stream."""
        stream, opened = self.opening(headers)
        sent = [frames.DataFrame(stream, one).serialize() for one in messages]
        if end:
            sent.append(frames.DataFrame(stream, b"", flags=["END_STREAM"]).serialize())
        self.send(opened, *sent)
        return stream

    def window(self, stream: int) -> int:
        """How many bytes of data the server takes in all, on the connection (0) or in a stream."""
        return self._windows.get(stream, 0) + (self._initial_window_bytes if stream else 0)

    # ---- receiving ----

    def answer(self, stream: int, timeout_s: float = TIMEOUT_S) -> Answer:
        """Read until a stream has ended, the connection closes or the time is over; return what came."""
        self.read(lambda: self.answers.get(stream, Answer()).has_ended, timeout_s)
        return self.answers.setdefault(stream, Answer())

    def read(self, is_enough: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Read frames until it is enough, the connection closes or the time is over."""
        deadline_s = time.monotonic() + timeout_s
        while not is_enough() and not self.is_closed and (left_s := deadline_s - time.monotonic()) > 0:
            self.socket.settimeout(left_s)
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                break
            except ConnectionError:
                data = b""
            finally:
                self.socket.settimeout(TIMEOUT_S)
            if not data:
                self.is_closed = True
            self._received += data
            for frame in self._frames():
                self._take(frame)

    def _frames(self) -> Iterator[Frame]:
        while len(self._received) >= 9:
            frame, size = Frame.parse_frame_header(memoryview(self._received[:9]))
            if len(self._received) < 9 + size:
                return
            body = bytes(self._received[9 : 9 + size])
            del self._received[: 9 + size]
            frame.parse_body(memoryview(body))
            yield frame

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, frames.PingFrame) and "ACK" not in frame.flags:
            self.send(frames.PingFrame(0, frame.opaque_data, flags=["ACK"]).serialize())
        elif isinstance(frame, frames.WindowUpdateFrame):
            self._windows[frame.stream_id] = self._windows.get(frame.stream_id, 0) + frame.window_increment
        elif isinstance(frame, frames.SettingsFrame) and "ACK" not in frame.flags:
            initial = frame.settings.get(frames.SettingsFrame.INITIAL_WINDOW_SIZE)
            self._initial_window_bytes = self._initial_window_bytes if initial is None else initial
            self.send(frames.SettingsFrame(0, flags=["ACK"]).serialize())
        elif frame.stream_id:
            answer = self.answers.setdefault(frame.stream_id, Answer())
            if isinstance(frame, frames.HeadersFrame):
                decoded = self._decoder.decode(frame.data, raw=True)
                answer.headers += [(name.decode("latin-1"), value.decode("latin-1")) for name, value in decoded]
            elif isinstance(frame, frames.DataFrame):
                answer.data += frame.data
            elif isinstance(frame, frames.RstStreamFrame):
                answer.error, answer.has_ended = frame.error_code, True
            answer.has_ended |= "END_STREAM" in frame.flags
