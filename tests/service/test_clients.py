"""Clients: our own, stubs that plain protoc generates, and grpcurl with nothing but reflection."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.harness import AUDIO, REPOSITORY, pcm, serving
from tests.relay import proxied
from tests.servers import free_port
from typeless_grpc.client import AsyncClient, CallFailed, Client, Options, RawFormat
from typeless_grpc.engine.interface import Task
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import InvalidInput, Overloaded
from typeless_grpc.pb.v1 import transcript_pb2, transcription_pb2

SPEECH = AUDIO / "en_short.flac"
OPTIONS = Options(model="tiny.en", language="en", task="translate", hotwords=["Korventa"], word_timestamps=True)


async def test_the_async_client_transcribes_paths_and_bytes():
    engine = ScriptedEngine(lambda call: "hello")
    async with serving(engine) as served, AsyncClient(served.target) as client:
        answers = [
            await client.transcribe(SPEECH, OPTIONS),
            await client.transcribe(SPEECH.read_bytes()),
            await client.transcribe(pcm(), raw_format=RawFormat("pcm_s16le", 16_000)),
        ]
        info = await client.server_info()
    assert [answer.transcript.text for answer in answers] == ["hello"] * 3
    assert engine.calls[0].options.task is Task.TRANSLATE
    assert engine.calls[0].options.hotwords == ("Korventa",)
    assert info.default_model == "base"


async def test_the_sync_client_does_the_same():
    engine = ScriptedEngine(lambda call: "hello")
    async with serving(engine) as served:

        def call() -> tuple[str, str]:
            with Client(served.target) as client:
                return client.transcribe(SPEECH, OPTIONS).transcript.text, client.server_info().default_model

        assert await asyncio.to_thread(call) == ("hello", "base")
    assert engine.calls[0].options.word_timestamps


async def test_a_refusal_is_call_failed_for_both():
    async with serving(ScriptedEngine()) as served:

        def call() -> CallFailed:
            with Client(served.target) as client, pytest.raises(CallFailed) as caught:
                client.transcribe(b"nothing of the kind")
            return caught.value

        async with AsyncClient(served.target) as client:
            with pytest.raises(CallFailed) as caught:
                await client.transcribe(b"nothing of the kind")
        for failed in (caught.value, await asyncio.to_thread(call)):
            assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
            assert failed.reason == "AUDIO_UNDECODABLE"
            assert failed.fields[0][0] == "audio.content"
            assert failed.request_id


async def test_a_missing_server_is_unavailable_for_both():
    async with serving(ScriptedEngine()) as served:
        target = served.target
    async with AsyncClient(target) as client:
        with pytest.raises(CallFailed) as caught:
            await client.server_info(timeout_s=30)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.reason == ""


BUSY = Overloaded("Full.", retry_after_s=0.01)


async def transcribed(client_kind: str, target: str, *, retry: bool = True, seconds: float = 1.0) -> str:
    """The text of some seconds of audio, from either client."""
    raw = RawFormat("pcm_s16le", 16_000)
    if client_kind == "async":
        async with AsyncClient(target, retry=retry) as client:
            return (await client.transcribe(pcm(seconds), raw_format=raw, timeout_s=60)).transcript.text

    def call() -> str:
        with Client(target, retry=retry) as client:
            return client.transcribe(pcm(seconds), raw_format=raw, timeout_s=60).transcript.text

    return await asyncio.to_thread(call)


@pytest.mark.parametrize("client_kind", ["async", "sync"])
async def test_a_handshake_may_take_a_second(client_kind: str):
    """So does one over a long way, or with a busy server."""
    async with (
        serving(ScriptedEngine(lambda call: "hello")) as served,
        proxied(served.target, delay_s=1.0) as far,
    ):
        assert await transcribed(client_kind, far.target, retry=False) == "hello"


async def test_no_proxy_is_used_for_this_machine(monkeypatch: pytest.MonkeyPatch):
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        async with AsyncClient(served.target, retry=False) as client:
            assert (await client.transcribe(SPEECH)).transcript.text == "hello"
        with Client(served.target, retry=False) as sync:
            assert (await asyncio.to_thread(sync.transcribe, SPEECH)).transcript.text == "hello"


async def test_a_failure_at_a_proxy_names_the_variable(monkeypatch: pytest.MonkeyPatch):
    for name in ("grpc_proxy", "https_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    async with AsyncClient("server.example:50051", retry=False) as client:
        with pytest.raises(CallFailed, match="through the proxy that http_proxy names"):
            await client.server_info()


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("seconds", [1.0, 60.0], ids=["small", "larger than what gRPC keeps by itself"])
async def test_a_call_that_a_full_server_refused_is_repeated(kind: str, seconds: float):
    answers: list[Any] = [BUSY, BUSY, "hello"]
    async with serving(ScriptedEngine(lambda call: answers.pop(0))) as served:
        assert await transcribed(kind, served.target, seconds=seconds) == "hello"


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_call_that_its_server_reset_is_repeated(kind: str):
    n_calls = 0

    async def answer(request: bytes, context: Any) -> bytes:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 1:
            await context.abort(grpc.StatusCode.CANCELLED)
        transcript = transcript_pb2.Transcript(text="hello")
        return transcription_pb2.TranscribeResponse(transcript=transcript).SerializeToString()

    server = grpc.aio.server()
    method = {"Transcribe": grpc.unary_unary_rpc_method_handler(answer)}
    service = grpc.method_handlers_generic_handler("typeless.v1.TranscriptionService", method)
    server.add_generic_rpc_handlers([service])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        assert await transcribed(kind, f"127.0.0.1:{port}") == "hello"
    finally:
        await server.stop(None)


async def test_a_call_that_its_caller_cancels_is_not_repeated():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine) as served, AsyncClient(served.target) as client:
        call = asyncio.create_task(client.transcribe(SPEECH))
        await engine.until(n_calls=1)
        call.cancel()
        await engine.until(n_cancelled=1)
        engine.gate.set()
        assert (await client.transcribe(SPEECH)).stats.HasField("processing_time")
    assert len(engine.calls) == 2


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(("retry", "n_calls"), [(True, 4), (False, 1)])
async def test_a_call_is_made_at_most_four_times_and_once_without_retry(kind: str, retry: bool, n_calls: int):
    engine = ScriptedEngine(lambda call: BUSY)
    async with serving(engine) as served:
        with pytest.raises(CallFailed) as refused:
            await transcribed(kind, served.target, retry=retry)
    assert (refused.value.reason, len(engine.calls)) == ("OVERLOADED", n_calls)


async def test_a_call_that_would_fail_again_is_not_repeated():
    engine = ScriptedEngine(lambda call: InvalidInput("options.model", "is no model", reason="MODEL_NOT_FOUND"))
    async with serving(engine) as served:
        with pytest.raises(CallFailed):
            await transcribed("async", served.target)
    assert len(engine.calls) == 1


async def run(*command: str | Path, stdin: bytes = b"", cwd: Path = REPOSITORY, **env: str) -> tuple[int, str, str]:
    """Run a command while the server's loop goes on: its exit code and what it wrote."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=cwd, env=os.environ | env
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    return process.returncode or 0, out.decode(), err.decode()


PLAIN_CALLER = """
import sys
import grpc
from typeless.v1 import audio_pb2, transcription_pb2, transcription_pb2_grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    content = open(sys.argv[2], "rb").read()
    request = transcription_pb2.TranscribeRequest(audio=audio_pb2.AudioSource(content=content))
    print(transcription_pb2_grpc.TranscriptionServiceStub(channel).Transcribe(request).transcript.text)
"""


async def test_stubs_made_by_plain_protoc_work(tmp_path: Path):
    protoc = REPOSITORY / ".venv-proto" / "bin" / "python"
    if not protoc.exists():
        pytest.skip("no protoc: `make proto` or `make verify` brings it")
    protos = sorted(str(path) for path in (REPOSITORY / "protos").rglob("*.proto"))
    code, _, err = await run(
        protoc,
        "-m",
        "grpc_tools.protoc",
        f"-I{REPOSITORY / 'protos'}",
        f"--python_out={tmp_path}",
        f"--grpc_python_out={tmp_path}",
        *protos,
    )
    assert code == 0, err
    async with serving(ScriptedEngine(lambda call: "from plain stubs")) as served:
        command = (sys.executable, "-c", PLAIN_CALLER, served.target, SPEECH)
        code, out, err = await run(*command, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (code, out.strip()) == (0, "from plain stubs"), err


@pytest.fixture
def grpcurl() -> str:
    found = shutil.which("grpcurl") or shutil.which("grpcurl", path=str(Path.home() / "go" / "bin"))
    if not found:
        pytest.skip("no grpcurl on PATH or in ~/go/bin")
    return found


async def test_grpcurl_needs_no_protos(grpcurl: str):
    body = json.dumps({"audio": {"content": base64.b64encode(SPEECH.read_bytes()).decode()}})
    method = "typeless.v1.TranscriptionService/Transcribe"
    async with serving(ScriptedEngine(lambda call: "from a shell")) as served:
        code, listed, err = await run(grpcurl, "-plaintext", served.target, "list")
        assert code == 0, err
        code, out, err = await run(grpcurl, "-plaintext", "-d", "@", served.target, method, stdin=body.encode())
        assert code == 0, err
        code, _, refusal = await run(grpcurl, "-plaintext", "-d", "{}", served.target, method)
    assert "typeless.v1.TranscriptionService" in listed
    assert json.loads(out)["transcript"]["text"] == "from a shell"
    assert code == 64 + grpc.StatusCode.INVALID_ARGUMENT.value[0]
    # grpcurl shows the details: the reason and the field that is at fault.
    assert "AUDIO_MISSING" in refusal
    assert "audio.content" in refusal
