"""The synthesizer with tiny random models: whatever it says, it says by these laws."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from quaver.errors import BadInput, ConfigError, CorruptFile, MissingFile
from quaver.tts.decoder import AcousticDecoder
from quaver.tts.synthesizer import Speech, Synthesizer, TimedSpan, VoiceSettings, load_lm
from quaver.tts.text import Utterance, WordSpan

from .conftest import CODEC, LM

TEXT = "Hello world. Is it you?"


class Fixed:
    """A front end that knows one utterance."""

    def __init__(self, utterance: Utterance) -> None:
        self.utterance = utterance

    def sentence(self, text: str) -> list[Utterance]:
        return [self.utterance]


def spoken(
    synthesizer: Synthesizer, phones: str, breaks: tuple[tuple[int, float], ...] = (), **settings: Any
) -> Speech:
    words = (WordSpan("word", 0, len(phones.rstrip(".,?!"))),)
    synthesizer.frontend = Fixed(Utterance(phones, tuple(phones), words, breaks))  # type: ignore[assignment]
    return synthesizer.say("x", **settings)


def test_the_same_seed_gives_the_same_audio(synthesizer: Synthesizer) -> None:
    first, again, other = (synthesizer.say(TEXT, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.samples, again.samples)
    assert first.words == again.words
    assert not np.array_equal(first.samples[:500], other.samples[:500])


def test_chunks_together_are_the_whole(synthesizer: Synthesizer) -> None:
    whole = synthesizer.say(TEXT)
    chunks = list(synthesizer.stream(TEXT))
    assert len(chunks) > 3
    assert np.array_equal(np.concatenate([c.samples for c in chunks]), whole.samples)
    assert [w for c in chunks for w in c.words] == whole.words
    assert [p for c in chunks for p in c.phones] == whole.phones
    assert all(c.samples.dtype == np.float32 and c.sample_rate == synthesizer.sample_rate for c in chunks)
    assert np.isfinite(whole.samples).all()
    assert len(whole.samples) % synthesizer.codec.frame_size == 0
    progress = [c.progress for c in chunks]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0


def test_the_audio_is_the_offline_decode_of_its_codes(synthesizer: Synthesizer) -> None:
    codes = torch.randint(12, (3, 11))
    decoder = AcousticDecoder(synthesizer.codec)
    parts = [decoder.push(codes[:, a:b]) for a, b in ((0, 1), (1, 1), (1, 4), (4, 11))]
    streamed = np.concatenate([*parts, decoder.push(codes[:, :0], final=True)])
    with torch.no_grad():
        whole = synthesizer.codec.decode(codes[None])[0, 0].numpy()
    assert streamed.shape == whole.shape
    assert np.allclose(streamed, whole, atol=1e-4)


def check_times(speech: Speech, spans: list[TimedSpan]) -> None:
    times = [t for span in spans for t in (span.start, span.end)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= len(speech.samples) / speech.sample_rate + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_times_are_in_order_and_inside_the_audio(synthesizer: Synthesizer, seed: int) -> None:
    speech = synthesizer.say(TEXT, seed=seed)
    check_times(speech, speech.words)
    check_times(speech, speech.phones)
    assert [w.text for w in speech.words] == ["Hello", "world", "Is", "it", "you"]
    names = [p for u in synthesizer.frontend(TEXT) for p in u.phones]
    assert [p.text for p in speech.phones] == names
    last = speech.phones[-1].end * speech.sample_rate
    assert abs(last - len(speech.samples)) < 1


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_text_in_pieces_equals_the_whole_text(synthesizer: Synthesizer, size: int) -> None:
    pieces = (TEXT[i : i + size] for i in range(0, len(TEXT), size))
    arriving, whole = synthesizer.say(pieces), synthesizer.say(TEXT)
    assert np.array_equal(arriving.samples, whole.samples)
    assert arriving.words == whole.words


def test_audio_starts_before_the_text_has_ended(synthesizer: Synthesizer) -> None:
    given: list[str] = []

    def pieces() -> Any:
        for piece in ("Hello world. ", "Is it ", "you? ", "Good."):
            given.append(piece)
            yield piece

    stream = synthesizer.stream(pieces())
    assert not given
    next(stream)
    assert len(given) < 4


@pytest.mark.parametrize(
    ("breaks", "seconds"),
    [
        (((3, 0.25),), 0.25),
        (((3, 0.25), (3, 0.5)), 0.75),
        (((-1, 0.1),), 0.1),
        (((8, 0.2),), 0.2),
        (((-1, 0.1), (3, 0.2), (8, 0.3)), 0.6),
    ],
)
def test_breaks_lengthen_the_audio_by_the_seconds_asked_for(
    synthesizer: Synthesizer, breaks: tuple[tuple[int, float], ...], seconds: float
) -> None:
    plain, broken = spoken(synthesizer, "həl,wɜld."), spoken(synthesizer, "həl,wɜld.", breaks)
    frame = synthesizer.codec.frame_size / synthesizer.sample_rate
    longer = (len(broken.samples) - len(plain.samples)) / synthesizer.sample_rate
    assert abs(longer - seconds) <= frame * len(breaks)
    check_times(broken, broken.phones)
    assert broken.phones[-1].end == pytest.approx(len(broken.samples) / synthesizer.sample_rate)


def test_one_phone_and_few_codebooks_are_audio(synthesizer: Synthesizer) -> None:
    speech = spoken(synthesizer, "h")
    assert len(speech.samples) >= 2 * synthesizer.codec.frame_size
    assert [p.text for p in speech.phones] == ["h"]
    rough = spoken(synthesizer, "həl.", ((3, 0.05),), codebooks=1)
    full = spoken(synthesizer, "həl.", ((3, 0.05),))
    assert rough.samples.shape == full.samples.shape
    assert not np.array_equal(rough.samples, full.samples)


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("", {}, "no text"),
        ("  \n", {}, "no text"),
        ("hi", {"voice": "Carol"}, "Alice, Bob"),
        ("hi", {"speed": 9}, "speed"),
        ("hi", {"speed": float("nan")}, "speed"),
        ("hi", {"pause": 0}, "pause"),
        ("hi", {"temperature": -1}, "temperature"),
        ("hi", {"codebooks": 0}, "codebooks"),
        ("hi", {"codebooks": 4}, "codebooks"),
    ],
)
def test_bad_input_is_refused_before_the_first_chunk(
    synthesizer: Synthesizer, text: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        synthesizer.stream(text, **settings)


@pytest.mark.parametrize("pieces", [[], ["", " "], ["...", "?"]])
def test_pieces_without_a_word_are_refused(synthesizer: Synthesizer, pieces: list[str]) -> None:
    with pytest.raises(BadInput):
        list(synthesizer.stream(iter(pieces)))


def test_settings_change_the_answer(synthesizer: Synthesizer) -> None:
    base = synthesizer.say("Hello world.")
    for settings in ({"voice": "Bob"}, {"temperature": 2.0}, {"speed": 1.6}):
        assert not np.array_equal(base.samples, synthesizer.say("Hello world.", **settings).samples)
    assert np.array_equal(base.samples, synthesizer.say("Hello world.", voice="Alice").samples)


def test_a_listener_who_leaves_early_frees_the_slot(synthesizer: Synthesizer) -> None:
    whole = synthesizer.say(TEXT)
    stream = synthesizer.stream(TEXT)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert np.array_equal(synthesizer.say(TEXT).samples, whole.samples)


@pytest.fixture
def folder(synthesizer: Synthesizer, tmp_path: Path) -> Path:
    """A voice model and its codec beside it."""
    for name, module, config in (
        ("voice", synthesizer.lm, {"kind": "lm", "codec": "sound", **LM}),
        ("sound", synthesizer.codec, {"kind": "codec", **CODEC}),
    ):
        (tmp_path / name).mkdir()
        save_file(module.state_dict(), tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    settings = synthesizer.settings.model_dump_json()
    (tmp_path / "voice" / "settings.json").write_text(settings)
    return tmp_path / "voice"


def test_a_saved_voice_speaks_as_before(synthesizer: Synthesizer, folder: Path) -> None:
    loaded = Synthesizer.load(str(folder))
    assert loaded.voices == ("Alice", "Bob")
    assert np.array_equal(loaded.say("Hello.").samples, synthesizer.say("Hello.").samples)
    (folder / "settings.json").unlink()
    assert Synthesizer.load(str(folder)).voices == ("high", "low")


def test_a_voice_that_the_model_lacks_is_refused(synthesizer: Synthesizer) -> None:
    for settings in (
        VoiceSettings(names={"a": "nobody"}, default="a"),
        VoiceSettings(names={"a": "high"}, default="b"),
    ):
        with pytest.raises(ConfigError):
            Synthesizer(synthesizer.lm, synthesizer.codec, settings)


def rewrite(name: str, **changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return change


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (rewrite("config.json", kind="codec"), ConfigError),
        (rewrite("config.json", codec=None), ConfigError),
        (rewrite("config.json", surprise=1), ConfigError),
        (rewrite("config.json", pattern="spiral"), ConfigError),
        (rewrite("config.json", vocab=13), CorruptFile),
        (rewrite("config.json", codec="nowhere"), MissingFile),
        (rewrite("settings.json", default=None), ConfigError),
        (rewrite("settings.json", default="Carol"), ConfigError),
        (lambda folder: (folder / "settings.json").write_text("[1"), CorruptFile),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), CorruptFile),
    ],
)
def test_a_spoilt_voice_folder_is_a_clear_error(
    folder: Path, spoil: Callable[[Path], object], error: type[Exception]
) -> None:
    spoil(folder)
    with pytest.raises(error):
        Synthesizer.load(str(folder))


def test_a_language_model_is_not_looked_for_in_a_codec(folder: Path) -> None:
    with pytest.raises(ConfigError, match="language model"):
        load_lm(str(folder.parent / "sound"))
