"""The recogniser and the synthesizer: the duplex network with its text late, or early."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quaver.dialogue import modes
from quaver.dialogue.loading import DuplexParts
from quaver.dialogue.model import DuplexConfig, DuplexModel, LossWeights, delays_of
from quaver.dialogue.modes import RecogniserBatch, Script, SynthesizerBatch, speak, transcribe
from quaver.dialogue.monologue import words_heard
from quaver.dialogue.session import DuplexBatch, DuplexFrame, DuplexSettings
from quaver.errors import BadInput, ConfigError

from ..laws import TOLERANCE, few
from .tiny import VOCABULARY, noise_frames, talking_model, tiny_codec, tiny_config

SIZE, LATE, EARLY = 64, 4, 3
GREEDY = DuplexSettings(temperature=0, text_temperature=0)


def parts(text: int, own: int = 3, **codec: int) -> DuplexParts:
    model = talking_model(own=own, delays=delays_of(own, 2, text=text))
    return DuplexParts(model, tiny_codec(**codec), VOCABULARY, DuplexSettings())


def speaking() -> DuplexParts:
    """A synthesizer of 25 frames a second."""
    return parts(-EARLY, hop=240, n_fft=960)


def test_the_delays_say_what_a_model_is() -> None:
    def mode(*delays: int) -> str:
        return tiny_config(delays=delays).mode

    assert tiny_config().mode == "dialogue"
    assert mode(0, 1, 2, 2, 0, 0) == "dialogue"  # a frame ahead of its own voice, but not of the user's
    assert tiny_config().with_text_delay(2).mode == "recogniser"
    assert tiny_config().with_text_delay(1).mode == "dialogue"  # level with the acoustic codebooks
    assert tiny_config().with_text_delay(-1).mode == "synthesizer"
    kinds = (DuplexBatch, RecogniserBatch, SynthesizerBatch)
    for delay, kind in zip((0, LATE, -EARLY), kinds, strict=True):
        made = parts(delay)
        assert type(made.batch(2)) is type(made.session().batch) is kind


def test_a_recogniser_is_the_model_on_the_users_voice_alone() -> None:
    """Greedy steps, replayed offline with the own voice absent as in training."""
    made = parts(LATE)
    batch = made.batch(2)
    batch.join(1, GREEDY)
    heard = noise_frames(16, SIZE)
    said = [batch.step({1: frame})[1] for frame in heard]
    model = made.model
    with torch.inference_mode():
        user, _ = made.codec.encode(torch.from_numpy(heard.reshape(1, 1, -1)))
        codes = torch.full((1, 6, 17), model.nothing)
        codes[:, 4:, :16], codes[:, 0] = user[:, :2], VOCABULARY.pad
        steps = model.delay(codes)[..., :17]
        for column in range(LATE, 17):
            hidden = model.hidden(model.shifted(steps)[..., : column + 1])[:, -1]
            steps[0, 0, column] = model.text_head(hidden).argmax()
    assert [f.token for f in said[LATE - 1 :]] == steps[0, 0, LATE:].tolist()
    assert len({f.token for f in said}) > 2
    assert not any(f.audio.any() for f in said)
    words = transcribe(made.batch(1), heard.reshape(-1), GREEDY)
    assert words[: len(words) - 3] == words_heard(steps[0, 0, LATE:].tolist(), 375, VOCABULARY)[: len(words) - 3]


def test_a_recogniser_needs_no_voice() -> None:
    batch = parts(LATE, own=0).batch(1)
    batch.join(0, GREEDY)
    assert [batch.step({0: f})[0].audio.any() for f in noise_frames(8, SIZE)] == [False] * 8


def learnt(config: DuplexConfig, codes: torch.Tensor, steps: int) -> DuplexModel:
    torch.manual_seed(0)
    model = DuplexModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(codes, LossWeights(padding=0.3))["loss"].backward()
        optimizer.step()
    return model


def test_a_recogniser_writes_down_what_it_has_learnt() -> None:
    """Four recordings of noise with a text of their own, learnt by heart: heard again, in a stream."""
    codec, frames, rng = tiny_codec(), 16, np.random.default_rng(0)
    recordings = [noise_frames(frames, SIZE, seed).reshape(-1) for seed in range(4)]
    texts = [[(str(rng.choice(VOCABULARY.words)), int(at)) for at in (rng.integers(1, 5), 9)] for _ in recordings]
    codes = torch.full((4, 3, frames + LATE), -1)
    codes[:, 0] = VOCABULARY.pad
    for row, audio, words in zip(codes, recordings, texts, strict=True):
        with torch.inference_mode():
            row[1:] = codec.encode(torch.from_numpy(np.pad(audio, (0, LATE * SIZE)))[None, None])[0][0, :2]
        for word, at in words:
            row[0, at] = VOCABULARY.encode(word)[0]
    size, pad, epad = VOCABULARY.size, VOCABULARY.pad, VOCABULARY.epad
    model = learnt(tiny_config(text_vocab=size, pad=pad, epad=epad, own=0, delays=(LATE, 0, 0)), codes, 100)
    batch = DuplexParts(model, codec, VOCABULARY, GREEDY).batch(1)
    for audio, words in zip(recordings, texts, strict=True):
        found = transcribe(batch, audio, GREEDY)
        assert [(w, round(start * 375)) for w, start, _ in found] == words


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model is never silent: its utterances end after a few frames."""
    monkeypatch.setattr(modes, "LONGEST", 0.3)


def written(batch: DuplexBatch, text: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The text stream while a text is being spoken."""
    tokens: list[int] = []
    frame = batch._frame

    def noted(audio: np.ndarray, token: int, index: int, words: int) -> DuplexFrame:
        tokens.append(token)
        return frame(audio, token, index, words)

    monkeypatch.setattr(batch, "_frame", noted)
    list(speak(batch, [text], DuplexSettings(seed=1, text_temperature=1.0)))
    return tokens


@pytest.mark.parametrize("text", ["hello", "Yes, no: seven!", "zoe what zoe", "blue " * 9])
def test_a_synthesizer_writes_all_its_words_and_no_others(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a random model, spelled words and all; then it is silent, and ends."""
    tokens = written(speaking().batch(1), text, monkeypatch)
    wanted = [token for word in text.split() for token in VOCABULARY.encode(word)]
    assert [t for t in tokens if t not in (VOCABULARY.pad, VOCABULARY.epad)] == wanted
    letters = VOCABULARY.encode("zoe")
    for at in [i for i, t in enumerate(tokens) if t == letters[0]]:  # nothing comes between the letters of a word
        assert tokens[at : at + 3] == letters
    for at in [i for i, t in enumerate(tokens[:-1]) if t == VOCABULARY.epad and i < tokens.index(wanted[-1])]:
        assert tokens[at + 1] not in (VOCABULARY.pad, VOCABULARY.epad)


def test_a_model_that_would_never_speak_is_made_to() -> None:
    """Of two words the second comes after the patience is over, at the latest."""
    script = Script(VOCABULARY, 3, "yes no")
    assert script.next() == (VOCABULARY.encode("yes")[0],) * 2
    script.wrote(VOCABULARY.encode("yes")[0])
    for _ in range(3):
        assert script.next() == (VOCABULARY.encode("no")[0], None)
        script.wrote(VOCABULARY.pad)
    assert script.next() == (VOCABULARY.encode("no")[0],) * 2
    script.wrote(VOCABULARY.encode("no")[0])
    assert script.done
    script.feed("zoe")
    assert not script.done


def test_a_synthesizer_says_the_codes_under_its_text() -> None:
    """Offline: the model's greedy codes given the text stream, decoded whole."""
    made = parts(-EARLY)
    batch = made.batch(2)
    assert isinstance(batch, SynthesizerBatch)
    batch.join(1, GREEDY)
    text = [0, *VOCABULARY.encode("hello"), 1, 1, *VOCABULARY.encode("zoe"), *([1] * 14)]
    frames = []
    for token in text:
        batch.write(1, None, token)
        frames.append(batch.step({1: np.full(SIZE, 0.3, np.float32)})[1])  # what it is given to hear is not heard
    model, total = made.model, len(text) + 1
    with torch.inference_mode():
        codes = torch.full((1, 6, total), model.nothing)
        codes[0, 0] = torch.tensor([VOCABULARY.pad, *text])
        steps = model.delay(codes)[..., :total]
        for column in range(total):
            hidden = model.hidden(model.shifted(steps)[..., : column + 1])[:, -1]
            for level in range(3):
                if column >= model.config.stream_delays[1 + level]:
                    logits = model.audio_logits(hidden[:, None], steps[..., column : column + 1])
                    steps[0, 1 + level, column] = logits[0, 0, level].argmax()
        late = max(model.config.stream_delays)
        delays = model.config.stream_delays[1:4]
        own = torch.stack([steps[0, 1 + k, d : d + total - late] for k, d in enumerate(delays)])
        offline = made.codec.decode(own[None])[0, 0].numpy()
    streamed = np.concatenate([f.audio for f in frames if f.frame >= 0])
    overlap = made.codec.latency
    assert np.abs(streamed[overlap:] - offline[: len(streamed) - overlap]).max() < TOLERANCE
    assert np.abs(offline).max() > 0.01


@given(slots=st.integers(2, 3), seed=st.integers(0, 99))
@settings(few, max_examples=2)
def test_texts_do_not_depend_on_their_neighbours(slots: int, seed: int) -> None:
    made = speaking()
    texts = ["yes", "zoe", "what hello"]
    chosen = DuplexSettings(seed=seed, text_temperature=1.0)
    together = dict(speak(made.batch(slots), texts, chosen))
    company = dict(speak(made.batch(slots), [texts[0], "hello " * 5, texts[2]], chosen))
    alone = dict(speak(made.batch(1), texts, chosen))
    assert together.keys() == company.keys() == {0, 1, 2}
    for i in range(3):
        assert np.isfinite(together[i]).all()
        if i != 1:
            assert np.array_equal(together[i], company[i])
        assert len(alone[i]) == len(together[i])
        assert np.abs(alone[i] - together[i]).max() < TOLERANCE


def test_recorded_steps_say_the_same() -> None:
    made = speaking()
    plain, recorded = (
        dict(speak(made.batch(2, recorded=r), ["yes zoe", "no", "blue hello"], DuplexSettings(seed=3)))
        for r in (False, True)
    )
    assert all(np.array_equal(plain[i], recorded[i]) for i in range(3))


def test_misuse_is_told() -> None:
    synthesizer, recogniser = parts(-EARLY).batch(1), parts(LATE).batch(1)
    with pytest.raises(BadInput, match="cannot be written"):
        list(speak(synthesizer, ["née"]))
    with pytest.raises(BadInput, match="nothing to say"):
        list(speak(synthesizer, ["  "]))
    with pytest.raises(ConfigError, match="no synthesizer"):
        list(speak(recogniser, ["yes"]))
    with pytest.raises(ConfigError, match="no recogniser"):
        transcribe(synthesizer, np.zeros(64, np.float32))
    assert isinstance(synthesizer, SynthesizerBatch)
    synthesizer.leave(0)
    with pytest.raises(BadInput, match="join first"):
        synthesizer.write(0, 5)
