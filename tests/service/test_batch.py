"""BatchTranscribe, from a real channel to a scripted engine and back."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import code_pb2

from tests.harness import pcm, serving
from typeless_grpc.client import CallFailed
from typeless_grpc.engine.interface import Lane
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.errors import DeadlineExceeded, InvalidInput, Overloaded
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2

RAW = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000)


def item(
    name: str, seconds: float = 1.0, *, content: bytes | None = None, **options: Any
) -> transcription_pb2.BatchItem:
    source = audio_pb2.AudioSource(content=pcm(seconds) if content is None else content, format=RAW)
    wanted = transcription_pb2.TranscriptionOptions(**options) if options else None
    return transcription_pb2.BatchItem(name=name, audio=source, options=wanted)


def batch(*items: transcription_pb2.BatchItem, **options: Any) -> transcription_pb2.BatchTranscribeRequest:
    return transcription_pb2.BatchTranscribeRequest(
        items=items, options=transcription_pb2.TranscriptionOptions(**options)
    )


async def refused(call: Any) -> CallFailed:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return CallFailed.of(caught.value)


def length(call: EngineCall) -> str:
    return f"{len(call.audio) // 16_000} {call.options.language}"


async def test_each_item_has_its_transcript_in_order_under_its_name():
    engine = ScriptedEngine(length)
    async with serving(engine) as served:
        answer = await served.transcription.BatchTranscribe(
            batch(item("a", 1), item("", 2), item("a", 3, language="de"), language="en")
        )
    assert [(one.name, one.transcript.text) for one in answer.results] == [("a", "1 en"), ("", "2 en"), ("a", "3 de")]
    assert {call.ticket.lane for call in engine.calls} == {Lane.BATCH}
    assert (answer.summary.total, answer.summary.succeeded, answer.summary.failed) == (3, 3, 0)
    assert answer.summary.audio_duration.seconds == 6
    assert answer.summary.processing_time.ToTimedelta().total_seconds() > 0
    assert all(one.stats.chunk_count == 1 for one in answer.results)


async def test_items_run_in_parallel():
    engine = ScriptedEngine(length)
    engine.gate.clear()
    async with serving(engine) as served:
        call = served.transcription.BatchTranscribe(batch(*(item(str(i)) for i in range(10))))
        await engine.until(n_calls=10)
        engine.gate.set()
        assert (await call).summary.succeeded == 10


async def test_an_invalid_item_fails_alone():
    errors: dict[int, Any] = {4: Overloaded("Full.", retry_after_s=2.5), 5: RuntimeError("secret path")}
    engine = ScriptedEngine(lambda call: errors.get(len(call.audio) // 16_000, "text"))
    async with serving(engine, max_audio_s=6) as served:
        answer = await served.transcription.BatchTranscribe(
            batch(
                item("good", 1),
                item("not audio", content=b""),
                item("long", 7),
                item("option", 1, chunking=99),
                item("full", 4),
                item("bug", 5),
                item("good too", 2),
            ),
            metadata=(("x-request-id", "r-1"),),
        )
    outcomes = {one.name: one.failure for one in answer.results if one.WhichOneof("outcome") == "failure"}
    assert {name: (code_pb2.Code.Name(one.code), one.reason) for name, one in outcomes.items()} == {
        "not audio": ("INVALID_ARGUMENT", "AUDIO_MISSING"),
        "long": ("INVALID_ARGUMENT", "AUDIO_TOO_LONG"),
        "option": ("INVALID_ARGUMENT", "INVALID_FIELD"),
        "full": ("UNAVAILABLE", "OVERLOADED"),
        "bug": ("INTERNAL", "INTERNAL"),
    }
    assert "items[1].audio.content" in outcomes["not audio"].message
    assert "items[2].audio" in outcomes["long"].message
    assert "items[3].options.chunking" in outcomes["option"].message
    assert outcomes["full"].retry_delay.ToTimedelta().total_seconds() == 2.5
    assert "secret" not in outcomes["bug"].message
    assert "r-1" in outcomes["bug"].message
    assert [one.transcript.text for one in answer.results if one.WhichOneof("outcome") == "transcript"] == ["text"] * 2
    assert (answer.summary.total, answer.summary.succeeded, answer.summary.failed) == (7, 2, 5)
    assert answer.summary.audio_duration.seconds == 3


async def test_errors_of_the_engine_name_the_fields_of_the_request():
    error = InvalidInput("options.language", "model 'tiny.en' does not know this", reason="LANGUAGE_NOT_SUPPORTED")
    async with serving(ScriptedEngine(lambda call: error)) as served:
        answer = await served.transcription.BatchTranscribe(batch(item("ours"), item("own", language="fr")))
    assert [(one.failure.message.partition(":")[0], one.failure.reason) for one in answer.results] == [
        ("options.language", "LANGUAGE_NOT_SUPPORTED"),
        ("items[1].options.language", "LANGUAGE_NOT_SUPPORTED"),
    ]


async def test_an_invalid_shared_option_fails_the_items_without_options():
    async with serving(ScriptedEngine()) as served:
        answer = await served.transcription.BatchTranscribe(
            batch(item("ours"), item("own", language="en"), language="klingon")
        )
    assert answer.results[0].failure.message.startswith("options.language")
    assert answer.results[1].transcript.text


@pytest.mark.parametrize(("n_items", "reason"), [(0, "NO_ITEMS"), (4, "TOO_MANY_ITEMS")])
async def test_an_empty_or_too_large_batch_is_refused(n_items: int, reason: str):
    engine = ScriptedEngine()
    async with serving(engine, max_batch_items=3) as served:
        failed = await refused(served.transcription.BatchTranscribe(batch(*(item("x") for _ in range(n_items)))))
    assert (failed.code.name, failed.reason, failed.fields[0][0]) == ("INVALID_ARGUMENT", reason, "items")
    assert engine.calls == []


async def test_a_deadline_that_cannot_be_met_ends_the_call_at_once():
    engine = ScriptedEngine(lambda call: DeadlineExceeded("Too late.") if len(call.audio) > 16_000 else "text")
    async with serving(engine) as served:
        failed = await refused(served.transcription.BatchTranscribe(batch(item("a"), item("b", 2))))
    assert (failed.code.name, failed.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_CANNOT_BE_MET")


async def test_cancelling_the_call_stops_all_unfinished_items():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine) as served:
        call = served.transcription.BatchTranscribe(batch(*(item(str(i)) for i in range(5))))
        await engine.until(n_calls=5)
        call.cancel()
        await engine.until(n_cancelled=5)


async def test_a_full_server_refuses_the_batch():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine, max_concurrent_calls=1) as served:
        first = served.transcription.BatchTranscribe(batch(item("a")))
        await engine.until(n_calls=1)
        failed = await refused(served.transcription.BatchTranscribe(batch(item("b"))))
        engine.gate.set()
        await first
    assert (failed.code.name, failed.reason) == ("UNAVAILABLE", "OVERLOADED")
