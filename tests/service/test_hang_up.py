"""SIGHUP to real processes: `typeless serve` and `typeless worker` read their settings again.

Also log_level and log_format, which only a process of its own has.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.harness import request
from tests.servers import free_port
from tests.service.test_jobs import until
from typeless_grpc.pb.v1 import transcription_pb2_grpc

pytestmark = pytest.mark.model
PIPE = asyncio.subprocess.PIPE
SECRET = "a-secret-that-nobody-may-see"


@dataclass
class Running:
    """A process of ours. file: its settings. keys: the file of its API keys. lines: what it has logged."""

    process: asyncio.subprocess.Process
    file: Path
    keys: Path
    port: int
    lines: list[str] = field(default_factory=list)

    def hang_up(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def write(self, text: str) -> None:
        """Replace the file, as editors do."""
        other = self.file.with_suffix(".new")
        other.write_text(text, "utf-8")
        other.rename(self.file)

    async def until(self, *texts: str) -> str:
        """Return the next line on stderr that has these texts."""
        assert self.process.stderr
        async with asyncio.timeout(60):
            while line := (await self.process.stderr.readline()).decode():
                self.lines.append(line)
                if all(text in line for text in texts):
                    return line
        raise AssertionError(f"{texts} did not come: {self.lines}")

    async def reloaded(self, text: str) -> str:
        self.write(text)
        self.hang_up()
        return await self.until("settings reloaded")

    async def transcribe(self, key: str = SECRET) -> str:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            stub = transcription_pb2_grpc.TranscriptionServiceStub(channel)
            call = stub.Transcribe(request(), metadata=[("x-api-key", key)], timeout=30)
            return str((await call.code()).name)

    async def stop(self) -> None:
        self.process.terminate()
        await self.ended()

    async def ended(self) -> None:
        """Wait for its end, which must be a good one."""
        assert self.process.stderr
        self.lines += (await self.process.stderr.read()).decode().splitlines()
        assert await asyncio.wait_for(self.process.wait(), 60) == 0


@asynccontextmanager
async def running(command: str, directory: Path, text: str, **env: str) -> AsyncIterator[Running]:
    file, keys, port = directory / "typeless.toml", directory / "keys", free_port()
    file.write_text(text, "utf-8")
    keys.write_text(f"{SECRET}\n", "utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TYPELESS_")}
    settings = {"TYPELESS_MODEL": "tiny.en", "TYPELESS_PORT": str(port), "TYPELESS_API_KEYS_FILE": str(keys)}
    settings |= {"TYPELESS_AUTH_ENABLED": "true", "TYPELESS_DATABASE_URL": f"sqlite:///{directory}/test.db"}
    settings |= {"TYPELESS_STORAGE_URL": str(directory / "files")}
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "typeless",
        command,
        "--config",
        file,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
        env=kept | settings | env,
    )
    try:
        yield Running(process, file, keys, port)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until_ready(server: Running) -> None:
    assert server.process.stdout
    async with asyncio.timeout(60):
        line = await server.process.stdout.readline()
    assert line, (await server.process.stderr.read()).decode()  # type: ignore[union-attr]


async def until_handled(pid: int) -> None:
    """Wait until the process, whose program has hardly begun to load, handles SIGHUP."""

    def handles_it() -> bool:
        caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        return bool(int(caught, 16) & 1 << signal.SIGHUP - 1)

    await until(handles_it)


def event(line: str) -> dict[str, Any]:
    return dict(json.loads(line))


async def test_a_server_reloads_its_file_and_the_files_of_its_secrets(tmp_path: Path):
    async with running("serve", tmp_path, "max_audio_s = 100") as server:
        await until_handled(server.process.pid)
        server.hang_up()  # while it starts
        await until_ready(server)
        await server.until("settings reloaded")
        assert event(await server.reloaded("max_audio_s = 0.5"))["changed"] == {"max_audio_s": "100.0 -> 0.5"}
        assert await server.transcribe() == "INVALID_ARGUMENT"
        # A secret's file.
        server.keys.write_text("another-secret-key\n", "utf-8")
        assert event(await server.reloaded(""))["changed"] == {"api_keys": "changed", "max_audio_s": "0.5 -> 3600.0"}
        assert [await server.transcribe(), await server.transcribe("another-secret-key")] == ["UNAUTHENTICATED", "OK"]
        # What needs a restart is named.
        await server.reloaded("port = 1\nbeam_size = 2")
        assert event(await server.until("need a restart"))["settings"] == ["beam_size"]  # the environment has the port
        await server.stop()
    assert not [line for line in server.lines if SECRET in line or "another-secret-key" in line]


async def test_a_bad_file_changes_nothing_and_every_problem_is_logged(tmp_path: Path):
    async with running("serve", tmp_path, "max_audio_s = 100") as server:
        await until_ready(server)

        async def problems(n: int) -> list[tuple[str, str]]:
            server.hang_up()
            lines = [event(await server.until("settings not reloaded")) for _ in range(n)]
            return [(line.get("setting", "").partition(" ")[0], line["problem"]) for line in lines]

        server.write("max_audio_s = -1\nmax_batch_items = 7\nno_such_setting = 1")
        assert [name for name, _ in await problems(2)] == ["no_such_setting", "max_audio_s"]
        server.write("max_batch_items = [")
        assert "is not TOML" in (await problems(1))[0][1]
        server.file.unlink()
        assert "there is no file" in (await problems(1))[0][1]
        server.file.mkdir()
        assert "there is no file" in (await problems(1))[0][1]
        server.file.rmdir()
        server.write("max_batch_items = 7")
        server.keys.write_bytes(b"\xff" + SECRET.encode())
        assert await problems(1) == [("TYPELESS_API_KEYS_FILE", f"{server.keys} cannot be used: it is not UTF-8 text")]
        assert await server.transcribe() == "OK"  # all is as before
        server.keys.write_text(SECRET, "utf-8")
        changed = event(await server.reloaded("max_batch_items = 7"))["changed"]
        assert changed == {"max_audio_s": "100.0 -> 3600.0", "max_batch_items": "10 -> 7"}
        await server.stop()
    assert not [line for line in server.lines if SECRET in line]


async def test_the_log_follows_its_settings(tmp_path: Path):
    async with running("serve", tmp_path, "") as server:
        await until_ready(server)
        assert await server.transcribe() == "OK"
        assert event(await server.until("call ended"))["level"] == "info"
        await server.reloaded('log_level = "debug"\nlog_format = "text"')
        assert await server.transcribe() == "OK"
        assert not (await server.until("call ended")).startswith("{")
        server.write('log_level = "warning"\nbeam_size = 2')
        server.hang_up()
        await server.until("need a restart")  # a warning, after the reload
        n_lines = len(server.lines)
        assert await server.transcribe() == "OK"
        await server.stop()
    assert "call ended" not in "".join(server.lines[n_lines:])


async def test_signals_during_a_burst_and_while_it_stops_harm_nothing(tmp_path: Path):
    async with running("serve", tmp_path, "max_audio_s = 100") as server:
        await until_ready(server)
        for n in range(20):
            server.write(f"max_audio_s = {n + 1}")
            server.hang_up()
        while event(await server.until("settings reloaded"))["changed"].get("max_audio_s", "").split()[-1] != "20.0":
            pass
        server.process.terminate()
        for _ in range(5):
            server.hang_up()
        await server.ended()


async def test_a_worker_reloads_too(tmp_path: Path):
    async with running("worker", tmp_path, "max_job_audio_s = 100") as worker:
        await until_ready(worker)
        changed = event(await worker.reloaded("max_job_audio_s = 200"))["changed"]
        assert changed == {"max_job_audio_s": "100.0 -> 200.0"}
        await worker.stop()
