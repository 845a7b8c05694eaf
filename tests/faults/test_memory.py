"""The memory limit of a control group is reached: the kernel ends a decoder process, and not the server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.harness import AUDIO, REPOSITORY, serving
from tests.service.test_transcribe import refused
from typeless_grpc.audio.decoders import sandboxed
from typeless_grpc.audio.sandbox.processes import DecoderProcesses, SandboxOptions
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2

pytestmark = pytest.mark.timeout(100)

BROKEN = REPOSITORY / "tests" / "unit" / "audio" / "sandbox" / "broken_decoder.py"
LIMIT_BYTES = 512 << 20  # less than the decoder may have


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with this limit (v1 or v2)."""
    root = Path("/sys/fs/cgroup")
    is_v1 = (root / "memory").is_dir()
    made = (root / "memory" if is_v1 else root) / f"typeless-test-{os.getpid()}"
    try:
        if not is_v1:
            (root / "cgroup.subtree_control").write_text("+memory")
        made.mkdir()
        (made / ("memory.limit_in_bytes" if is_v1 else "memory.max")).write_text(str(LIMIT_BYTES))
    except OSError as error:
        with suppress(OSError):
            made.rmdir()
        pytest.skip(f"no control group can be made here ({error}); in a container: docker run --privileged")
    yield made
    with suppress(OSError):
        made.rmdir()


def recording(content: bytes) -> transcription_pb2.TranscribeRequest:
    return transcription_pb2.TranscribeRequest(audio=audio_pb2.AudioSource(content=content))


async def serve_within(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))
    options = SandboxOptions(memory_bytes=8 << 30, cpu_s=60, stall_s=60.0)
    good = (AUDIO / "en_short.webm").read_bytes()
    with closing(DecoderProcesses(options, program=[str(BROKEN)])) as processes:
        processes.start()
        async with serving(ScriptedEngine(lambda call: "fine"), decoders=sandboxed(processes)) as served:
            growing = [asyncio.create_task(refused(served.transcription.Transcribe(recording(b"GROW")))) for _ in "ab"]
            for failure in await asyncio.gather(*growing):
                assert failure.reason in ("DECODER_FAILED", "DECODER_UNAVAILABLE"), failure
            async with asyncio.timeout(20):
                assert (await served.transcription.Transcribe(recording(good))).transcript.text == "fine"


def test_the_kernel_ends_decoders_and_not_their_server(group: Path):
    program = [sys.executable, "-m", "tests.faults.test_memory", str(group)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=80)
    assert done.returncode == 0, done.stdout + done.stderr
    found = group / "memory.oom_control" if (group / "memory.oom_control").exists() else group / "memory.events"
    kills = dict(line.split() for line in found.read_text().splitlines())
    assert int(kills["oom_kill"]) > 0, "the limit was reached"


if __name__ == "__main__":
    asyncio.run(serve_within(Path(sys.argv[1])))
