"""The steps of the Dockerfile, run in a clean Debian, and the server as the image runs it.

No container engine is needed: each instruction becomes a line of a shell script, and the result runs as the image's
user on a file system that it cannot write to.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.harness import REPOSITORY
from tests.servers import free_port
from typeless_grpc.client import Client, Options

pytestmark = [pytest.mark.packages, pytest.mark.model, pytest.mark.timeout(900)]
DOCKERFILE = REPOSITORY / "deploy/docker/Dockerfile"
NEEDED = ("debootstrap", "setpriv", "unshare")
# What the machine's own package manager and pip need to reach their index.
FROM_HERE = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")


def instructions() -> list[tuple[str, str]]:
    """(instruction, argument) of the Dockerfile, lines joined and comments left out."""
    lines = [line for line in DOCKERFILE.read_text("utf-8").splitlines() if not line.startswith("#")]
    return [
        (name, argument)
        for name, _, argument in (line.partition(" ") for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines())
        if name
    ]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, after its FROM. The ARG before the first one is given to all."""
    found: list[list[tuple[str, str]]] = []
    for name, argument in instructions():
        if name == "FROM":
            found.append([])
        elif found:
            found[-1].append((name, argument))
    return found


def script(stage: list[tuple[str, str]], arguments: dict[str, str]) -> str:
    """A shell script that does what a stage says. The context lies in /context, the first stage's files in /built."""
    lines = ["set -eu"]
    for name, argument in stage:
        match name:
            case "ARG":
                variable, _, default = argument.partition("=")
                lines.append(f"export {variable}={arguments.get(variable, default)}")
            case "ENV":
                lines.append(f"export {argument}")
            case "WORKDIR":
                lines.append(f"mkdir -p {argument}; cd {argument}")
            case "RUN":
                lines.append(f"( {argument} )")
            case "COPY":
                *sources, target = argument.split()
                root = "/context"
                if sources[0].startswith("--from="):
                    sources, root = sources[1:], "/built"
                for source in sources:
                    at = f"{target}/" if target.endswith("/") or len(sources) > 1 else target
                    lines.append(f'mkdir -p "$(dirname {at}x)"; cp -a {root}/{source} {at}')
    return "\n".join((*lines, "env -0 >/environment"))


def in_root(root: Path, *command: str) -> None:
    path = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    done = subprocess.run(
        ["chroot", root, *command], env=os.environ | path, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of the finished image."""
    missing = [command for command in NEEDED if shutil.which(command) is None]
    if os.geteuid() or missing:
        pytest.skip(f"needs root and {', '.join(missing) or 'the right to change roots'}")
    roots = tmp_path_factory.mktemp("image")
    base, build, final = (roots / name for name in ("base", "build", "final"))
    suite = "--include=python3,python3-venv,ca-certificates"
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", suite, "bookworm", base, *mirror()],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"debootstrap does not reach Debian's packages: {done.stdout[-300:]}")
    for path in map(Path, FROM_HERE):
        if path.exists():
            shutil.copy(path, base / path.relative_to("/"))
    subprocess.run(["cp", "-a", base, final], check=True)  # shutil would read the devices
    base.rename(build)
    context = build / "context"
    for file in subprocess.check_output(["git", "ls-files", "-z"], cwd=REPOSITORY, text=True).split("\0"):
        if file and (REPOSITORY / file).is_file():
            (context / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / file, context / file)
    first, second = stages()
    python = subprocess.check_output(
        ["chroot", build, "python3", "-c", "import sys; print('{}.{}'.format(*sys.version_info))"], text=True
    ).strip()
    in_root(build, "sh", "-c", script(first, {"PYTHON": python}))
    (final / "built/opt").mkdir(parents=True)
    (build / "opt/typeless").rename(final / "built/opt/typeless")
    in_root(final, "sh", "-c", script(second, {"PYTHON": python}))
    yield final
    shutil.rmtree(roots)


def mirror() -> list[str]:
    """The Debian archive that this machine uses, none for debootstrap's own."""
    for file in Path("/etc/apt/sources.list.d").glob("*.sources"):
        if found := re.search(r"^URIs: (\S+/debian)$", file.read_text("utf-8"), re.MULTILINE):
            return [found[1]]
    return []


def environment(image: Path) -> dict[str, str]:
    """The variables that the image sets, and what an engine adds to them."""
    pairs = (line.partition("=") for line in (image / "environment").read_text("utf-8").split("\0") if line)
    ours = {word.partition("=")[0] for name, argument in instructions() if name == "ENV" for word in argument.split()}
    return {name: value for name, _, value in pairs if name in ours} | {"HOME": value("VOLUME")}


def value(instruction: str) -> str:
    return next(argument for name, argument in reversed(instructions()) if name == instruction)


def test_the_image_serves_as_a_user_who_can_write_to_its_data_only(image: Path):
    user, group = value("USER").split(":")
    assert user == group == "10001"
    model = subprocess.check_output(
        [Path(sys.executable).with_name("typeless"), "models", "pull", "tiny.en"], text=True
    )
    data = image / value("VOLUME").lstrip("/")
    assert data.stat().st_uid == int(user)
    shutil.copytree(model.strip(), data / "models/tiny.en")
    for path in (data, *data.rglob("*")):
        os.chown(path, int(user), int(user))
    port = free_port()
    entry = " ".join((*words(value("ENTRYPOINT")), *words(value("CMD"))))
    # The root is read-only, as with docker run --read-only --tmpfs /tmp, and the volume is not.
    run = f"""
        mount --bind {image} {image}; mount --bind {data} {data}
        mount -o remount,bind,ro {image}; mount -t tmpfs none {image}/tmp; mount -t proc proc {image}/proc
        exec chroot {image} setpriv --reuid {user} --regid {group} --clear-groups --no-new-privs {entry}
    """
    settings = {"TYPELESS_PORT": str(port), "TYPELESS_MODEL": "tiny.en", "TYPELESS_MODEL_DOWNLOAD": "false"}
    server = subprocess.Popen(
        ["unshare", "--mount", "sh", "-euc", run],
        env=environment(image) | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
        status = Path(f"/proc/{server.pid}/status").read_text("ascii")
        assert re.search(r"^Uid:\s+10001\s+10001", status, re.MULTILINE)
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        health = value("HEALTHCHECK").partition("CMD ")[2].replace("50051", str(port))
        started_s = time.monotonic()
        while subprocess.run(["chroot", image, *words(health)], env=environment(image), check=False).returncode:
            assert time.monotonic() - started_s < 60
            time.sleep(0.5)
        with Client(f"127.0.0.1:{port}") as client:
            result = client.transcribe((REPOSITORY / "tests/audio/en_short.flac").read_bytes(), Options())
        assert result.transcript.text.strip() == "Please close the window"
    finally:
        server.send_signal(signal.SIGTERM)
        output, _ = server.communicate(timeout=60)
    assert server.returncode == 0, output
    assert "Traceback" not in output
    assert "Read-only" not in output


def words(text: str) -> list[str]:
    found: list[str] = json.loads(text)
    return found


def test_the_dockerfile_has_only_instructions_that_these_tests_try():
    tried = {"ARG", "FROM", "ENV", "WORKDIR", "RUN", "COPY", "USER", "VOLUME", "ENTRYPOINT", "CMD", "HEALTHCHECK"}
    assert {name for name, _ in instructions()} <= tried | {"EXPOSE", "STOPSIGNAL"}
    assert value("STOPSIGNAL") == "SIGTERM"
