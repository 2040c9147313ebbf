"""Cross-attention backbone: speech steps that look at the text through attention (Koel-TTS, VAT, Parler).

The text never enters the sequence: stages of our transformer alternate with cross-attention over the encoded text,
whose keys and values live in the state, written once. Two aids keep the alignment monotonic:

- a beta-binomial prior on the attention, faded out in training (Koel-TTS, after Badlani et al. 2022);
- `relative`: interpolated relative position biases of VAT (Battenberg et al. 2024): the model moves a place p along
  the text, p = sum of softplus steps, and attention sees p - j through a learned bias that begins as a narrow
  Gaussian. With phones read in a bounded context, nothing depends on absolute position: it holds at untrained lengths.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ..errors import BadInput
from ..nn.norm import RMSNorm
from ..nn.state import State, StreamingModule
from ..nn.transformer import Transformer, TransformerConfig

__all__ = ["CrossConfig", "CrossOutput", "CrossStack", "beta_binomial_log_prior"]


class CrossConfig(BaseModel):
    """Attributes:
    stages: parts that the backbone's layers are split into, with cross-attention between them.
    heads: of the cross-attention. relative: VAT's monotonic place and position biases.
    distance: largest distance of the bias table, in text ids. spread: standard deviation of its first Gaussian.
    pace: text ids that a step advances at the start. capacity: text ids that a slot holds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: int = 3
    heads: int = 4
    relative: bool = True
    distance: int = 16
    spread: float = 2.5
    pace: float = 0.5
    capacity: int = 512


class CrossOutput(tuple):
    """`(hidden, log_attention, place)`: `[batch, time, width]`, `[batch, time, text]` (mean of all heads' attention, as
    log; None with a state), and `[batch, time]` (zeros unless `relative`)."""


def beta_binomial_log_prior(text: int, steps: int, scale: float = 0.5) -> Tensor:
    """Log-probabilities `[steps, text]` of a beta-binomial that moves from the first text id to the last."""
    n = max(text - 1, 1)
    t = torch.arange(1, steps + 1, dtype=torch.float64)[:, None]
    a, b = scale * t, scale * (steps + 1 - t)
    k = torch.arange(text, dtype=torch.float64)[None]

    def log_beta(x: Tensor, y: Tensor) -> Tensor:
        return x.lgamma() + y.lgamma() - (x + y).lgamma()

    choose = math.lgamma(n + 1) - (k + 1).lgamma() - (n - k + 1).clamp(min=1).lgamma()
    return (choose + log_beta(k + a, (n - k).clamp(min=0) + b) - log_beta(a, b)).float()


class _CrossAttention(StreamingModule):
    """Attention of `x` over a memory whose keys and values are given."""

    def __init__(self, width: int, config: CrossConfig) -> None:
        super().__init__()
        self.config, self.head_dim = config, width // config.heads
        self.norm = RMSNorm(width, eps=1e-6)
        self.query = nn.Linear(width, width, bias=False)
        self.memory = nn.Linear(width, 2 * width, bias=False)
        self.q_norm = RMSNorm(self.head_dim, eps=1e-6)
        self.k_norm = RMSNorm(self.head_dim, eps=1e-6)
        self.out = nn.Linear(width, width, bias=False)
        if config.relative:
            d = torch.arange(-config.distance, config.distance + 1).float()
            self.bias = nn.Parameter((-d.square() / (2 * config.spread**2)).expand(config.heads, -1).clone())

    def init_state(self, batch: int) -> State:
        state, weight = State(batch), self.query.weight
        for name in ("keys", "values"):
            shape = (self.config.heads, self.config.capacity, self.head_dim)
            state.add(name, *shape, dtype=weight.dtype, device=weight.device, write_only=True)
        return state

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Memory `[batch, text, width]` -> keys and values `[batch, head, text, dim]`."""
        batch, text, _ = memory.shape
        keys, values = self.memory(memory).view(batch, text, 2, self.config.heads, self.head_dim).unbind(2)
        return self.k_norm(keys).transpose(1, 2), values.transpose(1, 2)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, held: Tensor, place: Tensor, prior: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`x[batch, time, width]`, `held[batch, text]` -> the sum to add, and attention `[batch, head, time, text]`."""
        batch, time, width = x.shape
        query = self.q_norm(self.query(self.norm(x)).view(batch, time, self.config.heads, self.head_dim))
        scores = query.transpose(1, 2) @ keys.transpose(2, 3) / math.sqrt(self.head_dim)
        if self.config.relative:
            scores = scores + self._biases(place, keys.shape[2])
        if prior is not None:
            scores = scores + prior[:, None]
        scores = scores.masked_fill(~held[:, None, None], float("-inf"))
        attention = scores.softmax(-1)
        y = (attention @ values).transpose(1, 2).reshape(batch, time, width)
        return self.out(y), attention

    def _biases(self, place: Tensor, text: int) -> Tensor:
        """Biases `[batch, head, time, text]`, linear between the whole distances of the table."""
        far = self.config.distance
        d = (place[:, :, None] - torch.arange(text, device=place.device)).clamp(-far, far) + far
        low = d.detach().floor().long().clamp(max=2 * far - 1)
        share = (d - low)[:, None]
        table = self.bias.float()
        below, above = table[:, low].transpose(0, 1), table[:, low + 1].transpose(0, 1)
        return (below + (above - below) * share).to(self.bias.dtype)


class CrossStack(StreamingModule):
    """Stages of the transformer with cross-attention after each but the last."""

    def __init__(self, backbone: TransformerConfig, config: CrossConfig) -> None:
        super().__init__()
        if not 2 <= config.stages <= backbone.layers or backbone.layers % config.stages:
            raise BadInput(f"{backbone.layers} layers cannot be split into {config.stages} equal stages (at least 2)")
        self.settings, self.config = backbone, config
        stage = backbone.model_copy(update={"layers": backbone.layers // config.stages})
        self.stages = nn.ModuleList(Transformer(stage) for _ in range(config.stages))
        self.cross = nn.ModuleList(_CrossAttention(backbone.width, config) for _ in range(config.stages - 1))
        self.pace = nn.Linear(backbone.width, 1)
        nn.init.zeros_(self.pace.weight)
        nn.init.constant_(self.pace.bias, math.log(math.expm1(config.pace)))

    def init_state(self, batch: int) -> State:
        state = self._state_of(batch, stages=self.stages, cross=self.cross)
        device = self.pace.weight.device
        state.add("count", dtype=torch.long, device=device)
        state.add("place", dtype=torch.float64, device=device)
        return state

    def remember(self, memory: Tensor, state: State, slot: int) -> None:
        """Writes a slot's whole encoded text `[text, width]` (again, when more of it has arrived).

        Raises:
            BadInput: longer than `capacity`.
        """
        count = len(memory)
        if count > self.config.capacity:
            raise BadInput(f"a text of {count} ids is longer than the {self.config.capacity} that a slot holds")
        for i, cross in enumerate(self.cross):
            assert isinstance(cross, _CrossAttention)
            keys, values = cross.read(memory[None])
            child = state.child(f"cross.{i}")
            child["keys"][slot, :, :count], child["values"][slot, :, :count] = keys[0], values[0]
        state["count"][slot] = count

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        lengths: Tensor | None = None,
        state: State | None = None,
        prior: Tensor | None = None,
    ) -> CrossOutput:
        """`x[batch, time, width]` over `memory[batch, text, width]` of `lengths`, or over what a state remembers.

        Args:
            prior: log-prior `[batch, time, text]` to add to the scores (training).
        """
        if state is None:
            assert memory is not None
            assert lengths is not None
            held = torch.arange(memory.shape[1], device=x.device) < lengths[:, None]
        else:
            # An empty slot looks at place 0, which holds nothing, so that its softmax stays finite.
            capacity = self.config.capacity
            held = torch.arange(capacity, device=x.device) < state["count"].clamp(min=1)[:, None]
        place, total = x.new_zeros(x.shape[:2]), None
        for i, stage in enumerate(self.stages):
            x = stage(x, None if state is None else state.child(f"stages.{i}"))
            if i == len(self.cross):
                break
            if i == 0 and self.config.relative:
                place = self._places(x, state)
            cross = self.cross[i]
            assert isinstance(cross, _CrossAttention)
            if state is None:
                assert memory is not None
                keys, values = cross.read(memory)
            else:
                child = state.child(f"cross.{i}")
                keys, values = child["keys"], child["values"]
            added, attention = cross(x, keys, values, held, place, prior)
            x = x + added
            total = attention.mean(1) if total is None else total + attention.mean(1)
        assert total is not None
        log_attention = None if state is not None else (total / len(self.cross)).clamp(min=1e-8).log()
        return CrossOutput((x, log_attention, place))

    def _places(self, x: Tensor, state: State | None) -> Tensor:
        """Where in the text each step looks `[batch, time]`; it only moves forward."""
        steps = F.softplus(self.pace(x)[..., 0]).double()
        start = 0.0 if state is None else state["place"][:, None]
        places = start + steps.cumsum(1)
        if state is not None and x.shape[1]:
            state.update("place", places[:, -1])
        return places.float()
