"""The Gradio demo in a browser: speech that is heard while it is made, voices, codecs, comparison, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from quaver.app.demo.edit_lab import EditLab
from quaver.tts.editing import Editor
from quaver.tts.synthesizer import Synthesizer
from quaver.tts.token_synthesizer import TokenSynthesizer, TokenVoiceSettings

from ...tts.heads import test_editing
from ...tts.test_voices import SOUND
from ...tts.tokens import token_lm
from .conftest import DESKTOP, LONG, PHONE, Running, serving, wide

pytest.importorskip("gradio", reason="the demo needs gradio: pip install 'quaver[demo]'")
pytestmark = pytest.mark.browser
OpenPage = Callable[..., Any]
editor = test_editing.editor  # the fixture: a tiny model that fills gaps


@pytest.fixture(scope="module")
def demo(
    synthesizer: Synthesizer, editor: Editor, tiny_codec: Path, tmp_path_factory: pytest.TempPathFactory, chromium: Any
) -> Iterator[Running]:
    from quaver.app.demo.mount import add_demo

    folder = tmp_path_factory.mktemp("demo")
    editors = EditLab(("mine",), trusted=0.0)  # of random weights, which align nothing
    editors._loaded["mine"] = editor
    more = {"clone": TokenSynthesizer(token_lm("cosyvoice2"), SOUND, TokenVoiceSettings())}
    with serving(
        synthesizer,
        folder,
        slots=2,
        more=more,
        limits={"requests_per_minute": 10_000},
        extend=lambda app, settings: add_demo(app, settings, (str(tiny_codec),), editors),
    ) as running:
        yield running


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "mine.wav"
    samples = 0.2 * np.random.default_rng(0).standard_normal(2 * 24_000)
    soundfile.write(path, np.clip(samples, -1, 1), 24_000)
    return path


def opened(open_page: OpenPage, demo: Running, tab: str = "Speak", viewport: dict[str, int] = DESKTOP) -> Any:
    page = open_page(f"{demo.url}/", viewport)  # the root leads to the demo
    page.wait_for_function("() => document.querySelector('#speak-voice input')?.value")  # the menus are filled
    if tab != "Speak":
        page.get_by_role("tab", name=tab).click()
    return page


def spoken(page: Any, what: str) -> Any:
    return page.evaluate(f"() => window.quaverSpeech.{what}")


def message(page: Any) -> str:
    """The text of the message that an error brings."""
    page.wait_for_selector(".toast-body")
    return page.inner_text(".toast-body")


def test_speech_is_heard_before_it_is_complete(open_page: OpenPage, demo: Running, pictures: Path) -> None:
    page = opened(open_page, demo)
    page.get_by_label("Text", exact=True).first.fill(" ".join([LONG] * 6))  # longer than it takes to press Stop
    page.click("#speak-button")
    page.wait_for_function("() => window.quaverSpeech?.figures.arrived")
    assert not spoken(page, "done")
    assert demo.engine.stats().open == 1  # still being made
    page.wait_for_function("() => window.quaverSpeech.samples > window.quaverSpeech.rate")
    assert page.evaluate("() => window.quaverSpeech.whole().some((x) => Math.abs(x) > 0.01)")
    page.wait_for_function("() => window.quaverSpeech.player.played > 0.3")
    page.click("#speak-stop")
    page.wait_for_function("() => window.quaverSpeech.done")
    assert page.inner_text("#speak-panel .status").startswith("Stopped after")
    assert demo.settled()


def test_a_short_answer_has_pictures_words_and_figures(open_page: OpenPage, demo: Running, pictures: Path) -> None:
    page = opened(open_page, demo)
    page.get_by_label("Text", exact=True).first.fill("Hello brave new world.")
    page.click("#speak-button")
    page.wait_for_function("() => document.querySelector('#speak-panel audio').src")
    page.wait_for_timeout(200)
    assert page.inner_text("#speak-panel .status").startswith("Done")
    words = page.eval_on_selector_all("#speak-panel .words span", "all => all.map(e => e.firstChild.textContent)")
    assert [w.strip(".,").lower() for w in words] == ["hello", "brave", "new", "world"]
    assert page.inner_text("[data-figure=arrived]").endswith(" ms")
    assert float(page.inner_text("[data-figure=factor]")) > 0
    inked = """(name) => { const c = document.querySelector('#speak-panel ' + name);
      return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size; }"""
    assert page.evaluate(inked, ".wave") >= 4
    assert page.evaluate(inked, ".spectrogram") > 20
    size = """async () => {
      const answer = await fetch(document.querySelector('#speak-panel audio').src);
      return (await answer.arrayBuffer()).byteLength; }"""
    assert page.evaluate(size) == 44 + 2 * spoken(page, "samples")
    page.screenshot(path=str(pictures / "speak.png"), full_page=True)


def test_an_empty_text_and_an_unknown_voice_are_messages(open_page: OpenPage, demo: Running) -> None:
    page = opened(open_page, demo)
    page.get_by_label("Text", exact=True).first.fill("  ")
    page.click("#speak-button")
    page.wait_for_selector("#speak-panel .status.error")
    assert "Type some text" in page.inner_text("#speak-panel .status")
    page.evaluate("() => window.quaverSpeak({text: 'Hello.', voice: 'Nobody', speed: 1, seed: 0})")
    page.wait_for_function("() => document.querySelector('#speak-panel .status').textContent.includes('no voice')")


def test_a_voice_is_made_saved_and_spoken_with(
    open_page: OpenPage, demo: Running, recording: Path, pictures: Path, tmp_path: Path
) -> None:
    page = opened(open_page, demo, "Clone")
    assert "clone" in page.inner_text("#clone-note")
    page.click("#clone-button")
    assert "record or upload" in message(page)
    page.click(".toast-close")
    page.set_input_files("input[type=file] >> nth=0", str(recording))
    page.get_by_label("Name of the voice").fill("Mine")
    page.wait_for_function("() => document.querySelector('.tabitem audio, .tabitem #waveform, .waveform-container')")
    page.click("#clone-button")
    assert "agree" in message(page)  # no consent, no voice
    page.click(".toast-close")
    page.get_by_label("The person who speaks has agreed to this").check()
    page.click("#clone-button")
    page.wait_for_function("() => document.querySelector('#clone-message').innerText.includes('is ready')")
    with page.expect_download() as saved:
        page.click("#clone-file")
    saved.value.save_as(tmp_path / "mine.voice")
    from quaver.tts.voices import load_voice

    assert load_voice(tmp_path / "mine.voice").name == "Mine"
    page.screenshot(path=str(pictures / "clone.png"))
    voices = demo.http().get("/v1/audio/voices").json()["data"]
    added = [v["id"] for v in voices if v["type"] == "audio_sample"]
    assert len(added) == 1
    page.get_by_role("tab", name="Speak").click()
    page.evaluate(f"() => window.quaverSpeak({{text: 'Hello.', voice: '{added[0]}', speed: 1, seed: 0}})")
    page.wait_for_function("() => window.quaverSpeech?.done", timeout=60_000)
    assert spoken(page, "samples") > 1000


def test_a_file_that_is_no_recording_is_a_message(open_page: OpenPage, demo: Running, tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"this is no audio" * 100)
    page = opened(open_page, demo, "Codec lab")
    page.set_input_files(".tabitem:visible input[type=file]", str(bad))
    page.wait_for_timeout(500)
    page.click("#codec-button")
    text = message(page)
    assert "not audio" in text
    assert str(tmp_path) not in text
    assert "/tmp" not in text


def test_the_codec_lab_judges_and_draws(open_page: OpenPage, demo: Running, recording: Path, pictures: Path) -> None:
    page = opened(open_page, demo, "Codec lab")
    page.set_input_files(".tabitem:visible input[type=file]", str(recording))
    page.wait_for_selector(".waveform-container:visible")
    for levels, bitrate in ((4, "kbit/s"), (1, "kbit/s")):
        page.fill("#codec-levels input[type=number]", str(levels))
        page.click("#codec-button")
        page.wait_for_function(
            f"() => document.querySelector('#codec-figures').innerText.includes('frames of {levels},')"
        )
        assert bitrate in page.inner_text("#codec-figures")
        assert "STOI" in page.inner_text("#codec-figures")
    page.wait_for_function("() => document.querySelectorAll('.picture img').length === 3")
    page.wait_for_timeout(500)
    page.screenshot(path=str(pictures / "codec.png"), full_page=True)


def test_words_of_a_recording_are_replaced(open_page: OpenPage, demo: Running, recording: Path, pictures: Path) -> None:
    page = opened(open_page, demo, "Edit")
    page.click("#edit-button")
    assert "record or upload" in message(page)
    page.click(".toast-close")
    page.set_input_files(".tabitem:visible input[type=file]", str(recording))
    page.wait_for_selector(".waveform-container:visible")
    page.fill("#edit-transcript textarea", "Bring the red book.")
    page.fill("#edit-old textarea", "green")
    page.fill("#edit-new textarea", "blue")
    page.click("#edit-button")
    assert "not in the transcript" in message(page)
    page.click(".toast-close")
    page.fill("#edit-old textarea", "red")
    page.click("#edit-button")
    page.wait_for_function("() => document.querySelector('#edit-told').innerText.includes('Bring the blue book.')")
    page.wait_for_function("() => document.querySelectorAll('.tabitem .picture img').length >= 4")
    page.wait_for_selector("#edit-sound .waveform-container")
    page.wait_for_timeout(500)
    page.screenshot(path=str(pictures / "edit.png"), full_page=True)


def test_models_stand_side_by_side(open_page: OpenPage, demo: Running, pictures: Path) -> None:
    page = opened(open_page, demo, "Compare")
    page.get_by_label("Text", exact=True).last.fill("Hello there.")
    page.click("#compare-button")
    for place, name in enumerate(("tiny", "clone")):
        page.wait_for_function(
            f"() => document.querySelector('#compare-{place}')?.innerText.includes('s of speech')", timeout=60_000
        )
        assert name in page.inner_text(f"#compare-{place}")
    page.wait_for_function("() => document.querySelectorAll('#compare-1 .picture img').length === 2")
    page.wait_for_timeout(500)
    page.screenshot(path=str(pictures / "compare.png"), full_page=True)


def test_nothing_waits_for_a_long_job(open_page: OpenPage, demo: Running) -> None:
    """While one page compares a long text, another speaks and the server answers."""
    slow = opened(open_page, demo, "Compare")
    slow.get_by_label("Text", exact=True).last.fill(LONG)
    slow.click("#compare-button")
    slow.wait_for_function("() => document.body.innerText.includes('Speaking ...')")
    page = opened(open_page, demo)
    page.get_by_label("Text", exact=True).first.fill("Hello.")
    page.click("#speak-button")
    page.wait_for_function("() => window.quaverSpeech?.done", timeout=60_000)
    assert spoken(page, "samples") > 0


def test_a_phone_shows_every_tab_without_scrolling_sideways(open_page: OpenPage, demo: Running, pictures: Path) -> None:
    page = opened(open_page, demo, viewport=PHONE)
    for tab in ("Speak", "Clone", "Codec lab", "Compare", "Edit", "Converse"):
        if tab != "Speak":
            bar = page.get_by_role("tab", name=tab)
            if not bar.first.is_visible():  # what does not fit stands in a menu
                page.locator(".overflow-menu > button").click()
                bar = page.locator(".overflow-dropdown button", has_text=tab)
            bar.first.click()
        page.wait_for_timeout(400)
        assert wide(page) <= 0, tab
        page.screenshot(path=str(pictures / f"phone-{tab.split()[0].lower()}.png"))


def test_every_control_has_a_name(open_page: OpenPage, demo: Running) -> None:
    page = opened(open_page, demo)
    nameless = """() => [...document.querySelectorAll('button, input, textarea, select, canvas, iframe, audio')]
      .filter(e => e.offsetParent && !(e.getAttribute('aria-label') || e.innerText?.trim() || e.title
        || e.labels?.length || e.getAttribute('aria-labelledby') || e.closest('label')?.innerText.trim()))
      .map(e => e.outerHTML.slice(0, 120))"""
    for tab in ("Speak", "Clone", "Codec lab", "Compare", "Edit", "Converse"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(200)
        assert page.evaluate(nameless) == [], tab
