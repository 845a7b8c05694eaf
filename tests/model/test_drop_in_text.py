"""The contracts of Riva and Google give the text that our own gives, with a real model on real speech."""

from __future__ import annotations

import pytest

from benchmarks.contracts import contracts
from benchmarks.drop_in import at_once
from benchmarks.recordings import Recording
from tests.harness import AUDIO

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize("file", ["en_two_sentences.flac", "en_numbers.ogg", "en_names.ogg"])
async def test_every_contract_gives_the_same_text(file: str, tiny_en_address: str):
    pcm = Recording(AUDIO / file, "speech", "en", "", "").pcm
    async with contracts(tiny_en_address) as all_of_them:
        texts = {one.name: await one.transcribe(pcm, "en") for one in all_of_them}
        finals = {one.name: [text.strip() async for text in one.finals(at_once(pcm), "en")] for one in all_of_them}
    assert len(texts) == len(finals) == 4
    assert texts["typeless.v1"].count(" ") > 5
    assert set(texts.values()) == {texts["typeless.v1"]}
    assert all(some == finals["typeless.v1"] != [] for some in finals.values())
