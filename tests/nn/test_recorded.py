"""Recorded steps: the same numbers as the steps themselves, and no recording of what cannot be recorded."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quaver.nn.conv import CausalConv1d
from quaver.nn.packed import pack_linears
from quaver.nn.recorded import record
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
