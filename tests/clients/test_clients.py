"""The example clients: each is built with its language's tools, then does its five things against a real server."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.serving import ADMIN_KEY, Running, raw_samples, run, served, tool, without_settings
from tests.harness import AUDIO, REPOSITORY
from typeless_grpc.client import channel
from typeless_grpc.pb.v1 import admin_pb2, admin_pb2_grpc

pytestmark = [pytest.mark.clients, pytest.mark.timeout(1200)]

SPEECH = AUDIO / "en_two_sentences.flac"
TEXT = "Good morning, and thank you for coming. The train to the coast leaves in 20 minutes."
BUILD_S = 900
TRIES = 3


@dataclass(frozen=True)
class Language:
    """needs: programs of its toolchain. builds: commands, run in turn in its folder. command: what then is called."""

    name: str
    needs: tuple[str, ...]
    builds: tuple[tuple[str, ...], ...]
    command: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return REPOSITORY / "clients" / self.name


LANGUAGES = (
    Language("python", (), (), ("python", "main.py")),
    Language("go", ("go", "buf"), (("go", "generate"), ("go", "build", ".")), ("./typeless-client",)),
    Language(
        "typescript",
        ("node", "npm", "buf"),
        (("npm", "ci", "--no-progress"), ("npm", "run", "build")),
        ("node", "dist/src/main.js"),
    ),
    Language(
        "java",
        ("mvn", "java"),
        (("mvn", "-q", "-B", "compile"),),
        ("java", "-cp", "target/classes:target/lib/*", "typeless.example.Main"),
    ),
    Language("rust", ("cargo",), (("cargo", "build", "-q", "--locked"),), ("target/debug/typeless-example",)),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served(tmp_path_factory.mktemp("data")) as running:
        yield running


@dataclass(frozen=True)
class Client:
    """A client that is built, and the server it calls."""

    language: Language
    server: Running

    def __call__(self, *words: str | Path, key: str | None = None) -> subprocess.CompletedProcess[str]:
        env = self.server.environment() if key is None else self.server.environment(key)
        return run(*self.language.command, *words, cwd=self.language.folder, env=env)


@pytest.fixture(scope="module", params=LANGUAGES, ids=lambda language: language.name)
def client(request: pytest.FixtureRequest, server: Running) -> Client:
    language: Language = request.param
    if missing := [name for name in language.needs if not tool(name)]:
        pytest.skip(f"the {language.name} client was not built: no {', '.join(missing)} on this machine")
    for build in language.builds:
        done = run(*build, cwd=language.folder, env=without_settings(), timeout_s=BUILD_S)
        assert done.returncode == 0, f"{' '.join(build)}\n{done.stdout}\n{done.stderr}"
    return Client(language, server)


def test_a_recording_is_transcribed(client: Client):
    done = client("transcribe", SPEECH)
    assert (done.returncode, done.stdout) == (0, f"{TEXT}\n"), done.stderr


def test_a_stream_prints_interims_and_then_finals(client: Client, tmp_path: Path):
    samples = raw_samples(SPEECH.name, tmp_path / "speech.raw")
    # Interims are what a busy server drops first: more than one try, on a machine that others use, too.
    for _ in range(TRIES):
        done = client("stream", samples)
        assert done.returncode == 0, done.stderr
        lines = [line.partition(": ") for line in done.stdout.splitlines()]
        final = " ".join(text for kind, _, text in lines if kind == "final")
        assert "thank you for coming" in final
        assert "train to the coast" in final
        assert lines[-1][0] == "final"
        if {kind for kind, _, _ in lines} == {"interim", "final"} and lines[0][0] == "interim":
            return
    pytest.fail(f"no interim before the finals in {TRIES} streams: {done.stdout}")


def test_a_batch_shows_the_outcome_of_each_recording(client: Client):
    done = client("batch", SPEECH, AUDIO / "en_short_truncated.m4a", AUDIO / "en_short.mp3")
    assert done.returncode == 0, done.stderr
    whole, broken, short, summary = done.stdout.splitlines()
    assert whole == f"{SPEECH.name}: {TEXT}"
    assert broken == "en_short_truncated.m4a: failed: AUDIO_TRUNCATED"
    assert words(short) == "enshortmp3 please close the window"
    assert summary == "2 of 3 succeeded"


def words(text: str) -> str:
    """The text without capitals and full stops, which a small model may get wrong."""
    return re.sub(r"[^a-z0-9 ]", "", text.lower())


def test_a_job_is_watched_and_its_subtitles_are_printed(client: Client):
    done = client("job", SPEECH)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "COMPLETED 100 %"
    cue = done.stdout.splitlines()
    assert cue[0] == "1"
    assert cue[1].startswith("00:00:00,")
    assert " --> " in cue[1]
    assert "The train to the coast" in " ".join(cue)


def status(line: str) -> str:
    """What a line begins with, however the language spells its statuses: INVALID_ARGUMENT, InvalidArgument."""
    return line.partition(":")[0].replace("_", "").upper()


def test_a_wrong_request_is_explained(client: Client):
    done = client("error", SPEECH)
    assert (done.returncode, done.stdout) == (1, "")
    first, reason, field = done.stderr.splitlines()
    assert status(first) == "INVALIDARGUMENT"
    assert reason == "  reason: INVALID_FIELD"
    assert field.startswith("  field: options.decoding.beam_size: ")


def test_a_wrong_key_is_explained(client: Client):
    done = client("transcribe", SPEECH, key="nobody-has-this-key")
    assert (done.returncode, done.stdout) == (1, "")
    assert status(done.stderr) == "UNAUTHENTICATED"
    assert "  reason: KEY_INVALID" in done.stderr.splitlines()


def test_a_limited_caller_waits_for_the_time_in_retry_info(client: Client, server: Running):
    key = key_of_a_limited_caller(server)
    first, second = (client("transcribe", AUDIO / "en_short.flac", key=key) for _ in range(2))
    for done in (first, second):
        assert (done.returncode, words(done.stdout)) == (0, "please close the window"), done.stderr
    assert second.stderr.startswith("RATE_LIMITED: trying again in ")


def key_of_a_limited_caller(server: Running) -> str:
    """With one call every 8 s: the second of two in a row comes too soon, on a slow machine too."""
    with channel(server.target, api_key=ADMIN_KEY) as admin:
        stub = admin_pb2_grpc.AdminServiceStub(admin)
        made = stub.CreateApiKey(admin_pb2.CreateApiKeyRequest(display_name="in a hurry"), timeout=10)
        limit = admin_pb2.RateLimit(group="transcribe", amount=1, period_seconds=8, burst=1)
        key_id = made.api_key.key_id
        stub.UpdateRateLimit(admin_pb2.UpdateRateLimitRequest(rate_limit=limit, key_id=key_id), timeout=10)
    return made.secret


def test_an_unreachable_server_is_reported_with_its_status(client: Client):
    unreachable = Client(client.language, Running(port=1))
    done = unreachable("transcribe", SPEECH)
    assert done.returncode == 1
    assert status(done.stderr.splitlines()[-1]) == "UNAVAILABLE"
