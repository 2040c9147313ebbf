"""A real Chromium with a microphone that plays a file, and the demo's server beside it.

Skipped without gradio, playwright or a Chromium. Screenshots go to `QUAVER_SCREENSHOTS`, else to a temporary folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ..server.conftest import Running, serving, synthesizer  # noqa: F401 (the fixture)

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
LONG = " ".join(["One more sentence, so that this takes a while to say."] * 12)


@pytest.fixture(scope="package")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The browser. Its microphone hears a second of tone, a second of nothing, and so on."""
    pytest.importorskip("gradio", reason="the demo needs gradio: pip install 'quaver[demo]'")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'quaver[browser]'")
    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if found is None:
        pytest.skip("there is no Chromium here: apt-get install chromium (or make test-browser)")
    microphone = tmp_path_factory.mktemp("microphone") / "tone.wav"
    time = np.arange(48_000) / 48_000
    tone = 0.95 * np.sin(2 * np.pi * 220 * time) * np.minimum(1, 50 * np.minimum(time, 1 - time))
    soundfile.write(microphone, np.concatenate([tone, np.zeros(48_000)]), 48_000)
    arguments = [
        "--no-sandbox",
        "--autoplay-policy=no-user-gesture-required",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}",
    ]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go."""
    folder = Path(os.environ.get("QUAVER_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="package")
def visitors(chromium: Any) -> Iterator[Callable[[dict[str, int]], Any]]:
    """A browser context for each size of window: their pages share a cache, as a visitor's do."""
    contexts: dict[int, Any] = {}

    def call(viewport: dict[str, int]) -> Any:
        width = viewport["width"]
        if width not in contexts:
            touch = width == PHONE["width"]
            contexts[width] = chromium.new_context(viewport=viewport, permissions=["microphone"], has_touch=touch)
        return contexts[width]

    yield call
    for context in contexts.values():
        context.close()


@pytest.fixture
def open_page(visitors: Callable[[dict[str, int]], Any]) -> Iterator[Callable[..., Any]]:
    """`open_page(url, viewport)`: a page that may ask nobody but the server, and may not fail in a script."""
    pages, foreign, failures = [], [], []

    def call(url: str, viewport: dict[str, int] = DESKTOP) -> Any:
        page = visitors(viewport).new_page()
        pages.append(page)
        page.set_default_timeout(60_000)
        page.on("request", lambda r: foreign.append(r.url) if not _own(r.url) else None)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(url)
        return page

    yield call
    for page in pages:
        page.close()
    assert not foreign, "the pages asked another host"
    assert not failures


def _own(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def wide(page: Any) -> int:
    """Pixels by which the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
