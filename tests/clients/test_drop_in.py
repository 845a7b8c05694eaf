"""Clients of other services, as their makers publish them, in an environment of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from tests.clients.serving import KEY, Running, raw_samples, run, served, tool, without_settings
from tests.clients.test_clients import SPEECH, TEXT, words
from tests.harness import REPOSITORY
from tests.servers import free_port
from typeless_grpc.servicers.riva.messages import POOL

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

FOLDER = REPOSITORY / "clients" / "drop-in"
INSTALL_S = 500
HTTPS = 443
# Java compiles less while it runs: half of the time of a short program.
QUICK = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
# Prints the files of the installed package's contract.
CONTRACT = """
import json, sys
from google.protobuf import descriptor_pb2
from riva.client.proto import riva_asr_pb2 as asr, riva_audio_pb2 as audio, riva_common_pb2 as common

files = {}
for module in (asr, audio, common):
    proto = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(proto)
    files[proto.name] = proto.SerializeToString().hex()
json.dump(files, sys.stdout)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the clients."""
    folder = tmp_path_factory.mktemp("clients")
    uv, environment = Path(sys.executable).parent / "uv", without_settings() | {"UV_SYSTEM_CERTS": "1"}
    interpreter = folder / "bin" / "python"
    for command in (
        (uv, "venv", "-q", "--python", sys.executable, folder),
        (uv, "pip", "install", "-q", "--python", interpreter, "-r", FOLDER / "requirements.txt"),
    ):
        done = run(*map(str, command), env=environment, timeout_s=INSTALL_S)
        assert done.returncode == 0, done.stderr
    return interpreter


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    with wave.open(str(folder / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(raw_samples(SPEECH.name, folder / "speech.raw").read_bytes())
    return folder / "speech.wav"


@dataclass(frozen=True)
class Universe:
    """A server as `speech.localhost` over TLS, and the files in folder with which Google's clients find it."""

    folder: Path
    running: Running

    @property
    def port(self) -> int:
        return self.running.port

    @property
    def domain(self) -> str:
        return "localhost" if self.port == HTTPS else f"localhost:{self.port}"

    def environment(self) -> dict[str, str]:
        return without_settings() | {
            "GOOGLE_CLOUD_UNIVERSE_DOMAIN": self.domain,
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.folder / "google-account.json"),
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(self.folder / "ca.pem"),
            "SSL_CERT_FILE": str(self.folder / "ca.pem"),  # Go's
        }

    def run(self, *command: str | Path, cwd: Path = FOLDER) -> subprocess.CompletedProcess[str]:
        """Run a client that finds the server's address with the resolver of the system, and calls port 443."""
        if self.port != HTTPS:
            pytest.skip("only root may listen on port 443, and it must be free")
        hosts = self.folder / "hosts"
        hosts.write_text("127.0.0.1 localhost speech.localhost\n")
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return run("unshare", "--mount", "sh", "-c", script, hosts, *command, env=self.environment(), cwd=cwd)


@pytest.fixture(scope="module")
def universe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Universe]:
    folder, data = tmp_path_factory.mktemp("universe"), tmp_path_factory.mktemp("data")
    port = HTTPS if can_listen(HTTPS) else free_port()
    domain = "localhost" if port == HTTPS else f"localhost:{port}"
    command = ("typeless", "keys", "google-account", domain, "--output", folder)
    made = run(*command, env=without_settings() | {"TYPELESS_API_KEY": KEY})
    assert made.returncode == 0, made.stderr
    tls = {"TYPELESS_TLS_CERT_FILE": str(folder / "cert.pem"), "TYPELESS_TLS_KEY_FILE": str(folder / "key.pem")}
    with served(data, TYPELESS_PORT=str(port), **tls) as running:
        yield Universe(folder, running)


def can_listen(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def printed(python: Path, server: Running, program: str, *arguments: str | Path, **environment: str) -> list[str]:
    """The lines that a client prints."""
    done = run(python, FOLDER / program, *arguments, env=os.environ | server.environment() | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_nvidias_client_lists_the_models(python: Path, server: Running):
    assert {"tiny.en online en-US", "tiny.en offline en-US"} <= set(printed(python, server, "riva_client.py", "models"))


def test_nvidias_client_transcribes_any_file(python: Path, server: Running, wav: Path):
    assert printed(python, server, "riva_client.py", "file", SPEECH) == [TEXT]
    assert printed(python, server, "riva_client.py", "file", wav) == [TEXT]


@pytest.mark.parametrize("command", ["v1", "v2", "job"])
def test_googles_client_transcribes_any_file(python: Path, server: Running, command: str):
    assert printed(python, server, "google_speech.py", command, SPEECH) == [TEXT]


def test_googles_client_sends_its_key_over_tls(python: Path, universe: Universe):
    target = {"TYPELESS_SERVER": f"speech.localhost:{universe.port}", "TYPELESS_TLS": "1"}
    trusted = {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(universe.folder / "ca.pem")}
    assert printed(python, universe.running, "google_speech.py", "job", SPEECH, **target, **trusted) == [TEXT]


def test_googles_client_for_python_works_without_a_change_of_its_code(python: Path, universe: Universe):
    for command in ("v2", "job"):
        done = run(python, FOLDER / "google_speech.py", command, SPEECH, env=universe.environment())
        assert (done.returncode, done.stdout) == (0, f"{TEXT}\n"), done.stderr


@pytest.mark.parametrize(
    ("program", "command"),
    [("riva_client.py", ("stream",)), ("livekit_nvidia.py", ()), ("google_speech.py", ("stream",))],
)
def test_clients_stream_a_file_as_it_is_spoken(
    python: Path, server: Running, wav: Path, program: str, command: tuple[str, ...]
):
    check_streamed(printed(python, server, program, *command, wav))


def check_streamed(printed_lines: list[str]) -> None:
    lines = [line.partition(": ") for line in printed_lines]
    final = words(" ".join(text for kind, _, text in lines if kind == "final"))
    assert "thank you for coming" in final
    assert "train to the coast" in final
    assert lines[-1][0] == "final"
    assert lines[0][0] == "interim"


def test_googles_client_for_node_transcribes_and_streams(server: Running, universe: Universe, wav: Path):
    if missing := [name for name in ("node", "npm") if not tool(name)]:
        pytest.skip(f"the client for Node.js was not installed: no {', '.join(missing)} on this machine")
    folder = FOLDER / "node"
    install = ("npm", "ci", "--no-progress", "--ignore-scripts")
    done = run(*install, cwd=folder, env=without_settings(), timeout_s=INSTALL_S)
    assert done.returncode == 0, done.stderr
    done = run("node", "google_speech.js", "file", SPEECH, cwd=folder, env=server.environment())
    assert (done.returncode, done.stdout) == (0, f"{TEXT}\n"), done.stderr
    done = run("node", "google_speech.js", "stream", wav, cwd=folder, env=server.environment())
    assert done.returncode == 0, done.stderr
    check_streamed(done.stdout.splitlines())
    done = universe.run("node", "google_speech.js", "file", SPEECH, cwd=folder)
    assert (done.returncode, done.stdout) == (0, f"{TEXT}\n"), done.stderr


def test_googles_client_for_go_waits_for_an_operation(server: Running, universe: Universe, tmp_path: Path):
    if not tool("go"):
        pytest.skip("the client for Go was not built: no go on this machine")
    program = tmp_path / "client"
    built = run("go", "build", "-o", program, ".", cwd=FOLDER / "go", env=without_settings(), timeout_s=INSTALL_S)
    assert built.returncode == 0, built.stderr
    done = run(program, SPEECH, env=server.environment())
    assert (done.returncode, done.stdout) == (0, f"{TEXT}\n"), done.stderr
    done = universe.run(program, SPEECH)
    assert (done.returncode, done.stdout) == (0, f"{TEXT}\n"), done.stderr


def test_googles_client_for_java_waits_for_an_operation(server: Running, universe: Universe, tmp_path: Path):
    if missing := [name for name in ("java", "keytool", "mvn") if not tool(name)]:
        pytest.skip(f"the client for Java was not run: no {', '.join(missing)} on this machine")
    folder, classpath, trusted = FOLDER / "java", tmp_path / "classpath", tmp_path / "trusted.p12"
    install = ("mvn", "-q", "-B", "dependency:build-classpath", f"-Dmdep.outputFile={classpath}")
    done = run(*install, cwd=folder, env=without_settings() | {"MAVEN_OPTS": " ".join(QUICK)}, timeout_s=INSTALL_S)
    assert done.returncode == 0, done.stdout
    trust = ("-importcert", "-noprompt", "-file", universe.folder / "ca.pem", "-keystore", trusted)
    done = run("keytool", *trust, "-storepass", "changeit", env=without_settings())
    assert done.returncode == 0, done.stdout
    store = (f"-Djavax.net.ssl.trustStore={trusted}", "-Djavax.net.ssl.trustStorePassword=changeit")
    client = ("java", *QUICK, *store, "-cp", classpath.read_text(), "GoogleSpeech.java")
    done = run(*client, "job", SPEECH, cwd=folder, env=server.environment())
    assert (done.returncode, done.stdout) == (0, f"{TEXT}\n"), done.stderr
    done = universe.run(*client, "file", SPEECH, cwd=folder)
    assert (done.returncode, done.stdout) == (0, f"{TEXT}\n"), done.stderr


def test_our_names_and_numbers_equal_those_of_nvidias_package(python: Path):
    done = run(python, "-c", CONTRACT, env=without_settings())
    assert done.returncode == 0, done.stderr
    theirs = {name: bytes.fromhex(data) for name, data in json.loads(done.stdout).items()}
    for name, data in theirs.items():
        assert contract(POOL.FindFileByName(name).serialized_pb) == contract(data)


def contract(serialized: bytes) -> Any:
    """A file's messages, enums and services, without its options and the order of its parts."""
    file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
    return (
        file.package,
        sorted(message_of(message) for message in file.message_type),
        sorted((enum.name, sorted((value.name, value.number) for value in enum.value)) for enum in file.enum_type),
        sorted(
            (service.name, one.name, one.input_type, one.output_type, one.client_streaming, one.server_streaming)
            for service in file.service
            for one in service.method
        ),
    )


def message_of(message: Any) -> Any:
    fields = sorted((f.number, f.name, f.type, f.label, f.type_name, f.proto3_optional) for f in message.field)
    return message.name, fields, sorted(message_of(nested) for nested in message.nested_type)
