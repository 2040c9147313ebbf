"""Sessions on slots: stepping equals the teacher-forced model, slots are isolated, controls, snapshots, bad input."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quaver.dialogue.model import DuplexModel, LossWeights, delays_of
from quaver.dialogue.sampling import sample_rows
from quaver.dialogue.session import DuplexBatch, DuplexSession, DuplexSettings, latency_seconds
from quaver.errors import BadInput, ConfigError
from quaver.tts.sampling import SamplingConfig, filtered_probabilities

from ..laws import TOLERANCE, few
from .tiny import VOCABULARY, noise_frames, talking_model, tiny_codec, tiny_config

SIZE = 64


def batch(slots: int = 3, seed: int = 0, **changes: Any) -> DuplexBatch:
    return DuplexBatch(talking_model(seed, **changes), tiny_codec(), VOCABULARY, slots)


@pytest.mark.parametrize(
    "delays", [None, (0, 0, 0, 0, 0, 0), (2, 0, 1, 3, 0, 2), delays_of(3, 2, text=-2), delays_of(3, 2, acoustic=3)]
)
def test_a_session_is_the_model_on_its_own_tokens(delays: tuple[int, ...] | None) -> None:
    """Greedy steps, replayed offline: codec, delays, both transformers and the decoder, each frame of them."""
    made = batch(2, delays=delays, heard=2)
    made.join(1, DuplexSettings(temperature=0, text_temperature=0))
    heard = noise_frames(20, SIZE)
    said = [made.step({1: frame})[1] for frame in heard]
    model, codec, config = made.model, made.codec, made.model.config
    with torch.inference_mode():
        user, _ = codec.encode(torch.from_numpy(heard.reshape(1, 1, -1)))
        late, frames = made.late, 21 - made.late
        # Column q is drawn after the columns before it: the offline model, one more column at a time.
        steps = model.initial[None, :, None].repeat(1, 1, 21)
        for k in range(config.user):
            delay = config.stream_delays[4 + k]
            steps[0, 4 + k, delay:] = user[0, k, : 21 - delay] if delay else torch.cat([user[0, k], user.new_zeros(1)])
        written = []
        for q in range(21):
            hidden = model.hidden(model.shifted(steps)[..., : q + 1])[:, -1]
            written.append(made._text(int(model.heard_head(hidden).argmax())))
            if q >= config.stream_delays[0]:
                steps[0, 0, q] = model.text_head(hidden).argmax()
            for level in range(3):
                logits = model.audio_logits(hidden[:, None], steps[..., q : q + 1])
                if q >= config.stream_delays[1 + level]:
                    steps[0, 1 + level, q] = logits[0, 0, level].argmax()
        own = [steps[0, 1 + k, d : d + frames] for k, d in enumerate(config.stream_delays[1:4])]
        spoken = torch.stack(own)[None]
        spoken = spoken[..., 1:] if late == 0 else spoken  # with no delay frame 0 comes before anything is heard
        offline = codec.decode(spoken)[0, 0].numpy()
    assert [f.token if f.token < config.text_vocab else config.text_vocab for f in said] == steps[0, 0, 1:].tolist()
    assert [f.heard for f in said] == written[1:]
    assert any(written)
    assert [f.frame for f in said] == list(range(1 - late, 21 - late))
    streamed = np.concatenate([f.audio for f in said])[max(late - 1, 0) * SIZE :]
    overlap = codec.latency
    assert np.abs(streamed[overlap:] - offline[: len(streamed) - overlap]).max() < TOLERANCE
    assert np.abs(offline).max() > 0.01


@given(seed=st.integers(0, 1000), other=st.integers(0, 1000))
@few
def test_slots_are_isolated(seed: int, other: int) -> None:
    """Bit for bit: the same conversation alone, and beside neighbours that join, leave, stall and are steered."""
    rng, heard = np.random.default_rng(other), noise_frames(16, SIZE, seed)
    alone, company = batch(3), batch(3)
    alone.join(1, DuplexSettings(seed=seed))
    company.join(1, DuplexSettings(seed=seed))
    for frame in heard:
        for slot in (0, 2):
            if not company.used[slot]:
                company.join(slot, DuplexSettings(seed=int(rng.integers(99)), temperature=1.5, top_k=3))
            elif rng.random() < 0.2:
                company.leave(slot)
            elif rng.random() < 0.3:
                company.steer(slot, "listen")
        moving = {s: noise_frames(1, SIZE, other + s)[0] for s in (0, 2) if company.used[s] and rng.random() < 0.7}
        a, b = alone.step({1: frame})[1], company.step({1: frame} | moving)[1]
        assert np.array_equal(a.audio, b.audio)
        assert (a.token, a.frame) == (b.token, b.frame)


@given(at=st.integers(1, 11), to=st.integers(0, 2))
@few
def test_a_snapshot_goes_on_in_any_slot(at: int, to: int) -> None:
    heard = noise_frames(12, SIZE)
    first, second = batch(1), batch(3)
    first.join(0, DuplexSettings(seed=5))
    said = [first.step({0: f})[0] for f in heard[:at]]
    saved = first.snapshot(0)
    said += [first.step({0: f})[0] for f in heard[at:]]
    second.resume(to, saved)
    again = [second.step({to: f})[to] for f in heard[at:]]
    for a, b in zip(said[at:], again, strict=True):
        assert np.abs(a.audio - b.audio).max(initial=0) < TOLERANCE
        assert a.token == b.token


def test_the_same_seed_says_the_same_and_another_does_not() -> None:
    heard = noise_frames(12, SIZE)

    def said(seed: int) -> np.ndarray:
        session = DuplexSession(talking_model(), tiny_codec(), VOCABULARY, DuplexSettings(seed=seed))
        return np.concatenate([session.step(f).audio for f in heard])

    assert np.array_equal(said(1), said(1))
    assert not np.array_equal(said(1), said(2))


@given(seed=st.integers(0, 9999), top_k=st.integers(0, 6), temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
@few
def test_rows_are_drawn_from_the_law_of_their_settings(seed: int, top_k: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 6, generator=generator).expand(4000, 6)
    uniform = torch.rand(4000, generator=generator)
    drawn = sample_rows(logits, torch.full((4000,), temperature), torch.full((4000,), top_k), uniform)
    wanted = filtered_probabilities(logits[0], SamplingConfig(temperature=temperature, top_k=top_k))
    found = torch.bincount(drawn, minlength=6) / 4000
    assert (found - wanted).abs().max() < 0.04
    assert not bool((found[wanted == 0] > 0).any())


def test_settings_are_each_slots_own() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]]).expand(3, 3)
    drawn = sample_rows(logits, torch.tensor([0.0, 9.0, 9.0]), torch.tensor([0, 1, 0]), torch.full((3,), 0.99))
    assert drawn.tolist() == [1, 1, 0]


def test_forced_pad_keeps_it_silent_and_forced_epad_is_one_token() -> None:
    made = batch(2)
    made.join(0, DuplexSettings(text_temperature=2.0, text_top_k=0))
    heard = noise_frames(30, SIZE)
    made.steer(0, "listen")
    assert {made.step({0: f})[0].token for f in heard[:10]} == {VOCABULARY.pad}
    made.steer(0, "speak")
    tokens = [made.step({0: f})[0].token for f in heard[10:]]
    assert tokens[0] == VOCABULARY.epad
    assert len(set(tokens[1:])) > 5  # free again


def learnt(codes: torch.Tensor, steps: int) -> DuplexModel:
    torch.manual_seed(0)
    model = DuplexModel(tiny_config(text_vocab=VOCABULARY.size, pad=VOCABULARY.pad, epad=VOCABULARY.epad))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(codes, LossWeights(semantic=1, padding=1))["loss"].backward()
        optimizer.step()
    return model


def test_a_model_that_has_learnt_silence_keeps_it_and_speaks_when_it_is_told_to() -> None:
    """Silence in gives PAD and the codes of silence out; a forced EPAD gives a word in the next frame, and its
    voice."""
    codec, word, frames = tiny_codec(), VOCABULARY.encode("hello")[0], 24
    with torch.inference_mode():
        quiet, _ = codec.encode(torch.zeros(1, 1, SIZE * frames))
    silent = torch.cat([torch.full((1, 1, frames), VOCABULARY.pad), quiet[:, :3], quiet[:, :2]], 1)
    rows = [silent] * 4
    for at in (5, 8, 11, 15):  # EPAD, the word, and three frames of a voice
        row = silent.clone()
        row[0, 0, at], row[0, 0, at + 1] = VOCABULARY.epad, word
        row[0, 1:4, at + 1 : at + 4] = (row[0, 1:4, at + 1 : at + 4] + 3) % 8
        rows.append(row)
    model = learnt(torch.cat(rows), 60)
    made = DuplexBatch(model, codec, VOCABULARY)
    made.join(0, DuplexSettings(temperature=0, text_temperature=0))
    zeros = np.zeros(SIZE, np.float32)
    said = [made.step({0: zeros})[0] for _ in range(10)]
    assert {f.token for f in said} == {VOCABULARY.pad}
    with torch.inference_mode():
        silence = codec.decode(quiet)[0, 0].numpy()
    streamed = np.concatenate([f.audio for f in said])
    assert np.abs(streamed[codec.latency :] - silence[: len(streamed) - codec.latency]).max() < TOLERANCE
    made.steer(0, "speak")
    after = [made.step({0: zeros})[0] for _ in range(4)]
    assert after[0].token == VOCABULARY.epad
    assert after[1].text == " hello"
    assert np.abs(np.concatenate([f.audio for f in after]) - silence[10 * SIZE : 14 * SIZE]).max() > 0.01


def test_constant_memory_past_the_ring() -> None:
    """90 frames through a window of 24: the state stays as large, and so do the numbers."""
    made = batch(1)
    made.join(0)
    before = made.state.nbytes()
    heard = noise_frames(90, SIZE)
    said = [made.step({0: f})[0] for f in heard]
    assert made.state.nbytes() == before
    assert np.isfinite(np.concatenate([f.audio for f in said])).all()


@pytest.mark.long
def test_an_hour_in_constant_memory() -> None:
    """90,000 frames (25 Hz) of a tiny model; the process grows by less than 50 MB."""
    import resource

    made = batch(1)
    made.join(0)
    heard, before = noise_frames(50, SIZE), made.state.nbytes()
    for i in range(90_000):
        frame = made.step({0: heard[i % 50]})[0]
        if i == 1000:
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert made.state.nbytes() == before
    assert np.isfinite(frame.audio).all()
    assert frame.frame == 90_000 - 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 50_000


@pytest.mark.parametrize(
    ("frame", "rate", "says"),
    [
        (np.zeros(63, np.float32), None, "64 samples"),
        (np.zeros((1, 64), np.float32), None, "64 samples"),
        (np.full(64, np.nan, np.float32), None, "NaN"),
        (np.full(64, np.inf, np.float32), None, "NaN"),
        (np.zeros(64, np.float32), 16_000, "resample"),
    ],
)
def test_bad_frames_are_refused_and_change_nothing(frame: np.ndarray, rate: int | None, says: str) -> None:
    made, good = batch(2), noise_frames(2, SIZE)
    for slot in (0, 1):
        made.join(slot)
        made.step({slot: good[slot]})
    before = made.state.save()
    with pytest.raises(BadInput, match=says):
        made.step({0: good[0], 1: frame}, rate)
    assert all(torch.equal(before[k], v) for k, v in made.state.save().items())


def test_an_input_that_stalls_goes_on_where_it_was() -> None:
    """Nothing comes for a while: nothing is said meanwhile, and then all is as if there had been no gap."""
    heard, gap = noise_frames(10, SIZE), noise_frames(6, SIZE, 9)
    stalled, steady = batch(2), batch(2)
    for made in (stalled, steady):
        made.join(0, DuplexSettings(seed=2))
        made.join(1, DuplexSettings(seed=3))
    said = [stalled.step({0: f})[0] for f in heard[:4]]
    assert all(stalled.step({1: f}).keys() == {1} for f in gap)
    said += [stalled.step({0: f})[0] for f in heard[4:]]
    for ours, frame in zip(said, heard, strict=True):
        other = steady.step({0: frame})[0]
        assert np.array_equal(ours.audio, other.audio)
        assert (ours.token, ours.frame) == (other.token, other.frame)


def test_other_misuse_is_told() -> None:
    made = batch(2)
    with pytest.raises(BadInput, match="join"):
        made.step({0: np.zeros(64, np.float32)})
    with pytest.raises(BadInput, match="no slot 7"):
        made.join(7)
    made.join(0)
    with pytest.raises(BadInput, match="control"):
        made.steer(0, "sing")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="another model"):
        batch(1, own=2).resume(0, made.snapshot(0))
    with pytest.raises(ConfigError, match="vocabulary"):
        DuplexBatch(talking_model(), tiny_codec(), type(VOCABULARY)(["x"] * 3 + [f"w{i}" for i in range(9)]))
    with pytest.raises(ConfigError, match="codes"):
        DuplexBatch(talking_model(), tiny_codec(vocab=16), VOCABULARY)
    with pytest.raises(ConfigError, match="recognise"):
        DuplexBatch(talking_model(own=0, predicted=0), tiny_codec(), VOCABULARY)
    assert made.step({}) == {}


def test_latency_is_the_frame_the_delay_and_the_decoder() -> None:
    made = batch(1)
    frame = SIZE / 24_000
    assert latency_seconds(made.model, made.codec) == pytest.approx(2 * frame + made.codec.latency / 24_000)


def test_a_recorded_batch_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots that come, go, stand still, are steered, saved and taken up again; and a failed step."""
    model, codec = talking_model(heard=2), tiny_codec()
    plain, recorded = (DuplexBatch(model, codec, VOCABULARY, 3, recorded=r) for r in (False, True))
    assert plain._run == plain._step
    assert recorded._run != recorded._step
    frames = noise_frames(40, plain.frame_size)
    chance = np.random.default_rng(3)
    for i, frame in enumerate(frames):
        if i % 10 == 0:
            for batch in (plain, recorded):
                batch.join(i // 10 % 3, DuplexSettings(seed=i, text_top_k=0))
        if i == 25:
            for batch in (plain, recorded):
                batch.steer(0, "speak")
                batch.resume(2, batch.snapshot(1))
        moving = [s for s in range(3) if plain.used[s] and chance.random() < 0.7]
        ours, theirs = (b.step({s: frame * (s + 1) / 3 for s in moving}) for b in (plain, recorded))
        for slot in moving:
            assert np.array_equal(ours[slot].audio, theirs[slot].audio)
            assert dataclasses.replace(ours[slot], audio=frame) == dataclasses.replace(theirs[slot], audio=frame)
    mark = recorded.snapshot(0)

    def failing(*inputs: object) -> tuple[Tensor, ...]:
        run(*inputs)
        raise MemoryError

    run = recorded._run
    monkeypatch.setattr(recorded, "_run", failing)
    with pytest.raises(MemoryError):
        recorded.step({0: frames[0]})
    guarded = {path for path, _ in recorded.state._guarded()}
    assert all(torch.equal(mark[path], t) for path, t in recorded.snapshot(0).items() if path in guarded)


def test_a_session_reads_its_own_record_of_the_user() -> None:
    model, codec = talking_model(4, heard=2, heard_input=True), tiny_codec()

    def converse(recorded: bool = False) -> tuple[list[int], list[int]]:
        batch = DuplexBatch(model, codec, VOCABULARY, 1, recorded=recorded)
        batch.join(0, DuplexSettings(temperature=0, text_temperature=0))
        said, noted = [], []
        for frame in noise_frames(12, codec.frame_size):
            said.append(batch.step({0: frame})[0].token)
            noted.append(int(batch.state["noted"][0]) - 1)
        return said, noted

    said, noted = converse()
    assert len(set(noted)) > 1
    assert all(0 <= token < model.config.text_vocab for token in noted)
    assert converse(recorded=True) == (said, noted)
    model.heard_table.weight.data.zero_()
    assert converse() != (said, noted)
