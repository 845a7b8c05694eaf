"""Google's services over real channels, around a scripted engine."""

from __future__ import annotations

from typing import Any

import grpc
import jwt
import pytest

from tests.harness import AUDIO, pcm, serving
from tests.service.access import ADMIN, KEYS, USER
from tests.service.google import (
    BOTH,
    EACH,
    audio_of,
    billed_s,
    end_s,
    failed,
    google_call,
    opening,
    paths,
    raw,
    recognize,
    says,
    streamed,
)
from typeless_grpc.access.tokens import KEY_ACCOUNT, KEYLESS_ACCOUNT
from typeless_grpc.engine.interface import Task
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.servicers.google.messages import V1, V2, Version

WAV = (AUDIO / "en_short.wav").read_bytes()
STEREO = (AUDIO / "two_speakers_stereo.flac").read_bytes()
AUTO = {"v1": {}, "v1p1beta1": {}, "v2": {"auto_decoding_config": {}}}
SET = {"phrases": [{"value": "Riva"}, {"value": "$MONTH"}, {"value": "never", "boost": -1}]}


# ---- Recognize ------------------------------------------------------------------------------------------------


@EACH
async def test_a_recording_has_a_text_an_end_a_language_and_a_length_to_bill(version: Version):
    languages = {"language_codes": ["en-US"]} if version.is_v2 else {"language_code": "en-US"}
    async with serving(says("hello there")) as served:
        response = await recognize(served, version, pcm(2.5), **raw(version), **languages)
    (result,) = response.results
    assert [one.transcript for one in result.alternatives] == ["hello there"]
    assert result.alternatives[0].confidence == pytest.approx(0.9)
    assert not result.alternatives[0].words
    assert (end_s(version, result), result.language_code, billed_s(version, response)) == (2.5, "en-US", 3)


@EACH
@pytest.mark.parametrize(("times", "confidences"), [(True, False), (False, True), (True, True)])
async def test_words_have_what_is_requested(version: Version, times: bool, confidences: bool):
    wanted = {"enable_word_time_offsets": times, "enable_word_confidence": confidences}
    config = {"features": wanted} if version.is_v2 else wanted
    async with serving(says("hello there")) as served:
        response = await recognize(served, version, pcm(2.0), **raw(version), **config)
    words = response.results[0].alternatives[0].words
    last = words[-1].end_offset if version.is_v2 else words[-1].end_time
    assert [word.word for word in words] == ["hello", "there"]
    assert (last.seconds == 2) == times
    assert (words[0].confidence > 0) == confidences


@EACH
async def test_a_recording_without_speech_has_no_results(version: Version):
    async with serving(says("")) as served:
        response = await recognize(served, version, WAV, **AUTO[version.name])
    assert not response.results
    assert billed_s(version, response) > 0


@EACH
async def test_a_container_is_recognized_whatever_encoding_the_request_declares(version: Version):
    async with serving(ScriptedEngine()) as served:
        plain = await recognize(served, version, WAV, **AUTO[version.name])
        declared = await recognize(served, version, WAV, **raw(version, rate_hz=8000, n_channels=2))
    assert declared.results == plain.results


@EACH
async def test_channels_are_kept_apart_and_numbered_from_one(version: Version):
    config: dict[str, Any] = (
        {"auto_decoding_config": {}, "features": {"multi_channel_mode": 1}}
        if version.is_v2
        else {"enable_separate_recognition_per_channel": True}
    )
    async with serving(says("hi")) as served:
        response = await recognize(served, version, STEREO, **config)
    assert sorted(result.channel_tag for result in response.results) == [1, 2]
    assert [result.alternatives[0].transcript for result in response.results] == ["hi", "hi"]


@BOTH
async def test_options_reach_the_engine(version: Version):
    normalization = {"transcript_normalization": {"entries": [{"search": "one", "replace": "two"}]}}
    engine = ScriptedEngine()
    config: dict[str, Any]
    if version.is_v2:
        config = {
            "features": {"profanity_filter": True},
            "language_codes": ["de-DE", "fr-FR"],
            "adaptation": {"phrase_sets": [{"inline_phrase_set": SET}]},
            "translation_config": {"target_language": "en-US"},
        }
    else:
        config = {
            "profanity_filter": True,
            "language_code": "de-DE",
            "alternative_language_codes": ["fr-FR"],
            "adaptation": {"phrase_sets": [SET]},
        }
    async with serving(engine) as served:
        await recognize(served, version, WAV, **AUTO[version.name], **config, **normalization)
    (options,) = (call.options for call in engine.calls)
    assert (options.language, options.allowed_languages, options.hotwords) == (None, ("de", "fr"), ("Riva",))
    assert options.post_processing.mask_profanity
    assert options.post_processing.replacements == {"one": "two"}
    assert options.task is (Task.TRANSLATE if version.is_v2 else Task.TRANSCRIBE)


REFUSED_V1 = {
    "diarization_config.enable_speaker_diarization": {"diarization_config": {"enable_speaker_diarization": True}},
    "enable_spoken_punctuation": {"enable_spoken_punctuation": {"value": True}},
    "enable_spoken_emojis": {"enable_spoken_emojis": {"value": True}},
    "adaptation.phrase_set_references": {"adaptation": {"phrase_set_references": ["x"]}},
    "adaptation.custom_classes": {"adaptation": {"custom_classes": [{}]}},
    "adaptation.abnf_grammar": {"adaptation": {"abnf_grammar": {"abnf_strings": ["x"]}}},
    "transcript_normalization.entries[].case_sensitive": {
        "transcript_normalization": {"entries": [{"search": "a", "replace": "b", "case_sensitive": True}]}
    },
    "encoding": {"encoding": 7},
    "language_code": {"language_code": "english"},
    "sample_rate_hertz": {"encoding": 1},
    "alternative_language_codes": {"language_code": "en", "alternative_language_codes": ["english"]},
}
REFUSED_V2 = {
    "features.diarization_config": {"features": {"diarization_config": {}}},
    "features.enable_spoken_punctuation": {"features": {"enable_spoken_punctuation": True}},
    "features.enable_spoken_emojis": {"features": {"enable_spoken_emojis": True}},
    "features.custom_prompt_config": {"features": {"custom_prompt_config": {"custom_prompt": "x"}}},
    "adaptation.custom_classes": {"adaptation": {"custom_classes": [{}]}},
    "adaptation.phrase_sets[].phrase_set": {"adaptation": {"phrase_sets": [{"phrase_set": "x"}]}},
    "translation_config.target_language": {"translation_config": {"target_language": "fr"}},
    "explicit_decoding_config.encoding": {"explicit_decoding_config": {"sample_rate_hertz": 16_000}},
    "explicit_decoding_config.sample_rate_hertz": {"explicit_decoding_config": {"encoding": 1}},
    "language_codes": {"language_codes": ["english"]},
}


@pytest.mark.parametrize(
    ("version", "field", "config"),
    [(version, *row) for version, rows in ((V1, REFUSED_V1), (V2, REFUSED_V2)) for row in rows.items()],
    ids=lambda value: value.name if isinstance(value, Version) else None,
)
async def test_a_field_that_would_make_the_answer_wrong_is_refused_by_its_name(
    version: Version, field: str, config: dict[str, Any]
):
    async with serving(ScriptedEngine()) as served:
        of_recording = await failed(recognize(served, version, pcm(), **config))
        given = {"encoding": 1, "sample_rate_hertz": 16_000 * ("encoding" not in config)} | config
        of_config = opening(version, config if version.is_v2 else given)
        of_stream = await failed(streamed(served, version, [of_config, *audio_of(version, pcm())]))
    assert of_recording.code is of_stream.code is grpc.StatusCode.INVALID_ARGUMENT
    found = [path.partition("config.")[2].replace("[0]", "") for path in (*paths(of_recording), *paths(of_stream))]
    assert found[0] == field
    assert paths(of_recording)[0].startswith("config.")
    assert paths(of_stream)[0].startswith("streaming_config.config.")


@pytest.mark.parametrize(
    ("name", "code"), [("", "INVALID_ARGUMENT"), ("projects/p/locations/l/recognizers/mine", "NOT_FOUND")]
)
async def test_only_the_recognizer_without_a_name_exists(name: str, code: str):
    async with serving(ScriptedEngine()) as served:
        request = V2.message("RecognizeRequest", recognizer=name, content=WAV)
        error = await failed(google_call(served, "/google.cloud.speech.v2.Speech/Recognize")(request))
        first = opening(V2)
        first.recognizer = name
        of_stream = await failed(streamed(served, V2, [first]))
    assert error.code.name == of_stream.code.name == code


async def test_names_of_models_mean_the_operators_model_the_default_one_or_nothing():
    engine = ScriptedEngine()
    async with serving(engine, google_models="latest_long=large-v3") as served:
        for name in ("", "telephony", "latest_long"):
            await recognize(served, V1, WAV, model=name)
        assert await served.reload(google_unknown_models="refuse")
        await recognize(served, V1, WAV, model="telephony")
    assert [call.options.model for call in engine.calls] == ["", "", "large-v3", "telephony"]


# ---- access ---------------------------------------------------------------------------------------------------


def self_signed(account: str = "me@project.iam.gserviceaccount.com", kid: str = USER, **claims: Any) -> str:
    """A token as a client signs it with a service account. kid: the id of the account's key."""
    given = {"iss": account, "sub": account, "aud": "https://speech.googleapis.com/", "exp": 4_000_000_000} | claims
    return jwt.encode(given, "a secret that nobody checks, of some length", algorithm="HS256", headers={"kid": kid})


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ((("x-goog-api-key", USER),), "OK"),
        ((("x-goog-api-key", "wrong"),), "UNAUTHENTICATED"),
        ((("x-api-key", USER), ("x-goog-api-key", "wrong")), "OK"),
        ((("x-goog-user-project", "p"), ("x-goog-request-params", "x"), *(("x-api-key", USER),) * 2), "OK"),
        ((("authorization", f"Bearer {self_signed()}"),), "OK"),
        ((("authorization", f"Bearer {self_signed(sub='another')}"),), "UNAUTHENTICATED"),
        ((("authorization", f"Bearer {ADMIN}"),), "OK"),
    ],
)
async def test_googles_ways_of_sending_a_key_work(metadata: tuple[tuple[str, str], ...], code: str):
    async with serving(ScriptedEngine(), **KEYS, require_auth=False) as served:
        if code == "OK":
            await recognize(served, V1, WAV, metadata)
        else:
            assert (await failed(recognize(served, V1, WAV, metadata))).code.name == code


async def test_a_token_that_its_caller_signed_is_no_key_unless_it_carries_one():
    def bearing(**token: str) -> Any:
        return recognize(served, V1, WAV, (("authorization", f"Bearer {self_signed(**token)}"),))

    async with serving(ScriptedEngine(), **KEYS, require_auth=True) as served:
        await bearing(account=KEY_ACCOUNT)
        refused = [
            await failed(one)
            for one in (bearing(), bearing(account=KEYLESS_ACCOUNT), bearing(account=KEY_ACCOUNT, kid="wrong"))
        ]
    assert {error.code for error in refused} == {grpc.StatusCode.UNAUTHENTICATED}
    assert [error.reason for error in refused] == ["KEY_REQUIRED", "KEY_REQUIRED", "KEY_INVALID"]


async def test_calls_are_charged_to_a_quota_of_their_own():
    limits = {"rate_limit_enabled": True, "rate_limit_google": "2/day", "rate_limit_transcribe": "1/day"}
    async with serving(ScriptedEngine(), **limits) as served:
        await recognize(served, V1, WAV)
        await streamed(served, V2, [opening(V2), *audio_of(V2, pcm(0.5))])
        error = await failed(recognize(served, V2, WAV))
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")


async def test_a_server_can_leave_the_services_out():
    async with serving(ScriptedEngine(), google_enabled=False) as served:
        error = await failed(recognize(served, V1, WAV))
    assert error.code is grpc.StatusCode.UNIMPLEMENTED
