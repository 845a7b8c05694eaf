"""Google's operations, which are jobs, around a scripted engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.harness import AUDIO, pcm, serving_jobs
from tests.service.google import (
    RECOGNIZER,
    end_s,
    failed,
    google_call,
    google_operation,
    paths,
    raw,
    recognize,
    says,
)
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.servicers.google.messages import V1, V2

WAV = (AUDIO / "en_short.wav").read_bytes()


async def submitted(served: Any, content: bytes = WAV, metadata: Any = (), **config: Any) -> Any:
    request = V1.message("LongRunningRecognizeRequest", config=config, audio={"content": content})
    return await google_call(served, f"/{V1.service.full_name}/LongRunningRecognize")(request, metadata=metadata)


async def test_a_long_recording_is_an_operation_until_it_has_its_result(tmp_path: Path):
    async with serving_jobs(says("hello there"), tmp_path) as served:
        begun = await submitted(served, language_code="en-US", enable_word_time_offsets=True)
        ended = await google_operation(served, "WaitOperation", name=begun.name, timeout={"seconds": 20})
        again = await google_operation(served, "GetOperation", name=begun.name)
        listed = await google_operation(served, "ListOperations")
        await google_operation(served, "DeleteOperation", name=begun.name)
        unknown = await failed(google_operation(served, "GetOperation", name=begun.name))
    assert (begun.done, ended.done) == (False, True)
    assert again == ended
    assert [one.name for one in listed.operations] == [begun.name]
    response, metadata = V1.message("LongRunningRecognizeResponse"), V1.message("LongRunningRecognizeMetadata")
    assert ended.response.Unpack(response)
    assert ended.metadata.Unpack(metadata)
    (result,) = response.results
    assert (result.alternatives[0].transcript, result.language_code) == ("hello there", "en-US")
    assert [word.word for word in result.alternatives[0].words] == ["hello", "there"]
    assert metadata.progress_percent == 100
    assert metadata.last_update_time.seconds >= metadata.start_time.seconds > 0
    assert unknown.code is grpc.StatusCode.NOT_FOUND


async def test_a_file_of_v2_is_an_operation_with_its_result_inline(tmp_path: Path):
    (tmp_path / "one.wav").write_bytes(WAV)
    (tmp_path / ("long" * 40)).symlink_to(tmp_path)
    uri = f"file://{tmp_path}/{'long' * 40}/one.wav"
    async with serving_jobs(says("hello"), tmp_path / "data", audio_uri_prefixes=f"file://{tmp_path}/") as served:
        config = {"auto_decoding_config": {}, "language_codes": ["en-US"]}
        request = V2.message("BatchRecognizeRequest", recognizer=RECOGNIZER, config=config, files=[{"uri": uri}])
        request.recognition_output_config.inline_response_config.SetInParent()
        begun = await google_call(served, f"/{V2.service.full_name}/BatchRecognize")(request)
        ended = await google_operation(served, "WaitOperation", name=begun.name)
        request.files.add(uri=uri)
        two = await failed(google_call(served, f"/{V2.service.full_name}/BatchRecognize")(request))
    assert begun.name.startswith("projects/p/locations/global/operations/")
    response = V2.message("BatchRecognizeResponse")
    assert ended.response.Unpack(response)
    (result,) = response.results[uri].inline_result.transcript.results
    assert result.alternatives[0].transcript == "hello"
    assert paths(two) == ["files"]


@pytest.mark.parametrize(
    "declared",
    [{}, {"encoding": 1}, {"encoding": 1, "sample_rate_hertz": 16_000}, {"encoding": 3, "sample_rate_hertz": 8_000}],
    ids=["nothing", "LINEAR16", "LINEAR16 and a rate", "MULAW"],
)
async def test_a_container_behind_a_uri_is_recognized_whatever_the_request_declares(tmp_path: Path, declared: Any):
    (tmp_path / "one.wav").write_bytes(WAV)
    audio = {"uri": f"file://{tmp_path}/one.wav"}
    async with serving_jobs(ScriptedEngine(), tmp_path / "data", audio_uri_prefixes=f"file://{tmp_path}/") as served:
        request = V1.message("RecognizeRequest", config=declared, audio=audio)
        by_uri = await google_call(served, f"/{V1.service.full_name}/Recognize")(request)
        request = V1.message("LongRunningRecognizeRequest", config=declared, audio=audio)
        begun = await google_call(served, f"/{V1.service.full_name}/LongRunningRecognize")(request)
        ended = await google_operation(served, "WaitOperation", name=begun.name)
        by_content = await recognize(served, V1, WAV)
    response = V1.message("LongRunningRecognizeResponse")
    assert ended.response.Unpack(response)
    assert by_uri.results == by_content.results == response.results


async def test_raw_samples_behind_a_uri_are_what_the_request_declares(tmp_path: Path):
    (tmp_path / "one.raw").write_bytes(pcm(2.0, rate_hz=8_000))
    audio = {"uri": f"file://{tmp_path}/one.raw"}
    async with serving_jobs(ScriptedEngine(), tmp_path / "data", audio_uri_prefixes=f"file://{tmp_path}/") as served:
        call = google_call(served, f"/{V1.service.full_name}/Recognize")
        read = await call(V1.message("RecognizeRequest", config=raw(V1, rate_hz=8_000), audio=audio))
        without_rate = await failed(call(V1.message("RecognizeRequest", config={"encoding": 1}, audio=audio)))
    assert end_s(V1, read.results[0]) == 2.0
    assert without_rate.reason == "AUDIO_UNDECODABLE"


async def test_an_operation_that_fails_or_is_cancelled_reports_it(tmp_path: Path):
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving_jobs(engine, tmp_path) as served:
        held = await submitted(served)
        await google_operation(served, "CancelOperation", name=held.name)
        cancelled = await google_operation(served, "WaitOperation", name=held.name, timeout={"seconds": 20})
        broken = await submitted(served, (AUDIO / "en_short_truncated.m4a").read_bytes())
        failure = await google_operation(served, "WaitOperation", name=broken.name, timeout={"seconds": 20})
    assert (cancelled.done, cancelled.error.code) == (True, grpc.StatusCode.CANCELLED.value[0])
    assert (failure.done, failure.error.code) == (True, grpc.StatusCode.INVALID_ARGUMENT.value[0])


async def test_results_in_cloud_storage_are_refused(tmp_path: Path):
    async with serving_jobs(ScriptedEngine(), tmp_path) as served:
        request = V1.message("LongRunningRecognizeRequest", audio={"content": WAV}, output_config={"gcs_uri": "gs://x"})
        of_v1 = await failed(google_call(served, f"/{V1.service.full_name}/LongRunningRecognize")(request))
        output = {"gcs_output_config": {"uri": "gs://x"}}
        batch = V2.message(
            "BatchRecognizeRequest", recognizer=RECOGNIZER, files=[{"uri": "gs://y"}], recognition_output_config=output
        )
        of_v2 = await failed(google_call(served, f"/{V2.service.full_name}/BatchRecognize")(batch))
    assert (paths(of_v1), paths(of_v2)) == (["output_config"], ["recognition_output_config"])
