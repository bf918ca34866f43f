"""A real browser with a microphone that speaks the bundled question, and the miniature behind the page.

Debian's Chromium through Playwright, Debian's Firefox through its own remote protocol; CI installs both.
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import threading
import time

import aiohttp
import mlx.core as mx
import numpy as np
import pytest
import soundfile
import soxr
from serving import EchoBatch, Stub, open_house
from serving_processes import free_port
from serving_processes import wait_for as wait_until

import moshi_mlx
from moshi_mlx.checkpoints.names import MINIATURE_FOLDER as MINIATURE

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium")
FIREFOX = shutil.which("firefox-esr")
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--autoplay-policy=no-user-gesture-required"]
ANSWER = "It is five."

needs_chromium = pytest.mark.skipif(not (CHROMIUM or os.environ.get("CI")), reason="needs chromium, which CI installs")
needs_firefox = pytest.mark.skipif(not (FIREFOX or os.environ.get("CI")), reason="needs firefox-esr, which CI installs")


class Recorded:
    """A batch, and all that it gave out."""

    def __init__(self, batch):
        self.batch, self.said = batch, []

    def __getattr__(self, name):
        return getattr(self.batch, name)

    def step(self, sounds):
        frames = self.batch.step(sounds)
        self.said += [frame.pcm for frame in frames.values() if frame.pcm is not None]
        return frames


def miniature():
    return Recorded(moshi_mlx.load(MINIATURE, dtype=mx.float32).batch(1))


@contextlib.contextmanager
def served(make_batch, **rules):
    """A server on a thread of its own: -> its house and address."""
    opened, loop = threading.Event(), asyncio.new_event_loop()
    stop, found = asyncio.Event(), []

    async def serve():
        async with open_house(make_batch, **rules) as (house, address):
            found.extend((house, address))
            opened.set()
            await stop.wait()

    thread = threading.Thread(
        target=lambda: (asyncio.set_event_loop(loop), loop.run_until_complete(serve()), loop.close())
    )
    thread.start()
    try:
        assert opened.wait(60)
        yield found[0], f"http://{found[1]}/"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture(scope="module")
def microphone(tmp_path_factory):
    """The question, spoken once after two seconds."""
    path = tmp_path_factory.mktemp("microphone") / "question.wav"
    sound, rate = soundfile.read(MINIATURE.parent / "question.flac", dtype="float32")
    silence = np.zeros(2 * rate, np.float32)
    soundfile.write(path, np.concatenate([silence, sound, *[silence] * 30]), rate, subtype="PCM_16")
    return path


@pytest.fixture
def browser(microphone):
    """A function that opens a page, whose errors fail the test at its end."""
    from playwright.sync_api import sync_playwright

    errors = []
    with sync_playwright() as playwright:
        browsers = []

        def open_page(address, allow=True, script=None, dark=False):
            ask = ["--use-fake-ui-for-media-stream" if allow else "--deny-permission-prompts"]
            sound = [f"--use-file-for-fake-audio-capture={microphone}%noloop"]
            # A BLAS that is loaded first for our sake starts threads, which Chromium's sandbox ends it for.
            plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
            chromium = playwright.chromium.launch(
                executable_path=CHROMIUM, headless=True, args=[*FLAGS, *ask, *sound], env=plain
            )
            browsers.append(chromium)
            page = chromium.new_page(color_scheme="dark" if dark else "light")
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            if script:
                page.add_init_script(script)
            page.goto(address)
            page.evaluate("window.heardByTests = []")
            return page

        open_page.errors = errors
        yield open_page
        for each in browsers:
            each.close()
    assert errors == []


def wait_for(page, selector, words, seconds=40):
    page.wait_for_function(
        "([selector, words]) => document.querySelector(selector).textContent.includes(words)",
        arg=[selector, words], timeout=1000 * seconds,
    )  # fmt: skip


def ask(page):
    """Talks until the answer is there. The microphone speaks anew each time: a machine that is busy with other things
    may be too late to hear all of it.
    """
    for attempt in range(3):
        if page.inner_text("#talk") == "Stop":
            page.click("#talk")
        page.keyboard.press("t")  # as the Talk button
        wait_for(page, "#status", "Talking")
        with contextlib.suppress(Exception if attempt < 2 else ()):
            return wait_for(page, "#words", ANSWER, 25)
    return None


def heard(page):
    """What the page played, at 24 kHz."""
    rate = page.evaluate("new AudioContext().sampleRate")
    values = page.evaluate("heardByTests.flatMap((part) => Array.from(part))")
    return soxr.resample(np.array(values, np.float32), rate, 24_000)


def likeness(played, made):
    """The largest correlation of what was made with some part of what was played."""
    size = 1 << (len(played) + len(made)).bit_length()
    product = np.fft.irfft(np.fft.rfft(played, size) * np.conj(np.fft.rfft(made, size)), size)[: len(played)]
    start = int(product.argmax())
    part = played[start : start + len(made)]
    return float(np.dot(part, made[: len(part)]) / (np.linalg.norm(part) * np.linalg.norm(made[: len(part)])))


def check_access(page):
    from axe_playwright_python.sync_playwright import Axe

    result = Axe().run(page)
    assert result.violations_count == 0, result.generate_report()


@needs_chromium
def test_the_page_speaks_the_question_and_plays_the_answer(browser):
    with served(miniature) as (house, address):
        page = browser(address)
        ask(page)
        time.sleep(1)
        made = np.concatenate(house.engine.batch.said)
        loud = np.flatnonzero(np.abs(made) > 0.1)
        assert likeness(heard(page), made[loud[0] : loud[-1]]) > 0.9
        check_access(page)

        page.reload()  # the slot is free again, the conversation another
        assert page.inner_text("#words") == ""
        ask(page)

        page.context.set_offline(True)  # the network goes, and comes back
        wait_for(page, "#trouble", "network is gone")
        page.context.set_offline(False)
        ask(page)
        assert not page.is_visible("#trouble")
        page.click("#talk")
        wait_for(page, "#status", "Stopped")


@needs_chromium
def test_without_webcodecs_samples_are_sent(browser):
    with served(lambda: Recorded(EchoBatch(1))) as (house, address):
        page = browser(address, script="delete window.AudioEncoder")
        page.click("#talk")
        wait_until(lambda: np.sum(np.abs(np.concatenate([*house.engine.batch.said, [0]])) > 0.1) > 3_000)
        time.sleep(1)
        made = np.concatenate(house.engine.batch.said)
        loud = np.flatnonzero(np.abs(made) > 0.1)
        assert likeness(heard(page), made[loud[0] : loud[-1]]) > 0.9


@needs_chromium
def test_buttons_keys_settings_and_the_recording(browser):
    with served(lambda: EchoBatch(1)) as (house, address):
        page = browser(address, dark=True)
        check_access(page)
        page.click("summary")
        page.fill("#audio_topk", "9")
        page.fill("#seed", "77")
        page.check("#record")
        check_access(page)
        page.locator("#talk").focus()
        page.keyboard.press("Enter")
        wait_for(page, "#words", "77")
        assert house.engine.batch.rows[0].settings["top_k"] == 9
        page.locator("body").press("m")
        assert page.get_attribute("#mute", "aria-pressed") == "true"
        wait_for(page, "#status", "Muted")
        check_access(page)
        first = house.engine.batch.rows[0]
        page.locator("body").press("r")
        wait_for(page, "#status", "Talking")
        assert house.engine.batch.rows[0] is not first
        wait_for(page, "#time", "0:05")
        page.click("#talk")
        page.wait_for_selector("#file:not([hidden])")
        size = page.evaluate("fetch(document.getElementById('file').href).then((r) => r.blob()).then((b) => b.size)")
        assert size > 1000
        assert page.get_attribute("#file", "download") == "moshi.webm"


@needs_chromium
def test_voices_of_the_model_and_a_role_are_chosen_in_the_settings(browser):
    with served(lambda: EchoBatch(1)) as (_, address):
        page = browser(address)
        wait_for(page, "#model", "echo")
        page.click("summary")
        assert not page.is_visible("#voice_prompt")
    batch = EchoBatch(1)
    batch.model = Stub(names=("NATF2", "VARM4"))
    with served(lambda: batch) as (_, address):
        page = browser(address)
        page.click("summary")
        page.wait_for_selector("#personas option:nth-child(3)", state="attached")
        page.select_option("#voice_prompt", "VARM4")
        page.fill("#text_prompt", "You talk rarely, and mutter.")  # letters that are keys elsewhere
        page.press("#text_prompt", "t")
        assert page.inner_text("#talk") == "Talk"
        check_access(page)
        page.click("#talk")
        wait_for(page, "#status", "Talking")
        assert batch.model.made == [("VARM4", page.input_value("#text_prompt"))]
        assert page.inner_text("#voice") == "VARM4"
        page.click("#talk")


@needs_chromium
def test_clear_words_where_it_cannot_be(browser):
    with served(lambda: EchoBatch(1), queue=1, token="sesame") as (house, address):
        page = browser(address, allow=False)
        page.click("#talk")
        wait_for(page, "#trouble", "microphone was refused")
        page = browser(address)
        page.click("#talk")
        wait_for(page, "#trouble", "Is the token right?")
        page.goto(f"{address}?#token=sesame")
        page.click("#talk")
        wait_for(page, "#status", "Talking")
        second, third = browser(f"{address}#token=sesame"), browser(f"{address}#token=sesame")
        second.click("#talk")
        wait_for(second, "#status", "In line")
        third.click("#talk")
        wait_for(third, "#trouble", "All places are taken, and the line is full")
        page.close()
        wait_for(second, "#status", "Talking")
        house.engine._stop = True  # the model stands still: nothing comes any more
        wait_for(second, "#trouble", "Nothing has come for ten seconds")
    third.click("#talk")
    wait_for(third, "#trouble", "The server cannot be reached")
    # The browser's own words about connections that were refused, which no page can keep back.
    expected = ("WebSocket", "Failed to load", "ERR_CONNECTION")
    browser.errors[:] = [error for error in browser.errors if not any(words in error for words in expected)]


class Bidi:
    """Firefox's remote protocol, as far as it is needed here."""

    def __init__(self, ws):
        self.ws, self.number, self.events = ws, 0, []

    async def __call__(self, method, **params):
        self.number += 1
        await self.ws.send_json({"id": self.number, "method": method, "params": params})
        while True:
            answer = json.loads((await self.ws.receive()).data)
            if answer.get("id") == self.number:
                assert answer["type"] == "success", answer
                return answer["result"]
            self.events.append(answer)

    async def evaluate(self, context, expression):
        target = {"context": context}
        result = await self(
            "script.evaluate", expression=expression, target=target, awaitPromise=True, userActivation=True
        )
        assert result["type"] == "success", result
        return result["result"].get("value")


@contextlib.contextmanager
def firefox(profile):
    preferences = {
        "media.navigator.permission.disabled": True,
        "media.navigator.streams.fake": True,
        "media.autoplay.default": 0,
        "media.autoplay.block-webaudio": False,
        "media.autoplay.blocking_policy": 0,
        "remote.active-protocols": 1,
        "browser.shell.checkDefaultBrowser": False,
        "datareporting.policy.dataSubmissionEnabled": False,
    }
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in preferences.items()]
    (profile / "user.js").write_text("".join(lines))
    port = free_port()
    command = [FIREFOX, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", str(port)]
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    with sound_card(profile / "sound", plain) as server:
        plain["PULSE_SERVER"] = server
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=plain)
        try:
            yield port
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def sound_card(folder, environment):
    """Firefox starts no sound without a card: one of its own, that nothing else here sees."""
    folder.mkdir()
    socket = folder / "socket"
    modules = ["module-null-sink", f"module-native-protocol-unix auth-anonymous=1 socket={socket}"]
    command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", *(f"--load={module}" for module in modules)]
    home = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "PULSE_RUNTIME_PATH": str(folder)}
    card = subprocess.Popen(command, env={**environment, **home}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(socket.exists)
        yield f"unix:{socket}"
    finally:
        card.terminate()
        card.wait()


@needs_firefox
def test_firefox(tmp_path):
    """Its microphone is a tone of the browser's own, which an echo brings back."""

    async def scene(port, address):
        async with aiohttp.ClientSession() as session:
            for _ in range(120):
                with contextlib.suppress(aiohttp.ClientError):
                    ws = await session.ws_connect(f"ws://127.0.0.1:{port}/session", max_msg_size=2**24)
                    break
                await asyncio.sleep(0.5)
            bidi = Bidi(ws)
            await bidi("session.new", capabilities={})
            await bidi("session.subscribe", events=["log.entryAdded"])
            context = (await bidi("browsingContext.getTree"))["contexts"][0]["context"]
            await bidi("browsingContext.navigate", context=context, url=address, wait="complete")
            await bidi.evaluate(context, "window.heardByTests = []; document.getElementById('talk').click()")
            for _ in range(60):
                await asyncio.sleep(0.5)
                samples = await bidi.evaluate(context, "heardByTests.reduce((sum, part) => sum + part.length, 0)")
                words = await bidi.evaluate(context, "document.getElementById('words').textContent")
                if samples > 80_000 and words:
                    break
            status = await bidi.evaluate(context, "document.getElementById('status').textContent")
            trouble = await bidi.evaluate(context, "document.getElementById('trouble').textContent")
            assert (trouble, samples > 80_000) == ("", True)
            peak = await bidi.evaluate(context, "Math.max(...heardByTests.map((p) => Math.max(...p)))")
            assert (status, bool(words), peak > 0.05) == ("Talking. Moshi hears you.", True, True)
            entries = [event["params"] for event in bidi.events if event.get("method") == "log.entryAdded"]
            assert [entry["text"] for entry in entries if entry["level"] == "error"] == []
            await bidi("browser.close")
            await ws.close()

    with served(lambda: EchoBatch(1)) as (_, address), firefox(tmp_path) as port:
        asyncio.run(asyncio.wait_for(scene(port, address), 120))
