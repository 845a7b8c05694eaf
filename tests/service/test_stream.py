"""StreamTranscribe over real channels, around a scripted engine."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.harness import AUDIO, fixture, serving
from tests.media import KINDS, media
from tests.service.streams import (
    END,
    FINALIZE,
    audio,
    config,
    events,
    is_kind,
    kinds,
    live,
    reads,
    seconds,
    texts,
)
from tests.speech import BYTES_PER_S, samples_as_text, silence, speech, tone, words_as_they_come
from typeless_grpc.engine.interface import Lane
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.errors import EngineFailed
from typeless_grpc.pb.v1 import audio_pb2, server_pb2, transcription_pb2
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeRequest
from typeless_grpc.streaming.endpoint import EndpointOptions

# ---- LIVE -----------------------------------------------------------------------------------------------------


async def test_a_conversation_from_started_to_completed():
    async with serving(ScriptedEngine(lambda call: "hello" if call.ticket.lane is Lane.LIVE_FINAL else "")) as served:
        got = await events(served, live(data=silence(0.5) + speech(1.0, 1.0, 2.0), options={"language": "en"}))
    assert kinds(got) == [
        "started",
        *("speech_activity", "speech_activity", "segment"),
        *("speech_activity", "speech_activity", "segment"),
        "completed",
    ]
    assert [response.sequence for response in got] == list(range(1, 9))
    first = got[3].segment
    assert (first.index, first.text, first.language) == (0, "hello", "en")
    assert seconds(first.start_offset) == pytest.approx(0.5, abs=0.04)
    assert seconds(first.end_offset) == pytest.approx(1.5, abs=0.04)
    transcript = got[-1].completed.transcript
    assert [segment.index for segment in transcript.segments] == [0, 1]
    assert list(transcript.segments) == [got[3].segment, got[6].segment]
    assert transcript.text == "hello hello"
    assert seconds(transcript.audio_duration) == 4.5
    assert got[-1].acknowledged_bytes == 4.5 * BYTES_PER_S
    assert seconds(got[-1].cursors.final) == seconds(got[-1].cursors.received) == 4.5


async def test_started_says_what_is_in_force():
    async with serving(ScriptedEngine(), stream_resume_window_s=7, max_stream_s=900) as served:
        got = await events(served, live(interim_results=True, options={"language": "de-AT", "hotwords": ["Zelvari"]}))
    started = got[0].started
    effective = started.effective_config
    assert started.session_id
    assert not started.resumed
    assert (seconds(started.resume_window), seconds(started.max_audio_duration)) == (7, 900)
    assert effective.format.channel_count == 1
    assert effective.mode == transcription_pb2.STREAM_MODE_LIVE
    assert seconds(effective.interim_interval) > 0
    options = effective.options
    assert (options.model, options.language, list(options.hotwords)) == ("base", "de-AT", ["Zelvari"])
    assert options.decoding.beam_size == 1
    assert options.decoding.temperatures[0] == 0
    assert seconds(options.voice_activity.end_silence) > 0


async def test_server_info_has_the_limits_of_streams():
    async with serving(
        ScriptedEngine(), stream_resume_window_s=7, max_stream_s=900, stream_idle_timeout_s=33
    ) as served:
        info = await served.info.GetServerInfo(server_pb2.GetServerInfoRequest())
    assert seconds(info.resume_window) == 7
    assert seconds(info.max_stream_duration) == 900
    assert seconds(info.stream_idle_timeout) == 33


@pytest.mark.parametrize("n_bytes", [33, 333, 3200, 200_000], ids=["a millisecond", "odd", "100 ms", "at once"])
async def test_the_cutting_of_the_bytes_changes_nothing(n_bytes):
    data = speech(0.7, 0.8, 0.4) if n_bytes == 33 else speech(1.0, 0.8, 2.0, 0.3, 0.5, 1.2, 0.4)
    async with serving(ScriptedEngine(samples_as_text)) as served:
        whole = await events(served, [config(), *audio(data, len(data))])
        cut_up = await events(served, [config(), *audio(data, n_bytes)])
    assert texts(whole) == texts(cut_up) != []
    assert cut_up[-1].completed.transcript == whole[-1].completed.transcript


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 44_100, 48_000])
@pytest.mark.parametrize(("encoding", "width"), [("PCM_S16LE", 2), ("PCM_F32LE", 4), ("MULAW", 1), ("ALAW", 1)])
async def test_every_encoding_and_odd_rates(encoding, width, rate_hz):
    encodings = {"PCM_S16LE": "<i2", "PCM_F32LE": "<f4", "MULAW": "u1", "ALAW": "u1"}
    at = np.arange(rate_hz) / rate_hz
    wave = 0.3 * np.sin(2 * np.pi * 440 * at)
    if encoding == "PCM_S16LE":
        wave = wave * 32767
    elif width == 1:
        wave = np.where(wave > 0, 0x9A, 0x1A)  # loud, in either law
    form = audio_pb2.AudioFormat(
        encoding=audio_pb2.AudioEncoding.Value(f"AUDIO_ENCODING_{encoding}"), sample_rate_hertz=rate_hz
    )
    async with serving(ScriptedEngine(lambda call: "decoded")) as served:
        data = wave.astype(encodings[encoding]).tobytes()
        got = await events(served, [config(format=form), *audio(data, 999)])
    assert texts(got) == ["decoded"]
    assert seconds(got[-1].completed.transcript.audio_duration) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("name", ["en_short.webm", "en_short.ogg", "en_short.mp3", "en_short.flac", "en_short.wav"])
async def test_a_container_is_decoded_as_it_arrives(name):
    data = (AUDIO / name).read_bytes()
    async with serving(ScriptedEngine(lambda call: "lights")) as served:
        call = served.transcription.StreamTranscribe()
        await call.write(config(format=None))
        for request in audio(data, 500):
            await call.write(request)
        got = await reads(call, is_kind("speech_activity"))  # before the end is known
        await call.done_writing()
        got += await reads(call, is_kind("completed"))
    assert seconds(got[-1].completed.transcript.audio_duration) == pytest.approx(fixture(name)["duration_s"], abs=0.1)


@pytest.mark.parametrize("mode", [transcription_pb2.STREAM_MODE_LIVE, transcription_pb2.STREAM_MODE_FILE])
async def test_text_has_the_times_of_the_container(mode):
    data = media(KINDS["flv, MP3"], moved=lambda at_s: at_s + (4.9 if at_s < 2.5 else 14.9), with_video=True)
    async with serving(ScriptedEngine(lambda call: "tone")) as served:
        got = await events(served, [config(format=None, mode=mode), *audio(data, 5000)])
    transcript = got[-1].completed.transcript
    assert seconds(transcript.audio_duration) == pytest.approx(14.9 + 4.5, abs=0.2)
    segments = [response.segment for response in got if response.HasField("segment")]
    assert seconds(segments[0].start_offset) == pytest.approx(4.9 + 0.5, abs=0.8)
    assert seconds(segments[-1].end_offset) == pytest.approx(14.9 + 3.6, abs=0.8)


async def test_a_wav_header_that_lies_about_its_length_is_not_believed():
    data = bytearray((AUDIO / "en_short.wav").read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = (3200).to_bytes(4, "little")
    async with serving(ScriptedEngine()) as served:
        got = await events(served, [config(format=None), *audio(bytes(data))])
    assert seconds(got[-1].completed.transcript.audio_duration) == pytest.approx(
        fixture("en_short.wav")["duration_s"], abs=0.01
    )


async def test_interims_grow_and_their_stable_text_begins_all_that_follows():
    async with serving(ScriptedEngine(words_as_they_come)) as served:
        call = served.transcription.StreamTranscribe()
        await call.write(config(interim_results=True, interim_interval=Duration(nanos=200_000_000)))
        got = await reads(call, is_kind("started"))
        for request in audio(tone(1.0)):
            await call.write(request)
        got += await reads(call, is_kind("interim"))
        for length in (1.0, 1.0):
            for request in audio(tone(length)):
                await call.write(request)
            got += await reads(call, is_kind("interim"))
        await call.write(END)
        got += await reads(call, is_kind("completed"))
    interims = [response.interim for response in got if response.HasField("interim")]
    (segment,) = [response.segment for response in got if response.HasField("segment")]
    assert len(interims) >= 3
    assert interims[-1].stable_text.startswith("one")
    for earlier, later in itertools.pairwise(interims):
        assert later.stable_text.startswith(earlier.stable_text)
    assert all(segment.text.startswith(interim.stable_text) for interim in interims)
    assert all(seconds(interim.end_offset) <= 3.0 for interim in interims)


async def test_no_interims_come_unless_requested():
    engine = ScriptedEngine(words_as_they_come)
    async with serving(engine) as served:
        got = await events(served, live(data=tone(3.0)))
    assert "interim" not in kinds(got)
    assert all(call.ticket.lane is not Lane.LIVE_INTERIM for call in engine.calls)


async def test_finalize_ends_the_utterance_without_a_pause():
    async with serving(ScriptedEngine(samples_as_text)) as served:
        got = await events(served, [config(), *audio(tone(1.0)), FINALIZE, FINALIZE, *audio(tone(0.5))])
    ends = [seconds(r.speech_activity.offset) for r in got if r.HasField("speech_activity")]
    assert ends == [0.0, 1.0, 1.0, 1.5]
    assert len(texts(got)) == 2


async def test_end_and_half_close_end_alike():
    async with serving(ScriptedEngine(samples_as_text)) as served:
        closed = await events(served, live(data=speech(1.0, 0.8, 1.0)))
        ended = await events(served, live(END, data=speech(1.0, 0.8, 1.0)))
    assert texts(closed) == texts(ended)
    assert kinds(ended)[-1] == "completed"


async def test_an_update_is_answered_and_holds_from_the_next_utterance_on():
    engine = ScriptedEngine()
    update = StreamTranscribeRequest(update={"language": "fr", "voice_activity": {"threshold": 0.25}})
    requests = [
        config(options={"language": "en"}),
        *audio(speech(1.0, 0.8, 0.3)),
        update,
        *audio(speech(0.3, 0.8, 1.0)),
    ]
    async with serving(engine) as served:
        got = await events(served, requests)
    (configured,) = [response.configured for response in got if response.HasField("configured")]
    assert configured.effective_options.language == "fr"
    assert configured.effective_options.voice_activity.threshold == 0.25
    assert configured.effective_options.model == "base"
    finals = [call.options.language for call in engine.calls if call.ticket.lane is Lane.LIVE_FINAL]
    assert list(dict.fromkeys(finals)) == ["en", "fr"]
    assert [r.segment.language for r in got if r.HasField("segment")] == ["en", "en", "fr"]


@pytest.mark.parametrize(
    ("requested", "n_utterances"),
    [({}, 2), ({"end_silence": Duration(seconds=2)}, 1), ({"max_utterance": Duration(seconds=1)}, 5)],
    ids=["ours", "longer pause", "shorter utterance"],
)
async def test_voice_activity_options_are_honoured(requested, n_utterances):
    async with serving(ScriptedEngine(samples_as_text)) as served:
        got = await events(served, live(data=speech(2.0, 1.0, 1.5), options={"voice_activity": requested}))
    assert len(texts(got)) == n_utterances


# ---- FILE -----------------------------------------------------------------------------------------------------


async def test_a_file_comes_segment_by_segment_with_progress():
    data = speech(*(seconds for _ in range(20) for seconds in (6.0, 0.6)))
    async with serving(ScriptedEngine(lambda call: "words")) as served:
        got = await events(served, [config(mode=transcription_pb2.STREAM_MODE_FILE), *audio(data, 65_536)])
    fractions = [response.progress.fraction for response in got if response.HasField("progress")]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert all(fraction < 1.0 for fraction in fractions[:-1])
    last = [response.progress for response in got if response.HasField("progress")][-1]
    assert last.chunks_done == last.chunks_total == len(texts(got)) >= 5
    assert seconds(last.audio_done) == seconds(last.audio_received) == 132.0
    assert kinds(got)[-2:] == ["progress", "completed"]
    assert "interim" not in kinds(got)


async def test_a_fast_sender_of_a_file_is_slowed_down():
    engine = ScriptedEngine(lambda call: "words")
    engine.gate.clear()
    settings: dict[str, Any] = {"stream_held_audio_s": 180, "stream_waiting_bytes": 65_536}
    n_sent = 0
    data = speech(*(seconds for _ in range(30) for seconds in (6.0, 0.6)))

    async with serving(engine, **settings) as served:
        call = served.transcription.StreamTranscribe()
        engine.gate.set()
        await call.write(config(mode=transcription_pb2.STREAM_MODE_FILE))
        await call.read()
        engine.gate.clear()

        async def send() -> None:
            nonlocal n_sent
            for _ in range(6):
                for request in audio(data, 65_536):
                    await call.write(request)
                    n_sent += len(request.audio)
            await call.done_writing()

        sending = asyncio.create_task(send())
        await engine.until(n_calls=2)
        while True:  # until nothing moves any more
            before = n_sent
            await asyncio.sleep(0.5)
            if n_sent == before:
                break
        assert not sending.done()
        assert n_sent / BYTES_PER_S < 180 + 300  # what may be held, and the megabytes that HTTP/2 has under way
        engine.gate.set()
        got = await reads(call, is_kind("completed"))
        await sending
    assert seconds(got[-1].completed.transcript.audio_duration) == 6 * 198.0


# ---- failures -------------------------------------------------------------------------------------------------


async def test_an_utterance_that_cannot_be_decoded_is_a_warning_and_the_stream_continues():
    def script(call: EngineCall) -> str | BaseException:
        is_first = len(call.audio) < 1.5 * 16_000 and call.ticket.lane is Lane.LIVE_FINAL
        return EngineFailed("The model failed.") if is_first else "second"

    async with serving(ScriptedEngine(script)) as served:
        got = await events(served, live(data=speech(1.0, 0.8, 2.0)))
    (warning,) = [response.warning for response in got if response.HasField("warning")]
    assert warning.reason == "ENGINE_FAILED"
    assert texts(got) == ["second"]
    lost_s = 1.0 + EndpointOptions().padding_s
    assert seconds(got[-1].cursors.dropped) == pytest.approx(lost_s, abs=0.05)


async def test_a_cancelled_call_does_not_end_its_session():
    """The trap: requests of a cancelled call end as if half-closed."""
    async with serving(ScriptedEngine(lambda call: "hello")) as served:
        for _ in range(30):
            call = served.transcription.StreamTranscribe()
            await call.write(config())
            started = await call.read()
            await call.write(StreamTranscribeRequest(audio=tone(0.5)))
            await reads(call, is_kind("speech_activity"))
            call.cancel()
            again = served.transcription.StreamTranscribe()
            await again.write(
                config(format=None, resume_session_id=started.started.session_id, resume_after_sequence=1)
            )
            resumed = await again.read()
            assert resumed.started.resumed
            assert resumed.acknowledged_bytes == len(tone(0.5))
            for request in [*audio(tone(0.5)), END]:
                await again.write(request)
            got = await reads(again, is_kind("completed"))
            assert seconds(got[-1].completed.transcript.audio_duration) == 1.0
            assert len(texts(got)) == 1
