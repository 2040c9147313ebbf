"""Law 2 and 3: the state tree belongs to the caller. Every kind of module is tried in one small stack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quaver.errors import BadInput
from quaver.nn.conv import CausalConv1d, CausalConvTranspose1d, ConvNeXtBlock
from quaver.nn.state import State, StreamingModule
from quaver.nn.stft import STFT, InverseSTFT
from quaver.nn.transformer import Transformer, TransformerConfig

from ..laws import randn, randomised

WIDTH = 8


class Stack(StreamingModule):
    """Convolutions of all kinds, a transformer, and a Fourier transform there and back."""

    def __init__(self) -> None:
        super().__init__()
        self.down = CausalConv1d(1, WIDTH, 5, stride=4)
        self.block = ConvNeXtBlock(WIDTH, 12)
        self.lm = Transformer(TransformerConfig(width=WIDTH, layers=2, heads=2, hidden=12, window=5, slack=6))
        self.up = CausalConvTranspose1d(WIDTH, 1, 6, 4)
        self.stft, self.istft = STFT(16, 4), InverseSTFT(16, 4)

    def init_state(self, batch: int) -> State:
        parts = ("down", "block", "lm", "up", "stft", "istft")
        return self._state_of(batch, **{name: getattr(self, name) for name in parts})

    def forward(self, x: Tensor, state: State) -> Tensor:
        """`[batch, 1, 4 * step]`, the same out."""
        y = self.block(self.down(x, state.child("down")), state.child("block"))
        y = self.lm(y.transpose(1, 2), state.child("lm")).transpose(1, 2)
        y = self.up(y, state.child("up"))
        return self.istft(self.stft(y[:, 0], state.child("stft")), state.child("istft"))[:, None]


@pytest.fixture(scope="module")
def stack() -> Stack:
    return randomised(Stack()).requires_grad_(False)


SLOTS = 3
STEPS = [randn(SLOTS, 1, 8, seed=i) for i in range(12)]  # 2 positions a step: 24 positions wrap a ring of 11


def after(stack: Stack, count: int) -> State:
    state = stack.init_state(SLOTS)
    for x in STEPS[:count]:
        stack(x, state)
    return state


def mask(*slots: int) -> Tensor:
    return torch.tensor([i in slots for i in range(SLOTS)])


def test_reset_of_one_slot_leaves_neighbours_alone(stack: Stack) -> None:
    state, whole, fresh = after(stack, 7), after(stack, 7), stack.init_state(SLOTS)
    state.reset(mask(1))
    for x in STEPS[7:]:
        out, expected, anew = stack(x, state), stack(x, whole), stack(x, fresh)
        assert torch.equal(out[[0, 2]], expected[[0, 2]])
        assert torch.equal(out[1], anew[1])


def test_a_frozen_slot_behaves_as_if_the_step_never_happened(stack: Stack) -> None:
    state, twin = after(stack, 6), after(stack, 6)
    frozen, moving = after(stack, 6), after(stack, 6)
    for x in STEPS[6:9]:
        with state.only(mask(0, 2)):
            out = stack(x, state)
        assert torch.equal(out[[0, 2]], stack(x, moving)[[0, 2]])
    for x in STEPS[9:]:
        out = stack(x, state)
        assert torch.equal(out[1], stack(x, frozen)[1])
        assert torch.equal(out[[0, 2]], stack(x, moving)[[0, 2]])
    assert not torch.equal(stack(STEPS[0], twin)[1], stack(STEPS[0], frozen)[1])  # the check above can fail


def test_freezing_ends_with_its_block_and_nests(stack: Stack) -> None:
    state = stack.init_state(SLOTS)
    with state.only(mask(0)):
        with pytest.raises(RuntimeError), state.child("lm").only(mask(1)):
            raise RuntimeError
        assert state.active is not None
        assert state.active.tolist() == [True, False, False]
    assert state.active is None
    for wrong in (torch.ones(2, dtype=torch.bool), torch.ones(SLOTS)):
        with pytest.raises(BadInput, match="BoolTensor"), state.only(wrong):
            pass


def test_slots_rewind_by_numbers_of_their_own_also_across_the_ring_s_end(stack: Stack) -> None:
    lm = stack.lm
    xs = randn(SLOTS, 24, WIDTH, seed=3)  # the ring holds 11
    straight, state = lm.init_state(SLOTS), lm.init_state(SLOTS)
    for i in range(12):
        lm(xs[:, i : i + 1], straight)
        lm(xs[:, i : i + 1], state)
    lm(randn(SLOTS, 4, WIDTH, seed=4), state)  # a draft of four, of which 4, 0 and 3 stand
    state.rewind(torch.tensor([0, 4, 1]))
    assert state["position"].tolist() == [16, 12, 15]
    state.rewind(torch.tensor([4, 0, 3]))
    for i in range(12, 24):
        x = xs[:, i : i + 1]
        assert torch.equal(lm(x, state), lm(x, straight))


def test_a_past_that_is_no_cache_cannot_be_rewound(stack: Stack) -> None:
    with pytest.raises(BadInput, match="cannot be rewound"):
        stack.init_state(SLOTS).rewind(torch.zeros(SLOTS, dtype=torch.long))


def test_a_state_survives_a_file(stack: Stack, tmp_path: Path) -> None:
    state = after(stack, 7)
    save_file(state.save(), tmp_path / "state.safetensors")
    restored = stack.init_state(SLOTS)
    restored.restore(load_file(tmp_path / "state.safetensors"))
    for x in STEPS[7:]:
        assert torch.equal(stack(x, state), stack(x, restored))


def test_a_saved_state_is_a_copy_and_a_foreign_one_is_refused(stack: Stack) -> None:
    state = after(stack, 2)
    saved = state.save()
    before = {k: v.clone() for k, v in saved.items()}
    stack(STEPS[2], state)
    assert all(torch.equal(before[k], saved[k]) for k in saved)
    with pytest.raises(BadInput, match="shape"):
        stack.init_state(2).restore(saved)
    with pytest.raises(BadInput, match="another model"):
        ConvNeXtBlock(3, 4).init_state(SLOTS).restore(saved)
    with pytest.raises(BadInput, match="slot"):
        stack.init_state(0)


@pytest.mark.parametrize("start", [0, 1, 4, 5, 6, 7])
@pytest.mark.parametrize("steps", [1, 3])
def test_rollback_is_as_if_nothing_had_been_stepped(stack: Stack, start: int, steps: int) -> None:
    """Up to `slack` = 6 positions back, also when those wrapped around the ring and wrote over its oldest places."""
    state, twin = after(stack, start), after(stack, start)
    mark = state.mark()
    for i in range(steps):
        stack(randn(SLOTS, 1, 8, seed=100 + i), state)
    state.rollback(mark)
    for x in STEPS[start : start + 4]:
        assert torch.equal(stack(x, state), stack(x, twin))


def test_rollback_of_one_slot_leaves_neighbours_alone(stack: Stack) -> None:
    state, twin, straight = after(stack, 5), after(stack, 5), after(stack, 5)
    mark = state.mark()
    for x in STEPS[5:8]:
        stack(x, state)
        stack(x, straight)
    state.rollback(mark, mask(2))
    for x in STEPS[8:10]:
        out = stack(x, state)
        assert torch.equal(out[2], stack(x, twin)[2])
        assert torch.equal(out[:2], stack(x, straight)[:2])


def test_key_value_caches_are_not_copied_into_a_mark(stack: Stack) -> None:
    marked = {path.split(".")[-1] for path in stack.init_state(1).mark()}
    assert "position" in marked
    assert not marked & {"keys", "values"}


def test_a_row_is_bit_identical_whatever_the_others_hold(stack: Stack) -> None:
    one, other = stack.init_state(SLOTS), stack.init_state(SLOTS)
    for i, x in enumerate(STEPS):
        y = randn(SLOTS, 1, 8, seed=50 + i) * 100
        y[1] = x[1]
        if i in (3, 8):
            other.reset(mask(0))  # a neighbour leaves, another joins
        moving = mask(1) if i % 2 else mask(0, 1)
        with other.only(moving):
            out = stack(y, other)
        assert torch.equal(stack(x, one)[1], out[1])


def test_nbytes_counts_the_tree() -> None:
    state = CausalConv1d(2, 2, 4).init_state(5)
    assert state.nbytes() == 5 * 2 * 3 * 4
