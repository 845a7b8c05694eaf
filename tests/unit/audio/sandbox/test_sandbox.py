"""Containers that are decoded in processes of their own: with the same result, and confined."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from tests.harness import AUDIO
from tests.media import KINDS, media
from typeless_grpc.audio.containers import DecodeCancelled
from typeless_grpc.audio.decode import Decoded, DecodeLimits, decode
from typeless_grpc.audio.decoders import IN_PROCESS, Decoders, sandboxed
from typeless_grpc.audio.formats import Audio, AudioFormat
from typeless_grpc.audio.live import LiveReader, live_reader
from typeless_grpc.audio.sandbox.processes import DecoderProcesses, SandboxOptions
from typeless_grpc.audio.sandbox.recordings import SandboxedReader
from typeless_grpc.errors import InvalidInput, Overloaded, TypelessError

LIMITS = DecodeLimits(max_duration_s=600)
BROKEN = str(Path(__file__).with_name("broken_decoder.py"))
RECORDINGS = sorted(path.name for path in AUDIO.iterdir() if path.suffix not in (".md", ".sh", ".json"))


class Counted:
    """A `DecoderObserver` that keeps what it is notified of."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def decoder_failed(self, reason: str) -> None:
        self.reasons.append(reason)


class NoDescriptor(io.BytesIO):
    """A file as an object store has it."""


@pytest.fixture(scope="module")
def processes() -> Iterator[DecoderProcesses]:
    with closing(DecoderProcesses()) as processes:
        assert processes.start(), "system calls are not filtered here"
        yield processes


@pytest.fixture(scope="module")
def decoders(processes: DecoderProcesses) -> Decoders:
    return sandboxed(processes)


@pytest.fixture(scope="module")
def broken() -> Iterator[DecoderProcesses]:
    options = SandboxOptions(memory_bytes=64 << 20, cpu_s=1, stall_s=60.0)
    with closing(DecoderProcesses(options, program=[BROKEN])) as processes:
        assert processes.start()
        yield processes


@pytest.fixture
def observed(broken: DecoderProcesses) -> Counted:
    broken.observer = counted = Counted()
    return counted


def result(data: bytes | BinaryIO, decoders: Decoders, **options: object) -> object:
    """The samples, or the error with its field."""
    try:
        decoded: Decoded = decode(data, AudioFormat(), LIMITS, open_container=decoders.recording, **options)  # type: ignore[arg-type]
    except InvalidInput as error:
        return error.reason, error.violations
    return decoded.samples.shape, decoded.samples.tobytes(), decoded.source


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_is_decoded_as_in_this_process(name: str, decoders: Decoders):
    data = (AUDIO / name).read_bytes()
    expected = result(data, IN_PROCESS)
    assert result(data, decoders) == expected
    assert result(NoDescriptor(data), decoders) == expected
    with (AUDIO / name).open("rb") as file:
        assert result(file, decoders) == expected


def test_channels_are_kept_apart_as_in_this_process(decoders: Decoders):
    data = (AUDIO / "two_speakers_stereo.flac").read_bytes()
    expected = result(data, IN_PROCESS, separate_channels=True)
    assert isinstance(expected[0], tuple)
    assert len(expected[0]) == 2
    assert result(data, decoders, separate_channels=True) == expected


def test_an_error_names_the_field_of_the_request(decoders: Decoders):
    data = (AUDIO / "en_short_truncated.m4a").read_bytes()
    assert result(data, decoders, field="items[3].audio") == result(data, IN_PROCESS, field="items[3].audio")
    assert result(b"", decoders)[0] == "AUDIO_MISSING"


def test_a_recording_that_is_too_long_is_refused(decoders: Decoders):
    data = (AUDIO / "en_minute.ogg").read_bytes()
    with pytest.raises(InvalidInput) as error:
        decode(data, AudioFormat(), DecodeLimits(max_duration_s=5), open_container=decoders.recording)
    assert error.value.reason == "AUDIO_TOO_LONG"


def test_the_position_tells_the_progress(processes: DecoderProcesses):
    data = (AUDIO / "en_minute.ogg").read_bytes()
    reader = SandboxedReader(processes, data, AudioFormat(), LIMITS)
    positions = [reader.position for _ in reader.blocks()]
    assert positions == sorted(positions)
    assert 0 < positions[0] < positions[-1] <= len(data)


def test_a_cancelled_recording_ends_its_process(processes: DecoderProcesses):
    is_over = threading.Event()
    reader = SandboxedReader(
        processes, (AUDIO / "en_minute.ogg").read_bytes(), AudioFormat(), LIMITS, cancelled=is_over.is_set
    )
    blocks = reader.blocks()
    next(blocks)
    is_over.set()
    with pytest.raises(DecodeCancelled):
        list(blocks)


# ---- streams ---------------------------------------------------------------------------------------------------


async def streamed(reader: LiveReader, data: bytes, n_bytes: int) -> tuple[Audio, object]:
    """The samples up to the end or an error, and the error."""
    blocks: list[Audio] = [np.zeros(0, dtype=np.float32)]
    error: object = None
    with closing(reader):
        try:
            for start in range(0, len(data), n_bytes):
                blocks += [block async for block in reader.feed(data[start : start + n_bytes])]
            blocks += [block async for block in reader.finish()]
        except InvalidInput as invalid:
            error = invalid.reason, invalid.violations
        return np.concatenate(blocks), (error, reader.declared_s)


@pytest.mark.parametrize("is_live", [True, False], ids=["live", "file"])
@pytest.mark.parametrize("n_bytes", [997, 200_000])
@pytest.mark.parametrize("kind", ["webm", "ogg", "fragmented mp4", "mp4", "mp3", "mpegts", "flac", "mkv, PCM"])
async def test_a_stream_is_decoded_as_in_this_process(kind: str, n_bytes: int, is_live: bool, decoders: Decoders):
    data = media(KINDS[kind])
    expected, expected_end = await streamed(live_reader(AudioFormat(), field="config", is_live=is_live), data, n_bytes)
    boxed = live_reader(AudioFormat(), field="config", is_live=is_live, open_container=decoders.stream)
    samples, end = await streamed(boxed, data, n_bytes)
    assert np.array_equal(samples, expected)
    assert end == expected_end


async def test_a_stream_can_be_closed_at_any_time(decoders: Decoders):
    data = (AUDIO / "en_short.webm").read_bytes()
    reader = live_reader(AudioFormat(), field="config", open_container=decoders.stream)
    assert [block async for block in reader.feed(data[:4000])]
    feeding = asyncio.ensure_future(anext(aiter(reader.feed(data[4000:8000])), None))
    await asyncio.wait([feeding], timeout=0)
    reader.close()
    reader.close()
    await asyncio.gather(feeding, return_exceptions=True)
    assert [block async for block in reader.feed(data[8000:])] == []
    assert feeding.done()


# ---- what a decoder may not do ---------------------------------------------------------------------------------


def failure_on(data: bytes, processes: DecoderProcesses) -> TypelessError:
    with pytest.raises(TypelessError) as error:
        decode(data, AudioFormat(), LIMITS, open_container=sandboxed(processes).recording)
    return error.value


@pytest.mark.parametrize(
    "act", ["OPEN", "WRITE", "LIST", "CONNECT", "PAIR", "FORK", "EXEC", "THREAD", "SIGNAL", "LIMIT", "CODE"]
)
def test_a_decoder_is_prevented_from(act: str, broken: DecoderProcesses):
    error = failure_on(act.encode(), broken)
    assert "prevented: " in error.message
    assert error.reason == "AUDIO_UNDECODABLE"


@pytest.mark.parametrize(
    ("act", "label", "why"),
    [
        ("CRASH", "crashed", "crashed"),
        ("EXIT", "crashed", "crashed"),
        ("GROW", "out_of_memory", "more memory"),
        ("HANG", "out_of_cpu_time", "too long"),
    ],
)
def test_a_decoder_that_fails_fails_its_own_call(
    act: str, label: str, why: str, broken: DecoderProcesses, observed: Counted
):
    good = (AUDIO / "en_short.flac").read_bytes()
    other = SandboxedReader(broken, good, AudioFormat(), LIMITS)
    error = failure_on(act.encode(), broken)
    assert (type(error), error.reason) == (InvalidInput, "DECODER_FAILED")
    assert error.message.startswith("audio.content: ")
    assert why in error.message
    assert not error.retryable
    assert observed.reasons == [label]
    assert sum(len(block) for block in other.blocks()) > 16_000
    assert result(good, sandboxed(broken)) == result(good, IN_PROCESS)


@pytest.mark.parametrize("act", ["CRASH", "GROW", "HANG"])
async def test_a_decoder_that_fails_fails_its_own_stream(act: str, broken: DecoderProcesses, observed: Counted):
    reader = live_reader(AudioFormat(), field="config", open_container=sandboxed(broken).stream)
    with closing(reader), pytest.raises(InvalidInput) as error:
        _ = [block async for block in reader.feed(act.encode() + b" " * 64)]
    assert error.value.reason == "DECODER_FAILED"
    assert error.value.violations[0].field == "audio"
    assert len(observed.reasons) == 1


def test_a_decoder_that_makes_no_progress_is_ended(observed: Counted, broken: DecoderProcesses):
    """It had a core and used none of it: the machine may be at fault, and the caller may try again."""
    options, broken.options = broken.options, SandboxOptions(stall_s=1.0)
    try:
        error = failure_on(b"SLEEP", broken)
    finally:
        broken.options = options
    assert (error.reason, error.retryable, observed.reasons) == ("DECODER_UNAVAILABLE", True, ["killed"])


@pytest.mark.parametrize(
    "sent",
    [
        b"zzz",
        b"o[]",
        b"o{}",
        b"o" + b"[" * 10_000,
        b'o{"container": "ogg", "codec": "a\\u001b[0m", "sample_rate_hz": 1, "n_channels": 1}',
        b'i{"reason": "KEY_INVALID", "violations": [["audio", "x"]]}',
        b'i{"reason": "AUDIO_EMPTY", "violations": [["model", "x"]]}',
        b'i{"reason": "AUDIO_EMPTY", "violations": []}',
        b"b" + bytes(100),
        b"r" + bytes(3),
        b"r" + b"\xff" * 12,
        b"e",
    ],
    ids=repr,
)
def test_what_no_decoder_sends_is_not_believed(sent: bytes, broken: DecoderProcesses, observed: Counted):
    error = failure_on(b"SEND " + sent, broken)
    assert (error.reason, observed.reasons) == ("DECODER_FAILED", ["violated_protocol"])


def test_processes_that_were_killed_while_they_waited_are_replaced(broken: DecoderProcesses, observed: Counted):
    good = (AUDIO / "en_short.flac").read_bytes()
    expected = result(good, sandboxed(broken))
    (fork_server,) = [pid for pid in descendants(os.getpid()) if is_fork_server(pid)]
    killed = descendants(fork_server)
    for pid in killed:
        with suppress(ProcessLookupError):  # the one that decoded ends by itself
            os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in killed):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert result(good, sandboxed(broken)) == expected
    assert set(observed.reasons) == {"killed"}


def test_the_fork_server_is_started_again(broken: DecoderProcesses):
    (fork_server,) = [pid for pid in descendants(os.getpid()) if is_fork_server(pid)]
    os.kill(fork_server, signal.SIGKILL)
    good, deadline_s = (AUDIO / "en_short.flac").read_bytes(), time.monotonic() + 20
    expected = result(good, IN_PROCESS)
    while (found := result_or_none(good, broken)) is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert found == expected


def result_or_none(data: bytes, processes: DecoderProcesses) -> object:
    """The samples, None if decoder processes start again."""
    try:
        return result(data, sandboxed(processes))
    except Overloaded as error:
        return None if error.reason == "DECODER_UNAVAILABLE" else error


def test_nothing_is_left_of_a_server_that_was_killed(tmp_path: Path):
    program = (
        "import sys\n"
        "from typeless_grpc.audio.sandbox.processes import DecoderProcesses\n"
        "DecoderProcesses().start()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    server = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin
    assert server.stdout
    with server.stdin, server.stdout:
        assert server.stdout.readline() == b"ready\n"
        deadline_s = time.monotonic() + 30
        while len(started := descendants(server.pid)) < 3:  # the fork server, and two processes that wait
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        server.kill()
        server.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def is_fork_server(pid: int) -> bool:
    """Whether this process was started with the broken decoder by this one, and still runs."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return BROKEN.encode() in Path(f"/proc/{pid}/cmdline").read_bytes() and int(status[1]) == os.getpid()
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text(encoding="ascii").split()):
            found += [child, *descendants(child)]
    return found
