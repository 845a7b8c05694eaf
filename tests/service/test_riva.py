"""Riva's service over real channels, around a scripted engine."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from tests.harness import AUDIO, pcm, serving
from tests.service.riva import after_silence, audio_of, configured, recognize, riva_call, streamed
from tests.speech import silence, speech
from typeless_grpc.client import CallFailed
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.interface import Lane, Task
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.servicers.riva import messages
from typeless_grpc.servicers.riva.options import MAX_END_SILENCE_MS, MIN_END_SILENCE_MS

WAV = (AUDIO / "en_short.wav").read_bytes()
STEREO = (AUDIO / "two_speakers_stereo.flac").read_bytes()
ENCODING = messages.AudioEncoding
FORCED_END = messages.StreamingRecognizeRequest(runtime_config={"force_eou": "true"})
EMPTY = messages.StreamingRecognizeRequest()


async def failed(awaitable: Any) -> CallFailed:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return CallFailed.of(caught.value)


def says(text: str) -> ScriptedEngine:
    return ScriptedEngine(lambda call: text)


# ---- Recognize ------------------------------------------------------------------------------------------------


async def test_a_recording_has_one_alternative_with_times_and_the_requests_id():
    async with serving(says("hello there")) as served:
        response = await recognize(served, pcm(2.0), request_id="r1", sample_rate_hertz=16_000, encoding=1)
    (result,) = response.results
    (alternative,) = result.alternatives
    assert (alternative.transcript, result.channel_tag, result.audio_processed) == ("hello there ", 1, 2.0)
    assert alternative.confidence == pytest.approx(0.9)
    assert not alternative.words
    assert response.id.value == "r1"


async def test_words_have_times_in_milliseconds_if_they_are_requested():
    async with serving(says("hello there")) as served:
        response = await recognize(served, WAV, enable_word_time_offsets=True)
    words = response.results[0].alternatives[0].words
    assert [word.word for word in words] == ["hello", "there"]
    assert words[0].start_time < words[0].end_time <= words[1].start_time < words[1].end_time
    assert words[1].end_time == pytest.approx(response.results[0].audio_processed * 1000, abs=1)


async def test_a_recording_without_speech_has_one_empty_alternative():
    async with serving(says("")) as served:
        response = await recognize(served, WAV)
    assert [one.transcript for result in response.results for one in result.alternatives] == [""]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"encoding": ENCODING["LINEAR_PCM"], "sample_rate_hertz": 8000},
        {"encoding": ENCODING["MULAW"], "sample_rate_hertz": 8000, "audio_channel_count": 2},
        {"encoding": ENCODING["FLAC"], "sample_rate_hertz": 44_100},
        {"diarization_config": {"enable_speaker_diarization": False, "max_speaker_count": 4}, "speech_contexts": [{}]},
    ],
    ids=["nothing", "raw at another rate", "mu-law stereo", "another container", "the C++ client's"],
)
async def test_a_container_is_recognized_whatever_encoding_the_request_declares(config: dict[str, Any]):
    async with serving(ScriptedEngine()) as served:
        response = await recognize(served, WAV, **config)
        plain = await recognize(served, WAV)
    assert response == plain


async def test_raw_samples_are_read_by_their_encoding_rate_and_channels():
    engine = ScriptedEngine()
    async with serving(engine) as served:
        await recognize(served, pcm(1.0, rate_hz=8000), encoding=ENCODING["LINEAR_PCM"], sample_rate_hertz=8000)
        await recognize(served, pcm(1.0, rate_hz=8000), sample_rate_hertz=8000)
        await recognize(
            served, pcm(1.0), encoding=ENCODING["LINEAR_PCM"], sample_rate_hertz=8000, audio_channel_count=2
        )
    assert [call.audio.size for call in engine.calls] == [16_000] * 3


async def test_channels_are_kept_apart_and_numbered_from_one():
    async with serving(says("hi")) as served:
        response = await recognize(served, STEREO, enable_separate_recognition_per_channel=True)
    assert sorted(result.channel_tag for result in response.results) == [1, 2]


async def test_options_reach_the_engine():
    engine = ScriptedEngine()
    contexts = [{"phrases": ["Riva", " ", "x" * 200]}, {"phrases": ["never"], "boost": -10.0}]
    async with serving(engine) as served:
        await recognize(served, WAV, language_code="de-DE", speech_contexts=contexts, profanity_filter=True)
        await recognize(served, WAV, language_code="multi", custom_configuration={"task": "translate", "x": "y"})
        await recognize(served, WAV, custom_configuration={"target_language": "en-US"})
    first, second, third = (call.options for call in engine.calls)
    assert (first.language, first.hotwords, first.post_processing.mask_profanity) == ("de", ("Riva",), True)
    assert (second.language, second.task, third.task) == (None, Task.TRANSLATE, Task.TRANSLATE)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"diarization_config": {"enable_speaker_diarization": True}}, "diarization_config.enable_speaker_diarization"),
        ({"language_code": "english"}, "language_code"),
        ({"encoding": 77}, "encoding"),
        ({"encoding": ENCODING["LINEAR_PCM"], "sample_rate_hertz": 0}, "sample_rate_hertz"),
        ({"encoding": ENCODING["LINEAR_PCM"], "sample_rate_hertz": 100}, "sample_rate_hertz"),
        (
            {"encoding": ENCODING["LINEAR_PCM"], "sample_rate_hertz": 8000, "audio_channel_count": 99},
            "audio_channel_count",
        ),
        ({"custom_configuration": {"task": "sing"}}, "custom_configuration[task]"),
        ({"custom_configuration": {"target_language": "fr"}}, "custom_configuration[target_language]"),
    ],
)
async def test_a_field_that_would_make_the_answer_wrong_is_refused_by_its_name(config: dict[str, Any], field: str):
    async with serving(ScriptedEngine()) as served:
        of_recording = await failed(recognize(served, pcm(1.0), **config))
        of_stream = await failed(streamed(served, [configured(**config), *audio_of(pcm())]))
    assert of_recording.code is of_stream.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [path for path, _ in of_recording.fields] == [f"config.{field}"]
    assert [path for path, _ in of_stream.fields] == [f"streaming_config.config.{field}"]


async def test_separate_channels_of_a_stream_are_refused():
    async with serving(ScriptedEngine()) as served:
        config = configured(enable_separate_recognition_per_channel=True, audio_channel_count=2)
        error = await failed(streamed(served, [config, *audio_of(pcm())]))
        await streamed(served, [configured(enable_separate_recognition_per_channel=True), *audio_of(pcm())])
    assert [path for path, _ in error.fields] == ["streaming_config.config.enable_separate_recognition_per_channel"]


async def test_names_of_models_mean_the_operators_model_the_default_one_or_nothing():
    engine, names = ScriptedEngine(), ["", "parakeet", "whisper-x", "base"]
    async with serving(engine, riva_models="whisper-x=large-v3") as served:
        for name in names:
            await recognize(served, WAV, model=name)
        assert await served.reload(riva_unknown_models="refuse")
        await recognize(served, WAV, model="parakeet")
    assert [call.options.model for call in engine.calls] == ["", "", "large-v3", "base", "parakeet"]


# ---- StreamingRecognize ---------------------------------------------------------------------------------------


async def test_live_speech_gives_interims_and_finals_and_ends_ok():
    engine = ScriptedEngine(lambda call: f"{call.audio.size // 16_000} and more words that change")
    async with serving(engine, stream_interim_interval_s=0.2) as served:
        data = speech(3.0, 1.0, 2.0)
        requests = [configured(interim_results=True), *audio_of(data)]
        requests[-1].id.value = "r9"
        responses = await streamed(served, requests)
    results = [response.results[0] for response in responses]
    assert all(len(response.results) == len(response.results[0].alternatives) == 1 for response in responses)
    finals = [result for result in results if result.is_final]
    interims = [result for result in results if not result.is_final]
    assert len(finals) == 2
    assert interims
    assert all(result.alternatives[0].transcript.endswith(" ") for result in finals)
    assert all(result.alternatives[0].confidence == pytest.approx(0.9) for result in results)
    assert all(0 <= result.stability <= 1 for result in interims)
    ends = [result.audio_processed for result in finals]
    assert ends == sorted(ends)
    assert responses[-1].id.value == "r9"


@pytest.mark.parametrize("n_bytes", [1, 5, 4800])
async def test_a_streamed_file_is_read_as_what_it_is_however_it_is_cut(n_bytes: int):
    async with serving(ScriptedEngine()) as served:
        opening = configured(encoding=0, sample_rate_hertz=0)
        responses = await streamed(served, [opening, *audio_of(WAV, n_bytes)])
        whole = await streamed(served, [opening, *audio_of(WAV, len(WAV))])
    assert responses == whole
    assert responses[-1].results[0].is_final


async def test_a_forced_end_of_utterance_gives_a_final_at_once():
    async with serving(says("stop")) as served:
        call = riva_call(served, "StreamingRecognize")()
        for request in [configured(), *audio_of(speech(2.0)), FORCED_END]:
            await call.write(request)
        response = await call.read()
        assert response.results[0].is_final
        call.cancel()


@pytest.mark.parametrize(("wanted_ms", "effective_ms"), [(1200, 1200), (1, MIN_END_SILENCE_MS), (10**6, 5000)])
async def test_the_end_of_utterance_silence_is_the_callers_within_bounds(wanted_ms: int, effective_ms: int):
    def request(silence_s: float) -> list[Any]:
        opening = configured(endpointing_config={"stop_history": wanted_ms})
        return [opening, *audio_of(speech(1.0) + silence(silence_s) + speech(1.0))]

    assert MIN_END_SILENCE_MS <= effective_ms <= MAX_END_SILENCE_MS
    async with serving(says("one")) as served:
        apart = await streamed(served, request(effective_ms / 1000 + 0.3))
        together = await streamed(served, request(max(0.0, effective_ms / 1000 - 0.15)))
    assert (len(apart), len(together)) == (2, 1)


@pytest.mark.parametrize("requests", [[], [EMPTY], audio_of(pcm(0.1))], ids=["none", "empty", "audio"])
async def test_the_configuration_comes_first(requests: list[Any]):
    async with serving(ScriptedEngine()) as served:
        error = await failed(streamed(served, requests))
        again = await failed(streamed(served, [configured(), *audio_of(pcm()), configured()]))
    assert [error.reason, again.reason] == ["STREAM_ORDER"] * 2
    assert [[path for path, _ in error.fields], [path for path, _ in again.fields]] == [["streaming_config"]] * 2


async def test_a_stream_without_audio_ends_ok():
    async with serving(ScriptedEngine()) as served:
        assert await streamed(served, [configured()]) == []
        assert await streamed(served, [configured(encoding=0, sample_rate_hertz=0), EMPTY]) == []


async def test_the_call_of_a_caller_that_falls_silent_is_aborted():
    clock = FakeClock()
    async with serving(says("one"), clock=clock, stream_idle_timeout_s=5.0) as served:
        call = riva_call(served, "StreamingRecognize")()
        for request in [configured(), *audio_of(speech(1.0, 1.0))]:
            await call.write(request)
        assert (await call.read()).results[0].is_final
        error = await failed(after_silence(call, clock))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "STREAM_IDLE")


async def test_the_call_of_a_caller_that_never_begins_is_aborted():
    async with serving(says("one"), stream_idle_timeout_s=1.0) as served:
        call = riva_call(served, "StreamingRecognize")()
        await call.write(configured())
        error = await failed(call.read())
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "STREAM_IDLE")


async def test_a_broken_call_ends_its_session_and_frees_its_audio():
    engine = ScriptedEngine()
    engine.stuck = frozenset({Lane.LIVE_FINAL})
    async with serving(engine, max_streams_per_caller=1) as served:
        call = riva_call(served, "StreamingRecognize")()
        for request in [configured(), *audio_of(speech(2.0, 1.0))]:
            await call.write(request)
        await engine.until(n_calls=2)
        call.cancel()
        await engine.until(n_cancelled=1)
        engine.stuck = frozenset()
        assert await streamed(served, [configured(), *audio_of(speech(2.0, 1.0))])


async def test_a_server_that_stops_delivers_the_finals_and_then_the_reason():
    engine = says("one")
    async with serving(engine, drain_timeout_s=20.0) as served:
        call = riva_call(served, "StreamingRecognize")()
        for request in [configured(), *audio_of(speech(2.0))]:
            await call.write(request)
        await engine.until(n_calls=1)
        async with asyncio.TaskGroup() as group:
            group.create_task(served.server.stop())
            response = await call.read()
            error = await failed(call.read())
    assert response.results[0].alternatives[0].transcript == "one "
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


# ---- the service ----------------------------------------------------------------------------------------------


async def test_the_configuration_lists_each_model_for_recordings_and_for_live_speech():
    async with serving(ScriptedEngine(), model="base") as served:
        ask = riva_call(served, "GetRivaSpeechRecognitionConfig")
        response = await ask(messages.ConfigRequest())
        one = await ask(messages.ConfigRequest(model_name="base"))
        error = await failed(ask(messages.ConfigRequest(model_name="parakeet")))
    found = {(row.model_name, row.parameters["type"], row.parameters["language_code"]) for row in response.model_config}
    assert found == {("base", "online", "multi"), ("base", "offline", "multi")}
    assert one == response
    assert error.code is grpc.StatusCode.NOT_FOUND


async def test_a_server_can_leave_the_service_out():
    async with serving(ScriptedEngine(), riva_enabled=False) as served:
        error = await failed(recognize(served, WAV))
    assert error.code is grpc.StatusCode.UNIMPLEMENTED


async def test_calls_are_charged_to_a_quota_of_their_own():
    limits = {"rate_limit_enabled": True, "rate_limit_riva": "2/day", "rate_limit_transcribe": "1/day"}
    async with serving(ScriptedEngine(), **limits) as served:
        await recognize(served, WAV)
        await streamed(served, [configured(), *audio_of(pcm(0.5))])
        error = await failed(recognize(served, WAV))
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
