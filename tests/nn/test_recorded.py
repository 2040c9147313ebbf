"""Recorded steps: the same numbers as the steps themselves, and no recording of what cannot be recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quaver.nn import recorded
from quaver.nn.conv import CausalConv1d
from quaver.nn.packed import pack_linears
from quaver.nn.recorded import record, record_steps, stepped
from quaver.nn.state import State
from quaver.nn.transformer import Transformer, TransformerConfig

from ..laws import randomised

SLOTS, WIDTH = 3, 128
CONFIG = TransformerConfig(width=WIDTH, layers=2, heads=2, hidden=96, window=6, slack=2)


def trials(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    noise = torch.randn(count, SLOTS, 1, WIDTH, generator=torch.Generator().manual_seed(1))
    return [(x, torch.tensor([True, i % 2 == 0, i == 0])) for i, x in enumerate(noise)]


class Net(nn.Module):
    """A transformer (packed where it can be) and a convolution, on slots."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transformer = randomised(Transformer(CONFIG), scale=0.1)
        self.conv = randomised(CausalConv1d(WIDTH, WIDTH, 3), scale=0.1)
        pack_linears(self.transformer)
        self.state = State(SLOTS)
        self.state.child("t", self.transformer)
        self.state.child("c", self.conv)

    def step(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        with self.state.only(mask):
            y = self.transformer(x, self.state.child("t"))
            return y, self.conv(y.transpose(1, 2), self.state.child("c"))


@given(masks=st.lists(st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS), min_size=1, max_size=12))
@settings(max_examples=8, deadline=None)
def test_a_recording_gives_the_very_bits_of_the_step(masks: list[list[bool]]) -> None:
    """Through the ring's end, with any slots frozen, and a rollback in between."""
    plain, net = Net().eval(), Net().eval()
    before = [t.clone() for _, t in net.state.tensors()]
    recorded = record(net.step, net.state, [net.transformer, net.conv], trials())
    assert recorded is not None
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, net.state.tensors(), strict=True))
    dice = torch.Generator().manual_seed(2)
    with torch.inference_mode():
        for i, mask in enumerate(masks):
            x, moving = torch.randn(SLOTS, 1, WIDTH, generator=dice), torch.tensor(mask)
            mark = net.state.mark()
            if i % 3 == 1:  # taken back, as a batch does when a step fails
                recorded(x + 1, moving)
                net.state.rollback(mark)
            wanted, got = plain.step(x, moving), recorded(x, moving)
            assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
            for (path, a), (_, b) in zip(plain.state._guarded(), net.state._guarded(), strict=True):
                assert torch.equal(a, b), path


def test_a_step_that_looks_at_numbers_is_not_recorded() -> None:
    state = State(SLOTS)
    state.add("count", 1)

    def step(x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        seen = int(state["count"][0, 0])  # a recording would keep the first one for ever
        state.update("count", state["count"] + 1)
        return (x * seen,)

    assert record(step, state, [], trials()) is None
    assert not state["count"].any()


def test_a_step_that_cannot_be_recorded_stays_as_it_is() -> None:
    state = State(SLOTS)

    def step(x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("no such operation in a recording")

    assert record(step, state, [], trials()) is None


def test_the_state_holds_other_tensors_for_a_while() -> None:
    net = Net()
    own = [t for _, t in net.state.tensors()]
    others = [t + 1 for t in own]
    with net.state.holding(others):
        assert all(a is b for (_, a), b in zip(net.state.tensors(), others, strict=True))
    assert all(a is b for (_, a), b in zip(net.state.tensors(), own, strict=True))


# -- steps of a stream ------------------------------------------------------------------------------------------------
def network(**sizes: Any) -> Transformer:
    torch.manual_seed(3)
    return Transformer(TransformerConfig(width=16, layers=2, heads=2, hidden=24, window=8, slack=3, **sizes)).eval()


def run_steps(module: Transformer, state: State, count: int, through: Any, seed: int = 0) -> Tensor:
    """`count` steps of one position; every third, only the even slots move."""
    dice = torch.Generator().manual_seed(seed)
    out = []
    for i in range(count):
        moving = torch.arange(state.batch) % 2 == 0 if i % 3 == 2 else torch.ones(state.batch, dtype=torch.bool)
        with state.only(moving):
            out.append(through(module, torch.randn(state.batch, 1, 16, generator=dice), state)[moving])
    return torch.cat(out)


@pytest.mark.parametrize("slots", [1, 3])
@torch.inference_mode()
def test_steps_from_a_recording_are_those_of_the_module(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over a second state, which is bound to the same recording, and after a rollback and a longer chunk."""
    monkeypatch.setattr(recorded, "AFTER", 5)
    module = network()
    for seed in (0, 1):
        mine, plain = module.init_state(slots), module.init_state(slots)
        for state in (mine, plain):
            module(torch.ones(slots, 3, 16), state)
        a = run_steps(module, mine, 20, stepped, seed)
        b = run_steps(module, plain, 20, lambda m, x, s: m(x, s), seed)
        assert torch.equal(a, b)
        assert mine.recorded is not None
        mark = mine.mark()
        again = run_steps(module, mine, 3, stepped, 7)
        mine.rollback(mark)
        assert torch.equal(run_steps(module, mine, 3, stepped, 7), again)
        run_steps(module, plain, 3, lambda m, x, s: m(x, s), 7)
        chunk = torch.ones(slots, 2, 16)
        assert torch.equal(stepped(module, chunk, mine), module(chunk, plain))
        assert all(torch.equal(x, y) for (_, x), (_, y) in zip(mine.tensors(), plain.tensors(), strict=True))


@torch.inference_mode()
def test_a_recording_is_made_when_asked_for_and_never_when_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = network(), torch.randn(2, 1, 16)
    state = module.init_state(2)
    before = {path: tensor.clone() for path, tensor in state.tensors()}
    assert record_steps(module, x, state)
    assert all(torch.equal(tensor, before[path]) for path, tensor in state.tensors())
    stepped(module, x, state)
    assert state.recorded is not None  # at the first step
    monkeypatch.setenv(recorded.SWITCH, "0")
    other = network()
    state = other.init_state(2)
    assert not record_steps(other, x, state)
    stepped(other, x, state)
    assert state.recorded is None


@torch.inference_mode()
def test_layers_that_were_exchanged_are_recorded_anew() -> None:
    module, x = network(), torch.randn(1, 1, 16)
    assert record_steps(module, x, module.init_state(1))
    module.layers[0].down = torch.nn.Linear(24, 16, bias=False)
    mine, plain = module.init_state(1), module.init_state(1)
    assert torch.equal(stepped(module, x, mine), module(x, plain))
    assert record_steps(module, x, mine)
    assert torch.equal(stepped(module, x, mine), module(x, plain))


def test_steps_with_gradients_or_in_training_are_not_recorded() -> None:
    module, x = network(), torch.randn(1, 1, 16, requires_grad=True)
    assert not record_steps(module, x, module.init_state(1))
    module.train()
    with torch.no_grad():
        assert not record_steps(module, x.detach(), module.init_state(1))
