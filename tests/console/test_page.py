"""The console's page in a real Chromium, with a real model and a microphone that plays a recording.

CONSOLE_SCREENSHOTS=docs/images writes the screenshots of the documentation; reduce them to 64 colours before a commit.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import wave
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import jiwer
import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Error, Page, async_playwright, expect
from whisper_normalizer.english import EnglishTextNormalizer

from tests import servers
from tests.harness import AUDIO, fixture, serving
from tests.relay import Proxy, proxied
from tests.service.access import USER, guarded
from tests.service.console import Site, with_console
from tests.speech import words_as_they_come
from typeless_grpc.app.models import catalog
from typeless_grpc.app.starting import build
from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, AudioFormat
from typeless_grpc.config import Settings
from typeless_grpc.engine.scripted import ScriptedEngine

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

RECORDING = "en_two_sentences.flac"
TABS = ("live", "files", "jobs", "models", "server")
TIMEOUT_MS = 30_000
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1000, "height": 760}

normalized = EnglishTextNormalizer()
expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the microphone plays: a second of silence, the recording, and silence."""
    samples = decode((AUDIO / RECORDING).read_bytes(), AudioFormat(), DecodeLimits(60)).samples
    file = tmp_path_factory.mktemp("microphone") / "microphone.wav"
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SAMPLE_RATE_HZ)
        pause = bytes(2 * SAMPLE_RATE_HZ)
        sound.writeframes(pause + (samples * 32767).astype("<i2").tobytes() + 5 * pause)
    return file


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(microphone: Path) -> AsyncIterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    flags = [
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}%noloop",
        "--host-resolver-rules=MAP speech.example 127.0.0.1",
    ]
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=program, args=flags)
        yield started
        await started.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A server with the real tiny.en, jobs and a console."""
    data, port = tmp_path_factory.mktemp("data"), servers.free_port()
    own: dict[str, Any] = {"database_url": f"sqlite:///{data}/jobs.db", "storage_url": str(data), "job_chunk_s": 20.0}
    settings = Settings(port=0, model="tiny.en", rate_limit_enabled=False, console_port=port, **own)
    if catalog(settings).find("tiny.en") is None:
        pytest.skip("model tiny.en is not on this machine: typeless models pull tiny.en")
    async with build(settings) as app:
        await app.warm()
        yield Site(port)


@asynccontextmanager
async def opened(browser: Browser, address: str, *, faults: bool = False, **options: Any) -> AsyncIterator[Page]:
    """A page of a context of its own. faults: the test makes errors that the page may log."""
    context = await browser.new_context(viewport=options.pop("viewport", DESK), **options)
    context.set_default_timeout(TIMEOUT_MS)
    page = await context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    await page.goto(address)
    await expect(page.locator("#options-summary")).not_to_be_empty()
    yield page
    await context.close()
    assert faults or errors == []


def at(site: Site, tab: str = "live") -> str:
    return f"http://127.0.0.1:{site.port}/#/{tab}"


async def screenshot(page: Page, name: str) -> None:
    if folder := os.environ.get("CONSOLE_SCREENSHOTS"):
        if name == "console-live":
            await page.evaluate(STABLE)
        await page.evaluate("() => scrollTo(0, 0)")
        await page.screenshot(path=str(Path(folder) / f"{name}.png"), animations="disabled")


async def finals(page: Page, panel: str) -> str:
    return " ".join(await page.locator(f"#{panel} .segments .text").all_inner_texts())


def is_the_recording(text: str) -> bool:
    wanted = normalized(fixture(RECORDING)["text"])
    return jiwer.wer(wanted, normalized(text)) < 0.2


async def saved(page: Page, panel: str, label: str) -> str:
    async with page.expect_download() as download:
        await page.get_by_role("button", name=f"Download {label}").locator("visible=true").click()
    path = await (await download.value).path()
    return await asyncio.to_thread(Path(path).read_text, "utf-8")


# Notes what is seen of the transcript: an interim may be there for half a second only.
WATCH = """() => {
  const seen = (window.seen = []);
  const look = () => seen.push({
    stable: document.querySelector("#live .stable").textContent,
    unstable: document.querySelector("#live .unstable").textContent,
    level: document.getElementById("level").value,
    nFinals: document.querySelectorAll("#live .segments li").length,
  });
  const changes = { subtree: true, childList: true, characterData: true };
  new MutationObserver(look).observe(document.getElementById("live-transcript"), changes);
}"""


# For the screenshot: until words are stable.
STABLE = """() => new Promise((resolve) => {
  const look = () => (document.querySelector("#live .stable").textContent ? resolve() : requestAnimationFrame(look));
  look();
})"""


async def seen(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await page.evaluate("() => window.seen")
    return found


async def test_spoken_words_appear_while_they_are_spoken(browser: Browser, site: Site):
    async with opened(browser, at(site)) as page:
        await page.evaluate(WATCH)
        await page.get_by_role("button", name="Start", exact=True).click()
        await expect(page.locator("#live-state")).to_have_text("Listening.")
        await expect(page.locator("#live .segments li")).to_have_count(1)
        await expect(page.locator("#live .interim")).to_be_visible()
        await screenshot(page, "console-live")
        await expect(page.locator("#live .segments li")).to_have_count(2)
        await page.get_by_role("button", name="Stop").click()
        await expect(page.locator("#live-state")).to_have_text("Done.")
        interims = [one for one in await seen(page) if one["stable"] or one["unstable"]]
        assert max(one["level"] for one in interims) > 0.05
        assert any(one["nFinals"] == 0 and "good" in _text(one) for one in interims)
        assert any(one["nFinals"] == 1 and "train" in _text(one) for one in interims)
        assert is_the_recording(await finals(page, "live"))
        assert re.fullmatch(r"\d+\.\d\d s", await page.locator("#fact-latency").inner_text())
        assert 0 < float((await page.locator("#fact-median").inner_text()).split()[0]) < 60
        assert (await saved(page, "live", "SRT")).startswith("1\n00:00:0")
        assert (await saved(page, "live", "VTT")).startswith("WEBVTT")
        assert is_the_recording(await saved(page, "live", "TXT"))
        assert "%" not in await finals(page, "live")
        await page.get_by_label("Confidence in numbers").locator("visible=true").check()
        assert re.search(r"\d+ %", await finals(page, "live"))


def _text(interim: dict[str, Any]) -> str:
    return f"{interim['stable']}{interim['unstable']}".lower()


async def test_the_stable_part_of_an_interim_only_grows(browser: Browser):
    async with (
        with_console(serving, ScriptedEngine(words_as_they_come)) as (_, site),
        opened(browser, at(site), faults=True) as page,
    ):
        await page.evaluate(WATCH)
        await page.keyboard.press("Control+Enter")
        await expect(page.locator("#live .segments li").first).to_be_visible()
        await page.get_by_text("Options:").click()
        await page.get_by_label("Mask profanity").check()
        await expect(page.locator("#live-state")).to_contain_text("The new options are in force")
        await page.keyboard.press("Control+Enter")
        await expect(page.locator("#live-state")).to_have_text("Done.")
        stable = [one["stable"] for one in await seen(page) if one["nFinals"] == 0 and one["stable"]]
    assert stable
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(stable))


async def test_a_broken_connection_is_resumed_and_no_word_is_lost(browser: Browser, site: Site):
    async with proxied(f"127.0.0.1:{site.port}") as proxy, opened(browser, _through(proxy), faults=True) as page:
        await page.keyboard.press("Control+Enter")
        await expect(page.locator("#live .interim .unstable")).not_to_be_empty()
        proxy.cut()
        await expect(page.locator("#fact-reconnections")).to_have_text("1")
        await expect(page.locator("#live .segments li")).to_have_count(2)
        await page.keyboard.press("Control+Enter")
        await expect(page.locator("#live-state")).to_have_text("Done.")
        assert is_the_recording(await finals(page, "live"))


def _through(proxy: Proxy) -> str:
    return f"http://{proxy.target}/"


async def test_a_recording_is_transcribed_with_progress(browser: Browser, site: Site):
    async with opened(browser, at(site, "files")) as page:
        await page.get_by_label("Recording", exact=True).set_input_files(AUDIO / RECORDING)
        await page.get_by_role("button", name="Transcribe").click()
        await expect(page.locator("#file-state")).to_contain_text("Done: 5.", timeout=TIMEOUT_MS)
        assert is_the_recording(await finals(page, "files"))
        assert (await saved(page, "files", "VTT")).startswith("WEBVTT")
        assert '"words"' in await saved(page, "files", "JSON")


async def test_a_job_is_submitted_followed_and_deleted(browser: Browser, site: Site):
    async with opened(browser, at(site, "files")) as page:
        await page.get_by_label("Recording", exact=True).set_input_files(AUDIO / "en_minute.ogg")
        await page.get_by_label("As a job").check()
        await page.get_by_role("button", name="Transcribe").click()
        item = page.locator("#job-list li").filter(has_text="en_minute.ogg")
        await expect(item.get_by_role("progressbar")).to_be_visible()
        await expect(item.locator(".badge")).to_have_text("done")
        await item.get_by_role("button", name="Show text").click()
        await expect(page.locator("#job-transcript .segments li").first).to_be_visible()
        await screenshot(page, "console-jobs")
        assert (await saved(page, "jobs", "SRT")).startswith("1\n00:00:0")
        await item.get_by_role("button", name="Delete").click()
        await expect(item).to_have_count(0)
        await expect(page.locator("#jobs-state")).to_have_text("Deleted.")


async def test_models_and_activity_are_shown(browser: Browser, site: Site):
    async with opened(browser, at(site, "models")) as page:
        model = page.locator("#model-list li").filter(has_text="tiny.en")
        await expect(model).to_contain_text("loaded")
        await expect(model).to_contain_text("cpu")
        await page.get_by_role("tab", name="Server").click()
        await expect(page.locator("#activity")).to_contain_text("Streams open")
        await expect(page.locator("#lanes tr")).to_have_count(5)
        await expect(page.locator("#facts")).to_contain_text("tiny.en")
        await screenshot(page, "console-server")


async def test_a_key_is_requested_kept_in_the_tab_and_sent(browser: Browser):
    async with (
        with_console(guarded, ScriptedEngine(lambda call: "hello"), require_auth=True) as (_, site),
        opened(browser, at(site, "files"), faults=True) as page,
    ):
        urls: list[str] = []
        page.on("request", lambda request: urls.append(request.url))
        page.on("websocket", lambda socket: urls.append(socket.url))
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.get_by_label("Key", exact=True).fill("wrong")
        await page.get_by_role("button", name="Use").click()
        await expect(page.locator("#key-error")).to_contain_text("key")
        await page.get_by_label("Key", exact=True).fill(USER)
        await page.get_by_role("button", name="Use").click()
        await expect(page.locator("#key-button")).to_have_text(f"Key: {USER[:4]}…")
        await page.get_by_label("Recording", exact=True).set_input_files(AUDIO / RECORDING)
        await page.get_by_role("button", name="Transcribe").click()
        await expect(page.locator("#files .segments li").first).to_contain_text("hello")
        # A key that is refused in the middle is requested again.
        await page.evaluate("() => sessionStorage.setItem('typeless.key', 'revoked')")
        await page.get_by_role("button", name="Transcribe").click()
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.keyboard.press("Escape")
        assert await page.evaluate("localStorage.length") == 0
        assert await page.evaluate("document.cookie") == ""
        assert any(url.startswith("ws:") for url in urls)
        assert not [url for url in urls if USER in url or "key" in url.lower()]


async def test_a_page_without_access_to_the_microphone_shows_why(browser: Browser):
    port = servers.free_port()
    address = f"http://speech.example:{port}"
    async with (
        serving(ScriptedEngine(), console_port=port, console_origins=address),
        opened(browser, address, faults=True) as page,
    ):
        await expect(page.get_by_text("only over HTTPS")).to_be_visible()
        await expect(page.get_by_role("button", name="Start", exact=True)).to_be_disabled()


async def test_a_server_that_restarts_is_waited_for(browser: Browser):
    """Both behind one address, as servers behind a proxy are."""
    old, new = (with_console(serving, ScriptedEngine(lambda call: "hello"), drain_timeout_s=8) for _ in range(2))
    async with AsyncExitStack() as stack:
        (served, first), (_, second) = await stack.enter_async_context(old), await stack.enter_async_context(new)
        proxy = await stack.enter_async_context(proxied(f"127.0.0.1:{first.port}"))
        page = await stack.enter_async_context(opened(browser, _through(proxy), faults=True))
        await page.keyboard.press("Control+Enter")
        await expect(page.locator("#live-state")).to_have_text("Listening.")
        await asyncio.sleep(2)
        proxy.send_to(f"127.0.0.1:{second.port}")
        await served.server.stop()
        await expect(page.locator("#fact-reconnections")).to_have_text("1")
        await expect(page.locator("#live-state")).to_have_text("Listening.")
        await asyncio.sleep(1)
        await page.keyboard.press("Control+Enter")
        await expect(page.locator("#live-state")).to_have_text("Done.")
        await expect(page.get_by_role("button", name="Download SRT 2")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
async def test_everyone_can_use_it(browser: Browser, site: Site, viewport: dict[str, int], scheme: Any):
    async with opened(browser, at(site, "files"), viewport=viewport, color_scheme=scheme) as page:
        await page.get_by_label("Recording", exact=True).set_input_files(AUDIO / RECORDING)
        await page.get_by_role("button", name="Transcribe").click()
        await expect(page.locator("#file-state")).to_contain_text("Done")
        await page.get_by_text("Options:").click()
        for tab in TABS:
            await page.locator(f"#tab-{tab}").click()
            await expect(page.locator(f"#{tab}")).to_be_visible()
            found = await Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
            width = await page.evaluate("document.documentElement.scrollWidth")
            assert width <= viewport["width"], tab
        await page.locator("#key-button").click()
        found = await Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        if (viewport, scheme) == (PHONE, "dark"):
            await page.keyboard.press("Escape")
            await page.locator("#tab-files").click()
            await screenshot(page, "console-phone")


async def test_the_keyboard_is_enough(browser: Browser, site: Site):
    async with opened(browser, at(site)) as page:
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await page.keyboard.press("Tab")
        await expect(page.locator("#key-button")).to_be_focused()
        await page.keyboard.press("Tab")
        for tab in (*TABS[1:], TABS[0]):
            await page.keyboard.press("ArrowRight")
            await expect(page.locator(f"#tab-{tab}")).to_be_focused()
            await expect(page.locator(f"#{tab}")).to_be_visible()
        await page.keyboard.press("End")
        await expect(page.locator("#server")).to_be_visible()
        assert (await page.evaluate("location.hash")) == "#/server"
        outline = await page.locator("#tab-server").evaluate("e => getComputedStyle(e).outlineStyle")
        assert outline == "solid"


async def test_nothing_is_loaded_from_elsewhere(browser: Browser, site: Site):
    async with opened(browser, at(site), faults=True) as page:
        urls: list[str] = []
        page.on("request", lambda request: urls.append(request.url))
        await page.reload()
        await expect(page.locator("#options-summary")).not_to_be_empty()
        with pytest.raises(Error):  # an inline script would be against the policy
            await page.add_script_tag(content="window.injected = 1")
        assert urls
        assert {url.split("/")[2] for url in urls} == {f"127.0.0.1:{site.port}"}
