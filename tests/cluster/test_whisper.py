"""The same with engines that decode for real: `typeless engine` with tiny.en."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clients.serving import model
from tests.cluster.installation import ADMIN_KEY, ENGINES, Installation
from tests.harness import AUDIO
from typeless_grpc.client import Client, Options

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

N_CALLS, N_AT_ONCE = 60, 4


@contextlib.contextmanager
def whisper(installation: Installation) -> Iterator[None]:
    """Replace the scripted engines meanwhile."""
    for name in ENGINES:
        models = installation.directory / name / "models"
        models.mkdir()
        (models / "tiny.en").symlink_to(model("tiny.en"))
        installation.replace(name, "whisper", model="tiny.en", cpu_threads=1)
    installation.until_well()
    yield
    for name in ENGINES:
        installation.replace(name, "engine")
    installation.until_well()


def test_calls_get_their_text_while_an_engine_is_killed(installation: Installation):
    with (
        whisper(installation),
        Client(installation.target(), api_key=ADMIN_KEY, retry=False) as client,
        ThreadPoolExecutor(N_AT_ONCE) as pool,
    ):

        def text(number: int) -> str:
            if number in (N_CALLS // 3, 2 * N_CALLS // 3):
                name = ENGINES[number == N_CALLS // 3]
                installation.kill(name)
                installation.restart(name)
            options = Options(language="en")
            return client.transcribe(AUDIO / "en_short.flac", options, timeout_s=60).transcript.text.lower()

        texts = list(pool.map(text, range(N_CALLS)))
        job = client.jobs.wait(client.jobs.submit(AUDIO / "en_short.flac", Options(language="en")).job_id)
    assert set(texts) == {"please close the window"}
    assert job.transcript.text.lower() == "please close the window"
