"""Law 5: the training path is the path in use. Law 3: a batch equals its items."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quaver.tts.generate import Generation, Request
from quaver.tts.heads import CategoricalHead
from quaver.tts.lm import SpeechLM, phone_features
from quaver.tts.sampling import SamplingConfig
from quaver.tts.token_heads import DepthHead

from ..laws import TOLERANCE, randn
from .conftest import tiny_lm

PHONES = ("h", "ə", "l", ",", "w", "ɜː", "l", "d", "?")


def generated(lm: SpeechLM, request: Request) -> tuple[Tensor, list[int], Tensor]:
    """Codes of every step `[1, K, step]`, the pointer of every frame, and hidden states `[1, step, width]`."""
    seen: list[Tensor] = []
    hook = lm.advance.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    generation = Generation(lm)
    plan = generation.join(0, request)
    while not plan.done:
        generation.tick()
    hook.remove()
    return torch.stack(plan.steps, -1)[None], plan.pointers, torch.stack(seen, 1)


def taught(lm: SpeechLM, request: Request, steps: Tensor, pointers: list[int]) -> Tensor:
    """Hidden states by teacher forcing, with the inputs that the training task makes."""
    f = request.features
    pointer = torch.tensor([pointers])
    begins = F.pad(pointer[:, 1:] != pointer[:, :-1], (1, 0), value=True)
    index = torch.arange(len(pointers))
    progress = index - torch.where(begins, index, 0).cummax(-1).values
    extra = lm.pattern.extra
    if extra:
        pointer, progress = (F.pad(x.float(), (0, extra), mode="replicate").long() for x in (pointer, progress))
    encoded = lm.phones(f.phones[None], f.word_start[None], f.upcoming[None])
    voice, rate = torch.tensor([request.voice]), torch.zeros(1)
    return lm.hidden(lm.shift(steps), encoded, pointer, progress, voice, rate)


DEPTH = {"head": "depth", "depth": {"width": 8, "layers": 1, "heads": 2, "hidden": 8}}


@pytest.mark.parametrize("head", [{"chain": True}, {"chain": False}, DEPTH], ids=["chain", "parallel", "depth"])
@pytest.mark.parametrize("pattern", ["parallel", "delay", "delay:0,2,1"])
def test_teacher_forced_equals_step_by_step(pattern: str, head: dict[str, Any]) -> None:
    lm = tiny_lm(pattern=pattern, **head)
    request = Request(phone_features(PHONES, {0, 4}), voice=1, seed=3, sampling=SamplingConfig(temperature=1.5))
    with torch.no_grad():
        steps, pointers, hidden = generated(lm, request)
        forced = taught(lm, request, steps, pointers)
        assert forced.shape == hidden.shape
        assert torch.allclose(forced, hidden, atol=TOLERANCE)
        codes = steps[0].T
        assert isinstance(lm.head, CategoricalHead | DepthHead)
        for a, b in zip(lm.head.logits(forced[0], codes), lm.head.logits(hidden[0], codes), strict=True):
            assert torch.allclose(a, b, atol=1e-3)
        assert torch.allclose(lm.advance(forced), lm.advance(hidden), atol=1e-3)
    assert pointers[0] == 0
    assert len(pointers) + lm.pattern.extra == steps.shape[-1]
    valid = lm.pattern.valid(len(pointers))
    assert torch.equal(steps[0] != lm.config.vocab, valid)


def test_streamed_hidden_states_equal_the_whole() -> None:
    lm = tiny_lm()
    previous = torch.randint(12, (2, 3, 60))
    pointer = torch.arange(60).expand(2, 60) // 7
    with torch.no_grad():
        encoded = randn(2, 10, 8)
        rest = (torch.tensor([0, 1]), torch.tensor([0.1, -0.1]))
        whole = lm.hidden(previous, encoded, pointer, pointer * 0, *rest)
        state = lm.init_state(2)
        parts = [
            lm.hidden(previous[..., i : i + 4], encoded, pointer[:, i : i + 4], pointer[:, :4] * 0, *rest, state=state)
            for i in range(0, 60, 4)
        ]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=TOLERANCE)


def test_a_batch_equals_its_items_up_to_the_last_phone() -> None:
    """What lies ahead of the last phone must not depend on how much padding another item brings."""
    lm = tiny_lm()
    short, long = phone_features(("h", "iː", "."), {0}), phone_features(PHONES, {0, 4})

    def run(phones: Tensor, word_start: Tensor, upcoming: Tensor) -> Tensor:
        with torch.no_grad():
            encoded = lm.phones(phones, word_start, upcoming)
            pointer = torch.arange(4)[None].expand(len(phones), 4)
            none = torch.full((len(phones), 3, 4), 12)
            zero = torch.zeros(len(phones), dtype=torch.long)
            return lm.hidden(none, encoded, pointer, pointer * 0, zero, zero.float())

    parts = [(getattr(short, n), getattr(long, n)) for n in ("phones", "word_start", "upcoming")]
    batch = run(*(torch.stack([F.pad(a, (0, len(b) - len(a))), b]) for a, b in parts))
    assert torch.allclose(batch[0], run(*(a[None] for a, _ in parts))[0], atol=TOLERANCE)
    assert torch.allclose(batch[1], run(*(b[None] for _, b in parts))[0], atol=TOLERANCE)


def test_phones_are_read_with_a_bounded_look_ahead() -> None:
    """Text may arrive in pieces: a phone's encoding depends on `context` phones ahead, and on no more."""
    lm = tiny_lm()
    assert lm.phones.context == 4
    phones = torch.randint(2, 30, (1, 12))
    other = phones.clone()
    other[0, 9] += 1
    with torch.no_grad():
        zero = torch.zeros_like(phones)
        a, b = lm.phones(phones, zero, zero)[0], lm.phones(other, zero, zero)[0]
    changed = ((a - b).abs().amax(-1) > 1e-5).nonzero().flatten().tolist()
    assert changed[0] == 9 - 4


def test_features_tell_the_kind_of_the_next_pause_and_where_words_begin() -> None:
    f = phone_features(("h", ",", "iː", "?"), {0, 2})
    assert f.upcoming.tolist() == [1, 1, 1, 3, 3]
    assert f.word_start.tolist() == [0, 1, 0, 1, 0]
    assert len(f) == 5
    assert phone_features((), set()).upcoming.tolist() == [0]
    assert phone_features(("h",), set()).upcoming.tolist() == [0, 0]


def test_every_input_matters() -> None:
    lm = tiny_lm()
    f = phone_features(PHONES, {0, 4})
    base = {"voice": torch.zeros(1).long(), "rate": torch.zeros(1), "progress": torch.zeros(1, 2).long()}

    def run(phones: Tensor, **changes: Tensor) -> Tensor:
        a = base | changes
        encoded = lm.phones(phones[None], f.word_start[None], f.upcoming[None])
        previous = a.get("previous", torch.full((1, 3, 2), 12))
        return lm.hidden(previous, encoded, torch.tensor([[0, 1]]), a["progress"], a["voice"], a["rate"])

    with torch.no_grad():
        first = run(f.phones)
        other = f.phones.clone()
        other[2] += 1
        changed = [
            run(other),
            run(f.phones, voice=torch.ones(1).long()),
            run(f.phones, rate=torch.ones(1)),
            run(f.phones, progress=torch.ones(1, 2).long()),
            run(f.phones, previous=torch.zeros(1, 3, 2).long()),
        ]
    assert all(not torch.allclose(first, c, atol=1e-5) for c in changed)
