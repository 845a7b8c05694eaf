"""The microphone through PortAudio and ALSA, as on a real machine: ALSA plays a recording as its input."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import AUDIO, serving
from typeless_grpc.client.microphone import NoMicrophone, async_microphone, microphone
from typeless_grpc.engine.scripted import ScriptedEngine

SPEECH = AUDIO / "en_short_s16le_16k.raw"
MACHINE = Path("/usr/share/alsa/alsa.conf")
ALSA = """
</usr/share/alsa/alsa.conf>
pcm.!default { type plug slave.pcm "spoken" }
pcm.spoken { type file slave.pcm "null" file "/dev/null" infile "%s" format "raw" }
"""
LISTEN = """
import asyncio, sys
from typeless_grpc.client.microphone import async_microphone, microphone

async def recorded():
    blocks = b""
    async for block in async_microphone():
        blocks += block
        if len(blocks) >= 40_000:
            return blocks

if sys.argv[1] == "async":
    sys.stdout.buffer.write(asyncio.run(recorded()))
else:
    blocks = microphone()
    sys.stdout.buffer.write(b"".join(next(blocks) for _ in range(13)))
    blocks.close()
"""


@pytest.fixture
def with_microphone(tmp_path: Path) -> dict[str, str]:
    """The environment of a program that has a microphone."""
    try:
        import sounddevice  # noqa: F401
    except OSError:
        pytest.skip("no PortAudio on this machine: apt-get install libportaudio2")
    if not MACHINE.exists():
        pytest.skip("no ALSA on this machine: apt-get install libasound2-data")
    (tmp_path / "asound.conf").write_text(ALSA % SPEECH, "utf-8")
    return os.environ | {"ALSA_CONFIG_PATH": str(tmp_path / "asound.conf")}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_microphone_is_recorded(kind: str, with_microphone: dict[str, str]):
    done = subprocess.run(
        [sys.executable, "-c", LISTEN, kind], env=with_microphone, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert SPEECH.read_bytes()[16_000:32_000] in done.stdout


async def test_the_command_prints_speech_and_ends_on_ctrl_c(with_microphone: dict[str, str]):
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        process = await asyncio.create_subprocess_exec(
            *(Path(sys.executable).parent / "typeless", "stream", "mic", "--json", "--server", served.target),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=with_microphone,
        )
        assert process.stdout
        async with asyncio.timeout(60):
            events = [json.loads(await process.stdout.readline())]
            while "speechActivity" not in events[-1]:
                events.append(json.loads(await process.stdout.readline()))
            process.send_signal(signal.SIGINT)
            rest, complaints = await process.communicate()
    assert (process.returncode, complaints) == (0, b"")
    assert "hello" in json.loads(rest.splitlines()[-1])["completed"]["transcript"]["text"]


@pytest.mark.parametrize("listen", [microphone, async_microphone], ids=["sync", "async"])
def test_a_missing_library_is_named(listen, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(NoMicrophone, match=r"pip install 'typeless-grpc\[mic\]'"):
        listen()


def test_a_missing_microphone_is_one_line(with_microphone: dict[str, str]):
    typeless = Path(sys.executable).parent / "typeless"
    done = subprocess.run(
        [typeless, "stream", "mic", "--device", "nowhere"],
        env=with_microphone,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("typeless: the microphone cannot be used: ")
