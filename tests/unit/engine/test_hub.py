"""The real client of the Hugging Face hub against a minimal hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.harness import REPOSITORY

REPO = "Systran/faster-whisper-tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "model.bin": bytes(range(256)) * 4096,
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "vocabulary.txt": b"a",
    "README.md": b"not needed",
}


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for when it downloads a snapshot."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPO}/tree/"):
            rows = [{"type": "file", "path": n, "size": len(c), "oid": _sha1(c)} for n, c in FILES.items()]
            self._answer(json.dumps(rows).encode())
        elif path.startswith(f"/api/models/{REPO}"):
            files = [{"rfilename": name} for name in FILES]
            self._answer(json.dumps({"id": REPO, "sha": COMMIT, "siblings": files}).encode())
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/") and (name := path.rpartition("/")[2]) in FILES:
            self._answer(FILES[name])
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{_sha1(body)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# In a process of its own: the client reads where the hub is when it is imported.
FETCH = """
import json, pathlib, sys
from typeless_grpc.engine.hub import HuggingFaceHub
from typeless_grpc.errors import SourceUnavailable

cache = pathlib.Path(sys.argv[1])
hub, reported = HuggingFaceHub(), []
assert hub.cached("tiny", cache) is None
try:
    found = hub.fetch("tiny", cache, lambda done, total: reported.append((done, total)))
except SourceUnavailable as error:
    print(json.dumps({"refused": error.message, "reason": error.reason}))
else:
    files = sorted(path.name for path in found.iterdir())
    print(json.dumps({"files": files, "reported": reported, "cached": hub.cached("tiny", cache) == found}))
"""


def fetch(endpoint: str, cache: Path) -> dict[str, object]:
    keep = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    done = subprocess.run(
        [sys.executable, "-c", FETCH, str(cache)],
        env=keep | {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(cache.parent / "hf-home")},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_model_is_fetched_and_its_bytes_are_reported(hub: str, tmp_path: Path):
    answer = fetch(hub, tmp_path / "cache")
    assert answer["files"] == ["config.json", "model.bin", "tokenizer.json", "vocabulary.txt"]
    assert answer["cached"] is True
    reported = answer["reported"]
    assert isinstance(reported, list)
    n_bytes = sum(len(content) for name, content in FILES.items() if name != "README.md")
    assert reported[-1][0] == n_bytes
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)


def test_a_hub_that_cannot_be_reached_is_an_error_of_one_line(tmp_path: Path):
    answer = fetch("http://127.0.0.1:9", tmp_path / "cache")
    assert answer["reason"] == "MODEL_UNAVAILABLE"
    assert answer["refused"]
    assert "\n" not in str(answer["refused"])
