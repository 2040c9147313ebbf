"""What the demo is made of, without a browser: pictures, the codec lab, draft counts, the command's refusals."""

from __future__ import annotations

import types
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from quaver.app.demo.codec_lab import CodecLab
from quaver.app.demo.edit_lab import EditLab
from quaver.app.demo.pictures import figure, heat_map, marked, spectrogram, waveform
from quaver.app.demo.speculating import KEPT, CountedLoop, count_drafts, drafts_of
from quaver.codecs.native import XCodec, XCodecConfig
from quaver.errors import BadInput
from quaver.tts.editing import Editor
from quaver.tts.speculative_depth import ResidualDrafter, SpeculativeHead
from quaver.tts.synthesizer import Synthesizer, VoiceSettings

from ..tts.conftest import CODEC, tiny_lm
from ..tts.heads import test_editing
from .conftest import Run, assert_one_line

editor = test_editing.editor  # the fixture: a tiny model that fills gaps


@settings(max_examples=20, deadline=None)
@given(count=st.integers(0, 5000), rate=st.sampled_from([8000, 16000, 24000, 48000]), scale=st.sampled_from([0.0, 1.0]))
def test_every_sound_has_pictures_of_the_same_size(count: int, rate: int, scale: float) -> None:
    samples = (scale * np.random.default_rng(count).uniform(-1, 1, count)).astype(np.float32)
    assert waveform(samples, 40, 100).shape == (40, 100, 3)
    assert spectrogram(samples, rate, 40, 100).shape == (40, 100, 3)


def test_a_spectrogram_shows_a_tone_where_it_is() -> None:
    time = np.arange(24_000) / 24_000
    rows = []
    for hertz in (300, 3000):
        picture = spectrogram(np.sin(2 * np.pi * hertz * time), 24_000, 200, 50).astype(int).sum(2)
        rows.append(int(picture[:, 25].argmax()))
    assert 0 < rows[1] < rows[0] < 200  # the higher tone stands higher


def test_a_heat_map_has_a_row_for_each_codebook_and_a_caption_is_text() -> None:
    codes = np.array([[0, 9], [9, 0], [5, 5]])
    picture = heat_map(codes, 10, width=4, row=3)
    assert picture.shape == (9, 4, 3)
    assert (picture[1, 0] == picture[4, 3]).all()
    assert (picture[1, 0] != picture[4, 0]).any()
    assert 'alt="&lt;b&gt;"' in figure(picture, "<b>")


@settings(max_examples=20, deadline=None)
@given(begin=st.floats(0, 1), length=st.floats(0, 1), width=st.integers(1, 90))
def test_a_mark_tints_its_part_of_a_picture_and_nothing_else(begin: float, length: float, width: int) -> None:
    end = min(1.0, begin + length)
    plain = np.full((5, width, 3), 200, np.uint8)
    changed = np.flatnonzero((marked(plain, begin, end) != plain).any(axis=(0, 2)))
    assert len(changed)  # a cut is a line
    assert changed[0] >= round(begin * width) - 2
    assert changed[-1] <= round(end * width)
    assert (np.diff(changed) == 1).all()
    assert (plain == 200).all()


def test_the_lab_keeps_as_many_codebooks_as_it_is_told(tiny_codec: Path, tmp_path: Path) -> None:
    lab = CodecLab((str(tiny_codec),))
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.3 * np.random.default_rng(0).uniform(-1, 1, (48_000, 2)), 48_000)
    whole, one = (lab.run(path, str(tiny_codec), n) for n in (4, 1))
    assert whole.codes.shape[0] == 4
    assert (one.codes[0] == whole.codes[0]).all()
    assert len(one.original) == len(one.decoded) == one.sample_rate
    assert whole.bitrate == pytest.approx(4 * one.bitrate)
    assert np.abs(whole.decoded).max() <= 1


def test_the_lab_refuses_without_naming_files(tiny_codec: Path, tmp_path: Path) -> None:
    lab = CodecLab((str(tiny_codec),))
    long, bad = tmp_path / "long.wav", tmp_path / "bad.wav"
    soundfile.write(long, np.zeros(31 * 8000), 8000)
    bad.write_bytes(b"nothing of the kind" * 9)
    for path, codec, levels, word in (
        (long, str(tiny_codec), 1, "30 s"),
        (bad, str(tiny_codec), 1, "not audio"),
        (long, "/etc", 1, "no codec"),
        (long, str(tiny_codec), 5, "1 to 4"),
    ):
        with pytest.raises(BadInput, match=word) as error:
            lab.run(path, codec, levels)
        assert str(tmp_path) not in str(error.value)


def test_drafts_are_counted_over_all_answers_and_older_ones_are_not_forgotten() -> None:
    def generation(model: int, speculation: object) -> Any:
        return types.SimpleNamespace(figures=types.SimpleNamespace(judged=4, kept=3))

    voice = types.SimpleNamespace(loop=partial(generation, speculation=object()))
    count_drafts("voice", voice)
    assert isinstance(voice.loop, CountedLoop)
    for _ in range(KEPT + 10):
        voice.loop(0)
    assert voice.loop.totals() == {"judged": 4 * (KEPT + 10), "kept": 3 * (KEPT + 10)}
    assert drafts_of(voice) == voice.loop.totals()
    plain = types.SimpleNamespace(loop=generation)
    count_drafts("plain", plain)
    assert plain.loop is generation
    assert drafts_of(plain) == {}


def test_drafts_along_depth_are_counted_too() -> None:
    lm: Any = tiny_lm()
    voice = Synthesizer(lm, XCodec(XCodecConfig(**CODEC)).eval(), VoiceSettings(names={"A": "high"}, default="A"))
    assert drafts_of(voice) == {}
    head = lm.head
    lm.head = SpeculativeHead(head, ResidualDrafter(8, head.codebooks, head.vocab, head.vocab, hidden=6))
    voice.say("Hello.")
    drafts = drafts_of(voice)
    assert 0 <= drafts["kept"] <= drafts["judged"]
    assert drafts["judged"] > 0


def test_an_edit_gives_the_recording_and_what_became_of_it(editor: Editor, tmp_path: Path) -> None:
    lab = EditLab(("mine",), trusted=0.0)
    lab._loaded["mine"] = editor
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((4 * 16_000, 2)), 16_000)
    made = lab.run(path, "Bring the red book to me.", " red book ", "old pen", "mine")
    assert made.edited.transcript == "Bring the old pen to me."
    assert len(made.original) == len(made.edited.resynthesis) == 4 * made.edited.sample_rate
    pytest.importorskip("gradio", reason="the demo needs gradio")
    from quaver.app.demo.handlers import _rewriting

    before, (rate, sound), after, said = _rewriting(made)
    assert (rate, len(sound)) == (made.edited.sample_rate, len(made.edited.samples))
    assert before.count("<img") == after.count("<img") == 2
    assert "old pen" in said
    for transcript, old, name, word in (
        ("Bring the red book.", "green", "mine", "not in the transcript"),
        (" ", "red", "mine", "what is said"),
        ("Bring it.", " ", "mine", "to be replaced"),
        ("Bring it.", "it", "/etc", "no editing model"),
    ):
        with pytest.raises(BadInput, match=word) as error:
            lab.run(path, transcript, old, "x", name)
        assert str(tmp_path) not in str(error.value)
    with pytest.raises(BadInput, match="does not match"):  # the editor's own threshold: this is noise
        EditLab.run(_trusting_nobody(editor), path, "Bring the red book to me.", "red", "blue", "mine")


def _trusting_nobody(editor: Editor) -> EditLab:
    lab = EditLab(("mine",))
    lab._loaded["mine"] = editor
    return lab


@pytest.mark.parametrize(("path", "kept"), [("assets/Index-BLP_p0S2.js", True), ("assets/svelte/svelte.js", False)])
def test_browsers_keep_files_whose_name_has_a_hash(path: str, kept: bool) -> None:
    pytest.importorskip("gradio", reason="the demo needs gradio")
    from quaver.app.demo.mount import DEMO, HASHED

    assert bool(HASHED.search(f"{DEMO}/{path}")) is kept
    assert not HASHED.search(f"/static/{path}")


def test_serve_may_bring_the_demo_along(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The refusal comes from the demo, so it was asked for."""
    pytest.importorskip("gradio", reason="the demo needs gradio")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    made = run("serve", "keys", "add", "me")
    assert made.code == 0, made.err
    assert_one_line(run("serve", "--demo", "--port", 0), "no login")


def test_a_server_with_keys_has_no_demo(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the demo needs gradio")
    from fastapi import FastAPI

    from quaver.app.demo.mount import add_demo
    from quaver.app.server.auth import KeyStore
    from quaver.app.server.settings import ServerSettings

    KeyStore(tmp_path / "keys.json").add("me", None)
    with pytest.raises(BadInput, match="no login"):
        add_demo(FastAPI(), ServerSettings(keys=tmp_path / "keys.json"))


def test_the_command_refuses_a_network_address(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert_one_line(run("demo", "--host", "0.0.0.0"), "loopback")
