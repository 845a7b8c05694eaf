"""Every order of the messages of a stream, on our contract and on those of others: a documented status and reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service.google import opening
from tests.service.riva import configured
from tests.service.streams import END, FINALIZE, KEEP_ALIVE, config
from tests.speech import tone
from tests.wire import attack
from tests.wire.http2 import PREFACE, Peer, headers_of, message, raw
from tests.wire.http2 import settings as http2_settings
from tests.wire.node import HOSTILE
from tests.wire.server import Attacked, attacked
from typeless_grpc.client import CallFailed
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeRequest
from typeless_grpc.servicers.google.messages import V1, V2
from typeless_grpc.servicers.riva import messages as riva

KEY = (("x-api-key", HOSTILE),)
AUDIO = tone(0.1)
OK, INVALID, NOT_FOUND = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
Ending = tuple[grpc.StatusCode, str]
FINE: Ending = (OK, "")
ORDER: Ending = (INVALID, "STREAM_ORDER")
FIELD: Ending = (INVALID, "INVALID_FIELD")


@dataclass(frozen=True)
class Contract:
    """A streaming method, its messages by name, and the endings that an order of them may have."""

    method: str
    messages: dict[str, bytes]
    endings: Callable[[Sequence[str]], set[Ending]]


def ours(names: Sequence[str]) -> set[Ending]:
    """The reference: what the first message that is wrong says."""
    match names[0] if names else "":
        case "resume":
            return {(NOT_FOUND, "SESSION_NOT_FOUND")}
        case "resume_with_options":
            return {FIELD}
        case "config":
            pass
        case _:
            return {ORDER}
    for index, name in enumerate(names[1:], 1):
        if name == "end":
            # The call may be over before the next message arrives.
            return {FINE, ORDER} if names[index + 1 :] else {FINE}
        if name in ("config", "resume", "resume_with_options", "empty"):
            return {ORDER}
        if name in ("unknown_control", "bad_update"):
            return {FIELD}
    return {FINE}


def theirs(names: Sequence[str]) -> set[Ending]:
    """Of Riva and Google: the configuration first and once, and then whatever there is of audio."""
    is_good = bool(names) and names[0] == "config" and "config" not in names[1:]
    return {FINE} if is_good else {ORDER}


def encoded(**requests: Any) -> dict[str, bytes]:
    return {name: request.SerializeToString() for name, request in requests.items()}


CONTRACTS = {
    "ours": Contract(
        attack.STREAM,
        encoded(
            config=config(),
            resume=config(resume_session_id="unknown", format=None),
            resume_with_options=config(resume_session_id="unknown", options={"language": "en"}, format=None),
            audio=StreamTranscribeRequest(audio=AUDIO),
            half_a_sample=StreamTranscribeRequest(audio=AUDIO[:2]),
            no_audio=StreamTranscribeRequest(audio=b""),
            finalize=FINALIZE,
            keep_alive=KEEP_ALIVE,
            end=END,
            unknown_control=StreamTranscribeRequest(control=9),
            update=StreamTranscribeRequest(update={"language": "en"}),
            bad_update=StreamTranscribeRequest(update={"decoding": {"beam_size": 11}}),
            empty=StreamTranscribeRequest(),
        ),
        ours,
    ),
    "riva": Contract(
        f"/{riva.SERVICE}/StreamingRecognize",
        encoded(
            config=configured(),
            audio=riva.StreamingRecognizeRequest(audio_content=AUDIO),
            no_audio=riva.StreamingRecognizeRequest(audio_content=b""),
            empty=riva.StreamingRecognizeRequest(),
        ),
        theirs,
    ),
    **{
        f"google {version.name}": Contract(
            f"/{version.service.full_name}/StreamingRecognize",
            encoded(
                config=opening(version),
                audio=version.message("StreamingRecognizeRequest", **{field: AUDIO}),
                no_audio=version.message("StreamingRecognizeRequest", **{field: b""}),
                empty=version.message("StreamingRecognizeRequest"),
            ),
            theirs,
        )
        for version, field in ((V1, "audio_content"), (V2, "audio"))
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    with attacked(tmp_path_factory.mktemp("wire")) as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: Attacked) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as made:
        yield made


def ending(channel: grpc.Channel, method: str, messages: Sequence[bytes]) -> Ending:
    """Send all messages and the half-close; return how the call ended."""
    try:
        for _ in channel.stream_stream(method)(iter(messages), metadata=KEY, timeout=30):
            pass
    except grpc.RpcError as error:
        failed = CallFailed.of(error)
        return failed.code, failed.reason
    return FINE


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_any_order_of_messages_has_a_documented_ending(server: Attacked, channel: grpc.Channel, contract: Contract):
    names = st.sampled_from(list(contract.messages))
    well_begun = st.lists(names, max_size=6).map(lambda rest: ["config", *rest])

    @settings(max_examples=40)
    @given(well_begun | st.lists(names, max_size=4))
    def check(order: list[str]) -> None:
        got = ending(channel, contract.method, [contract.messages[name] for name in order])
        assert got in contract.endings(order), order

    check()
    assert not server.problems()
    assert not server.settled()


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_messages_after_the_half_close_are_an_error_of_the_client_alone(server: Attacked, contract: Contract):
    sent = [message(contract.messages["config"]), message(contract.messages["audio"])]
    with server.peer() as peer:
        broken = peer.call(headers_of(contract.method, key=HOSTILE), *sent)
        peer.send(raw(attack.DATA, 0, broken, sent[1]), raw(attack.DATA, attack.END_STREAM, broken, sent[1]))
        good = peer.call(headers_of(contract.method, key=HOSTILE), *sent)
        if not peer.answer(good).has_ended:
            assert peer.is_closed
    with server.peer() as peer:
        again = peer.call(headers_of(contract.method, key=HOSTILE), *sent)
        assert peer.answer(again).status == 0
    assert not server.problems()


def calls_after(peer: Peer, n: int) -> list[int | None]:
    streams = [peer.call(headers_of(attack.CHECK), message()) for _ in range(n)]
    return [peer.answer(stream).status for stream in streams]


def test_answers_that_are_never_read_delay_no_other_call_on_another_connection(server: Attacked):
    begin = PREFACE + http2_settings(INITIAL_WINDOW_SIZE=0)
    with server.peer(begin=begin) as deaf, server.peer() as other:
        for _ in range(50):
            deaf.call(headers_of(attack.TRANSCRIBE, key=HOSTILE), attack.recording())
        assert calls_after(other, 10) == [0] * 10
    assert not server.settled()
