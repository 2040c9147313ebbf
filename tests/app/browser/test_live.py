"""The live page in a browser whose microphone plays a file, and the laws of its jitter buffer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quaver.app.engine_duplex import EngineBackend
from quaver.codecs.native import XCodec, XCodecConfig
from quaver.dialogue.loading import DuplexParts
from quaver.dialogue.session import DuplexSettings
from quaver.tts.synthesizer import Synthesizer

from ...dialogue.tiny import CODEC, VOCABULARY, talking_model
from ..server.conftest import wait_for
from ..server.test_realtime_talk import EchoBackend
from .conftest import DESKTOP, LONG, PHONE, Running, serving, wide

pytestmark = pytest.mark.browser
OpenPage = Callable[..., Any]
PAGE = "/static/live.html"


@pytest.fixture(scope="module")
def speaker(synthesizer: Synthesizer, tmp_path_factory: pytest.TempPathFactory, chromium: Any) -> Iterator[Running]:
    """A server that cannot listen."""
    with serving(synthesizer, tmp_path_factory.mktemp("speaker"), slots=2) as running:
        yield running


@pytest.fixture
def echo(synthesizer: Synthesizer, tmp_path: Path, chromium: Any) -> Iterator[Running]:
    """A server that says what it hears."""
    with serving(synthesizer, tmp_path, slots=2, duplex={"echo": EchoBackend()}) as running:
        yield running


@pytest.fixture
def talker(synthesizer: Synthesizer, tmp_path: Path, chromium: Any) -> Iterator[Running]:
    """A real duplex model with random weights in the engine."""
    torch.manual_seed(0)
    codec = XCodec(XCodecConfig.model_validate({**CODEC, "hop": 240, "n_fft": 960})).eval()
    backend = EngineBackend("talk", DuplexParts(talking_model(), codec, VOCABULARY, DuplexSettings(text_top_k=0)))
    with serving(synthesizer, tmp_path, slots=2, duplex={"talk": backend}) as running:
        yield running


def live(page: Any, what: str) -> Any:
    return page.evaluate(f"() => quaverLive()?.{what}")


def test_without_a_duplex_model_it_says_so_and_speaks_what_is_typed(
    open_page: OpenPage, speaker: Running, pictures: Path
) -> None:
    page = open_page(speaker.url + PAGE)
    page.click("#start")
    page.wait_for_selector("#status.error")
    assert "No duplex model" in page.inner_text("#status")
    assert "--model quaver-duplex" in page.inner_text("#status")
    page.get_by_label("Text to be spoken").fill("Hello world.")
    page.click("#say")
    page.wait_for_function("() => quaverLive()?.responses === 1")
    page.wait_for_function("() => quaverLive().state?.played > 0.1")
    assert live(page, "loudest") > 0.01
    assert page.inner_text("#transcript .you") == "Hello world."
    assert page.inner_text("#transcript .model").lower().replace(".", "") == "hello world"
    page.screenshot(path=str(pictures / "live-without.png"))
    page.click("#stop")
    assert speaker.settled()


def test_interrupting_ends_the_answer_at_once(open_page: OpenPage, speaker: Running) -> None:
    page = open_page(speaker.url + PAGE)
    page.get_by_label("Text to be spoken").fill(LONG)
    page.click("#say")  # connects by itself
    page.wait_for_function("() => quaverLive()?.state?.played > 0.2")
    page.click("#interrupt")
    page.wait_for_selector("#transcript .model.cut")
    assert live(page, "epoch") == 1
    page.wait_for_function("() => quaverLive().state.held === 0 && !quaverLive().state.playing")
    assert wait_for(lambda: speaker.engine.stats().open == 0)
    received = live(page, "received")
    page.wait_for_timeout(300)
    assert live(page, "received") == received
    page.click("#stop")


def test_what_the_microphone_hears_comes_back(open_page: OpenPage, echo: Running, pictures: Path) -> None:
    page = open_page(echo.url + PAGE)
    page.get_by_label("My voice interrupts").uncheck()
    page.click("#start")
    page.wait_for_function("() => quaverLive()?.sent > 48000 * 2")
    page.wait_for_function("() => quaverLive().loudest > 0.3 && document.querySelector('#transcript .you')")
    page.wait_for_function("() => document.querySelector('#transcript .you').textContent.startsWith('word word')")
    page.wait_for_function("() => quaverLive().state.played > 0.2")
    page.wait_for_function("() => document.querySelector('#trip').textContent.endsWith('ms')")
    assert "of" in page.inner_text("#buffer")
    page.screenshot(path=str(pictures / "live.png"))
    page.click("#stop")
    page.wait_for_function("() => quaverLive() === null")
    assert page.inner_text("#status") == "Ended."


class Line:
    """A TCP relay to the server that can be cut, as a network is: nobody says goodbye."""

    def __init__(self, url: str) -> None:
        self.target = int(url.rsplit(":", 1)[1])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self.open += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.open.clear()


def test_a_dropped_line_comes_back(open_page: OpenPage, echo: Running) -> None:
    line = Line(echo.url)
    page = open_page(line.url + PAGE)
    page.click("#start")
    page.wait_for_function("() => quaverLive()?.sent > 48000")
    session, token = live(page, "session.id"), live(page, "token")
    line.cut()
    page.wait_for_function(f"() => quaverLive()?.token && quaverLive().token !== '{token}'")
    sent, received = live(page, "sent"), live(page, "received")
    page.wait_for_function(f"() => quaverLive().sent > {sent} + 24000 && quaverLive().received > {received}")
    assert live(page, "session.id") == session
    assert "Connected again" in page.inner_text("#status")
    page.click("#stop")
    line.listener.close()


def test_a_real_model_is_heard_and_can_be_interrupted_by_voice(open_page: OpenPage, talker: Running) -> None:
    page = open_page(talker.url + PAGE)
    page.click("#start")
    page.wait_for_function("() => quaverLive()?.received > 4800")
    assert page.query_selector("#transcript .model")
    page.wait_for_function("() => quaverLive().epoch > 0")  # the tone of the microphone sets in again
    assert page.query_selector("#transcript .model.cut")
    page.click("#stop")
    assert wait_for(lambda: talker.engine.stats().open == 0)


def test_a_full_server_is_a_message(open_page: OpenPage, synthesizer: Synthesizer, tmp_path: Path) -> None:
    with serving(synthesizer, tmp_path, limits={"sessions_per_key": 1}) as running:
        first, second = (open_page(running.url + PAGE) for _ in range(2))
        first.click("#start")
        first.wait_for_selector("#status.error")
        second.click("#start")
        second.wait_for_function("() => /taken|sessions|closed/.test(document.querySelector('#status').textContent)")
        assert second.is_enabled("#start")
        first.click("#stop")


def test_a_phone_shows_it_without_scrolling_sideways(open_page: OpenPage, speaker: Running, pictures: Path) -> None:
    page = open_page(speaker.url + PAGE, PHONE)
    assert wide(page) <= 0
    page.screenshot(path=str(pictures / "phone-live.png"))
    assert wide(open_page(speaker.url + PAGE, DESKTOP)) <= 0


# -- the jitter buffer ------------------------------------------------------------------------------------------------
LOAD = """async () => {
  const made = {};
  Object.assign(globalThis, { sampleRate: 24000, registerProcessor: (name, kind) => { made[name] = kind; },
    AudioWorkletProcessor: class { constructor() { this.port = { postMessage: () => {} }; } } });
  await import('/static/live-worklet.js');
  window.worklets = made;
}"""
# `steps`: samples that arrive before each block of 128 is played; every sample has a number of its own, from 1 on.
PLAY = """({ steps, live, ends }) => {
  const player = new window.worklets.playback(), heard = [];
  player.take({ begin: { live } });
  let next = 1;
  const block = () => {
    const output = new Float32Array(128);
    player.process([], [[output]]);
    heard.push(...output);
  };
  for (const count of steps) {
    if (count) player.take({ samples: Float32Array.from({ length: count }, () => next++ / 65536) });
    block();
  }
  if (ends) { player.take({ end: true }); for (let i = 0; i < next / 128 + 2; i++) block(); }
  return { heard: heard.map((x) => Math.round(x * 65536)), gaps: player.gaps, target: player.target, held: player.held,
    given: next - 1 };
}"""


@pytest.fixture(scope="module")
def worklets(chromium: Any, speaker: Running) -> Iterator[Any]:
    page = chromium.new_page()
    page.goto(speaker.url + PAGE)
    page.evaluate(LOAD)
    yield page
    page.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from([0, 0, 0, 60, 128, 960, 3000]), max_size=60), ends=st.booleans())
def test_the_jitter_buffer_plays_everything_once_and_in_order(worklets: Any, steps: list[int], ends: bool) -> None:
    result = worklets.evaluate(PLAY, {"steps": steps, "live": False, "ends": ends})
    played = [x for x in result["heard"] if x]
    assert played == list(range(1, len(played) + 1))  # whatever came when: no sample twice, none left out
    assert len(played) + result["held"] == result["given"]
    assert not ends or result["held"] == 0
    assert 0.04 <= result["target"] <= 0.4


def test_it_waits_until_enough_is_there_and_longer_after_a_gap(worklets: Any) -> None:
    quiet = worklets.evaluate(PLAY, {"steps": [1000, 0, 0], "live": False, "ends": False})
    assert not any(quiet["heard"])  # 1,000 of the 1,440 samples of 60 ms
    gap = worklets.evaluate(PLAY, {"steps": [1500, *[0] * 14, 1500, *[0] * 5], "live": False, "ends": False})
    assert gap["gaps"] == 1
    assert gap["target"] == pytest.approx(0.09)
    assert gap["held"] == 1500  # the new target is 2,160


def test_live_speech_that_has_piled_up_loses_its_silence_only(worklets: Any) -> None:
    script = """() => {
      const player = new window.worklets.playback();
      player.take({ begin: { live: true } });
      const loud = new Float32Array(2400).fill(0.5), silent = new Float32Array(12000);
      player.take({ samples: silent }); player.take({ samples: loud });
      const heard = [];
      for (let i = 0; i < 120; i++) { const o = new Float32Array(128); player.process([], [[o]]); heard.push(...o); }
      return { loud: heard.filter((x) => x === 0.5).length, skipped: player.skipped };
    }"""
    result = worklets.evaluate(script)
    assert result["loud"] == 2400
    assert result["skipped"] > 3000
