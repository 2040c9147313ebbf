"""Flow matching and its vocoder: chunks equal the whole, the future stays unknown, every chunk costs the same."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quaver.codecs.mel import MelCodec, MelConfig
from quaver.errors import BadInput, ConfigError
from quaver.nn.noise import frame_noise
from quaver.tts.flow import FlowConfig, FlowModel, chunk_mask, cosine_times
from quaver.tts.flow_decoder import FlowDecoder, Prompt

from ..laws import TOLERANCE, chunkings, few, randn, randomised, split

FLOW: dict[str, Any] = {
    "vocab": 27,
    "levels": (3, 3, 3),
    "mels": 8,
    "patch": 2,
    "lookahead": 2,
    "chunk": 3,
    "first": 0,
    "steps": 3,
    "voices": ["a", "b"],
    "backbone": {"width": 16, "layers": 2, "heads": 2, "hidden": 16, "window": 9, "slack": 5, "condition": 12},
}
MEL: dict[str, Any] = {"hop": 16, "n_fft": 64, "mels": 8, "width": 8, "hidden": 12, "blocks": 2}
SEED = torch.tensor([7])


def flow_model(**changes: Any) -> FlowModel:
    torch.manual_seed(0)
    return randomised(FlowModel(FlowConfig.model_validate({**FLOW, **changes})), scale=0.1)


def mel_codec(head: str = "istft") -> MelCodec:
    torch.manual_seed(1)
    return randomised(MelCodec(MelConfig.model_validate({**MEL, "head": head})), scale=0.1)


MODEL, VOCODER = flow_model(), mel_codec()
WHO = MODEL.speaker(torch.tensor([1])).detach()[0]


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 27, (1, count), generator=torch.Generator().manual_seed(seed))


def pushed(sizes: list[int], codes: Tensor, **settings: Any) -> np.ndarray:
    decoder = FlowDecoder(MODEL, VOCODER, WHO, seed=7, **settings)
    edges = [0, *accumulate(sizes)]
    parts = [decoder.push(codes[:, a:b]) for a, b in pairwise(edges)]
    return np.concatenate([*parts, decoder.push(codes[:, edges[-1] :], final=True)])


# -- noise ------------------------------------------------------------------------------------------------------------
@few
@given(seed=st.integers(0, 2**40), start=st.integers(0, 10**6), cut=st.integers(1, 39))
def test_noise_is_a_function_of_the_absolute_frame(seed: int, start: int, cut: int) -> None:
    key, first = torch.tensor([seed]), torch.tensor([start])
    whole = frame_noise(key, first, 40, 8)
    parts = [frame_noise(key, first, cut, 8), frame_noise(key, first + cut, 40 - cut, 8)]
    assert torch.equal(torch.cat(parts, -1), whole)
    assert not torch.equal(frame_noise(key + 1, first, 40, 8), whole)


def test_noise_is_white_and_normal() -> None:
    x = frame_noise(torch.tensor([0, 1, 2**33]), torch.zeros(3, dtype=torch.long), 4000, 25)
    flat = x.flatten().double()
    assert abs(float(flat.mean())) < 0.01
    assert abs(float(flat.std()) - 1) < 0.01
    assert abs(float((flat**4).mean()) - 3) < 0.1
    assert flat.unique().numel() > 0.99 * flat.numel()
    for a, b in ((x[:, :, 1:], x[:, :, :-1]), (x[:, 1:], x[:, :-1]), (x[0], x[1])):
        assert abs(float((a * b).mean())) < 0.02
    assert torch.equal(x, frame_noise(torch.tensor([0, 1, 2**33]), torch.zeros(3, dtype=torch.long), 4000, 25))


# -- law 1 ------------------------------------------------------------------------------------------------------------
@few
@given(count=st.integers(1, 20), guidance=st.sampled_from([0.0, 0.7]))
def test_mel_in_chunks_equals_the_whole_with_the_chunk_mask(count: int, guidance: float) -> None:
    codes = torch.nn.functional.pad(tokens(count), (0, 2))[None]
    known = (torch.arange(count + 2) < count)[None]
    whole = MODEL.decode(codes, WHO[None], SEED, known=known, guidance=guidance)
    state = MODEL.init_state(1, guided=bool(guidance))
    parts = [
        MODEL.decode(codes[..., a : a + 5], WHO[None], SEED, known=known[:, a : a + 5], guidance=guidance, state=state)
        for a in range(0, count, 3)
    ]
    assert torch.allclose(torch.cat(parts, -1), whole, atol=TOLERANCE)
    assert whole.shape == (1, 8, 2 * count)


@few
@given(sizes=st.lists(st.integers(0, 9), max_size=7), prompted=st.booleans())
def test_however_tokens_are_pushed_the_audio_is_the_same(sizes: list[int], prompted: bool) -> None:
    codes = tokens(26)
    settings = {"prompt": Prompt(tokens(7, seed=3), randn(8, 14))} if prompted else {}
    whole, parts = pushed([], codes, **settings), pushed(sizes[:2], codes, **settings)
    assert len(whole) == len(parts) == 26 * 2 * 16
    assert np.abs(whole - parts).max() < TOLERANCE


@few
@given(count=st.integers(1, 20), first=st.integers(1, 3), prompted=st.booleans(), sizes=st.lists(st.integers(0, 9)))
def test_a_shorter_first_chunk_streams_as_it_runs_whole(
    count: int, first: int, prompted: bool, sizes: list[int]
) -> None:
    model, codes = flow_model(first=first), tokens(count)
    padded = torch.nn.functional.pad(codes, (0, 2))[None]
    known = (torch.arange(count + 2) < count)[None]
    state = model.init_state(1)
    edges = [0, *range(first, count, 3), count] if first < count else [0, count]
    parts = [
        model.decode(padded[..., a : b + 2], WHO[None], SEED, known=known[:, a : b + 2], state=state)
        for a, b in pairwise(edges)
    ]
    whole = model.decode(padded, WHO[None], SEED, known=known)
    assert torch.allclose(torch.cat(parts, -1), whole, atol=TOLERANCE)
    prompt = Prompt(tokens(8, seed=3), randn(8, 16)) if prompted else None
    one, many = (FlowDecoder(model, VOCODER, WHO, seed=7, prompt=prompt) for _ in range(2))
    cuts = [min(c, count) for c in [0, *accumulate(sizes)]]
    pieces = [many.push(codes[:, a:b]) for a, b in pairwise(cuts)]
    audio = np.concatenate([*pieces, many.push(codes[:, cuts[-1] :], final=True)])
    assert len(audio) == count * 2 * 16
    assert np.abs(audio - one.push(codes, final=True)).max() < TOLERANCE


def test_a_shorter_first_chunk_is_heard_earlier() -> None:
    for prompt in (None, Prompt(tokens(8, seed=3), randn(8, 16))):
        decoder = FlowDecoder(flow_model(first=2), VOCODER, WHO, prompt=prompt)
        assert len(decoder.push(tokens(3))) == 0
        assert len(decoder.push(tokens(1))) > 0  # two tokens, and two of look-ahead


def test_the_vocoder_streams_as_it_runs_whole() -> None:
    @few
    @given(chunks=chunkings())
    def check(chunks: list[int]) -> None:
        for head in ("istft", "harmonic"):
            codec = mel_codec(head)
            mel = randn(1, 8, sum(chunks))
            with torch.no_grad():
                whole = codec.decode(mel)
                state = codec.init_state(1)
                parts = [codec.decode(part, state) for part in split(mel, chunks)]
                streamed = torch.cat([*parts, codec.flush(state)], -1)[..., codec.latency :]
            assert torch.allclose(streamed, whole, atol=TOLERANCE)

    check()


def test_mel_frames_are_those_of_the_front() -> None:
    audio = randn(2, 1, 100) * 0.1
    mel, counts = VOCODER.encode(audio, torch.tensor([100, 40]))
    assert mel.shape == (2, 8, 7)
    assert counts.tolist() == [7, 3]
    state = VOCODER.init_state(2)
    padded = torch.nn.functional.pad(audio, (0, 12))
    parts = [VOCODER.encode(c, state=state)[0] for c in padded.split([32, 64, 16], -1)]
    assert torch.allclose(torch.cat(parts, -1), mel, atol=1e-5)
    with pytest.raises(BadInput):
        VOCODER.decode(randn(1, 5, 3))


# -- law 4, and cost --------------------------------------------------------------------------------------------------
def test_later_tokens_do_not_change_what_was_said_beyond_chunk_and_look_ahead() -> None:
    codes = tokens(20)[None]
    other = codes.clone()
    other[..., 11] = (other[..., 11] + 1) % 27
    a, b = (MODEL.decode(c, WHO[None], SEED) for c in (codes, other))
    changed = ((a - b).abs().amax((0, 1)) > 1e-6).nonzero().flatten() // 2
    # Token 11 is look-ahead of position 9, whose chunk begins at 9.
    assert int(changed[0]) == 9


def test_every_chunk_costs_the_same() -> None:
    """CosyVoice issue 755: there the prefix is run again for every chunk."""
    ran: list[tuple[int, ...]] = []
    hook = MODEL.backbone.register_forward_pre_hook(lambda module, inputs: ran.append(tuple(inputs[0].shape)))
    decoder = FlowDecoder(MODEL, VOCODER, WHO)
    costs, sizes = [], []
    for i in range(12):
        ran.clear()
        decoder.push(tokens(3, seed=i))
        costs.append(list(ran))
        sizes.append(decoder.state.nbytes())
    hook.remove()
    assert costs[1] == costs[-1]
    assert len(costs[-1]) == 2 * 3  # two branches, three Euler steps
    assert len(set(sizes)) == 1


def test_two_streams_interleaved_equal_each_alone() -> None:
    """CosyVoice PR 1849."""
    a, b = tokens(15, seed=1), tokens(15, seed=2)
    alone = pushed([5, 5], a)
    one, two = FlowDecoder(MODEL, VOCODER, WHO, seed=7), FlowDecoder(MODEL, VOCODER, WHO, seed=8)
    parts = []
    for i in range(3):
        parts.append(one.push(a[:, 5 * i : 5 * i + 5], final=i == 2))
        two.push(b[:, 5 * i : 5 * i + 5], final=i == 2)
    assert np.array_equal(np.concatenate(parts), alone)


def test_a_batch_equals_its_items() -> None:
    codes = torch.stack([tokens(11), tokens(11, seed=5)])
    who = MODEL.speaker(torch.tensor([0, 1])).detach()
    seeds = torch.tensor([3, 4])
    batch = MODEL.decode(codes, who, seeds)
    for i in range(2):
        alone = MODEL.decode(codes[i : i + 1], who[i : i + 1], seeds[i : i + 1])
        assert torch.allclose(batch[i], alone[0], atol=TOLERANCE)


# -- guidance, prompt, masks ------------------------------------------------------------------------------------------
def test_guidance_zero_is_the_plain_flow_and_more_of_it_is_not() -> None:
    codes = tokens(8)[None]
    plain = MODEL.decode(codes, WHO[None], SEED, guidance=0.0)
    assert not torch.allclose(plain, MODEL.decode(codes, WHO[None], SEED, guidance=0.7), atol=1e-3)
    assert torch.allclose(plain, MODEL.decode(codes, WHO[None], SEED, guidance=1e-9), atol=1e-5)


def test_a_prompt_is_not_heard_but_matters() -> None:
    codes = tokens(9)
    prompt = Prompt(tokens(8, seed=3), randn(8, 16))
    plain, given = pushed([], codes), pushed([], codes, prompt=prompt)
    assert len(plain) == len(given)
    other = pushed([], codes, prompt=Prompt(prompt.tokens, prompt.mel + 1))
    assert np.abs(given - other).max() > 1e-4
    with pytest.raises(BadInput, match="at least 3 tokens"):
        pushed([], codes, prompt=Prompt(tokens(2), randn(8, 4)))
    with pytest.raises(BadInput, match="same speech"):
        pushed([], codes, prompt=Prompt(tokens(6), randn(8, 5)))


def test_chunk_masks_by_hand() -> None:
    mask = chunk_mask(5, 2, 3)[0, 0].int().tolist()
    assert mask == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert bool(chunk_mask(4, 0, 1).all())


def test_times_rise_from_zero_to_one_slowly_first() -> None:
    times = cosine_times(8)
    steps = [b - a for a, b in pairwise(times)]
    assert times[0] == 0
    assert times[-1] == 1
    assert steps == sorted(steps)


def test_every_input_matters() -> None:
    codes = tokens(8)[None]
    base = MODEL.decode(codes, WHO[None], SEED)
    other = MODEL.speaker(torch.tensor([0])).detach()
    for changed in (
        MODEL.decode((codes + 1) % 27, WHO[None], SEED),
        MODEL.decode(codes, other, SEED),
        MODEL.decode(codes, WHO[None], SEED + 1),
    ):
        assert not torch.allclose(base, changed, atol=1e-3)


def test_codec_codes_are_read_by_tables() -> None:
    model = flow_model(codebooks=2, vocab=5, levels=())
    codes = torch.randint(0, 5, (1, 2, 8), generator=torch.Generator().manual_seed(0))
    assert model.decode(codes, WHO[None], SEED).isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(BadInput, match="look-ahead"):
        MODEL.decode(tokens(2)[None], WHO[None], SEED)
    with pytest.raises(BadInput, match="by name"):
        MODEL.speaker(None, randn(1, 4))
    with pytest.raises(ConfigError, match="mel bins"):
        FlowDecoder(flow_model(mels=9), VOCODER, WHO)
    for wrong in (
        {"chunk": 7},
        {"levels": (3, 3)},
        {"steps": 0},
        {"backbone": {**FLOW["backbone"], "condition": None}},
    ):
        with pytest.raises(ValueError):
            FlowConfig.model_validate({**FLOW, **wrong})


def test_no_tokens_are_no_audio() -> None:
    decoder = FlowDecoder(MODEL, VOCODER, WHO)
    assert len(decoder.push(torch.zeros(1, 0, dtype=torch.long))) == 0
    assert len(decoder.push(torch.zeros(1, 0, dtype=torch.long), final=True)) == 0


# -- training path ----------------------------------------------------------------------------------------------------
def test_padding_does_not_enter_the_loss() -> None:
    model = flow_model()
    codes, mel = tokens(6)[None], randn(1, 8, 12)
    prompt, dropped = torch.zeros(1, 6, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
    known = (torch.arange(6) < 4)[None]

    def loss(mel: Tensor, codes: Tensor, chunk: int) -> float:
        torch.manual_seed(0)
        return float(model.loss(mel, codes, known, WHO[None], prompt, dropped, chunk).detach())

    for chunk in (0, 3):
        other_mel, other_codes = mel.clone(), codes.clone()
        other_mel[..., 8:] += 5
        other_codes[..., 4:] = 0
        assert loss(mel, codes, chunk) == pytest.approx(loss(other_mel, other_codes, chunk), abs=1e-5)
        assert loss(mel, (codes + 1) % 27, chunk) != pytest.approx(loss(mel, codes, chunk), abs=1e-4)
