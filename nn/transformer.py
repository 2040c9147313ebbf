"""One transformer for every model here: RMSNorm, RoPE, SwiGLU, QK-norm, optional per-token adaLN, static KV state.

Shapes are `[batch, time, width]`. The key-value state is a ring of fixed size, so a stream of any length runs in
constant memory and every step costs the same; each slot has its own position.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from ..errors import BadInput
from .norm import RMSNorm, rms_norm
from .state import State, StreamingModule

__all__ = ["Transformer", "TransformerConfig"]


class TransformerConfig(BaseModel):
    """Sizes of a transformer.

    Attributes:
        window: how many positions back (itself included) a position may attend to, in training and in streaming.
        slack: how many further positions the ring cache holds. A chunk may be `slack + 1` long, and a rollback may go
            `slack` positions back.
        condition: width of the per-token adaLN condition, or None for none. modulation_rank: of the matrices that make
            shifts, scales and gates of it (None: full), which are a fifth of a small network's weights.
        causal: False lets every position see every other (and the module cannot stream).
        qk_norm: normalise queries and keys; off for published models that do not (Moshi). eps: of all RMSNorms.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = 256
    layers: int = 6
    heads: int = 4
    hidden: int = 688
    window: int = 512
    slack: int = 64
    rope_base: float = 10_000.0
    condition: int | None = None
    modulation_rank: int | None = None
    causal: bool = True
    dropout: float = 0.0
    qk_norm: bool = True
    eps: float = 1e-6

    @model_validator(mode="after")
    def _check(self) -> TransformerConfig:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must split into {self.heads} heads of even size")
        return self

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


def rope_tables(positions: Tensor, dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine tables `[*positions.shape, dim]` for `rotate` (Su et al. 2021).

    Angles are computed in float64: at position 90,000 (an hour at 25 Hz) float32 would be off by 0.004 rad.
    `positions` may be fractional (ARDiT's fractional RoPE).
    """
    rates = base ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim)
    angles = positions[..., None].double() * rates
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the halves of `x[..., dim]` by tables that broadcast to it: (a, b) -> (a cos - b sin, b cos + a sin)."""
    cos, sin = tables
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _same(x: Tensor) -> Tensor:
    return x


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`; a recording keeps the call that changes nothing."""
    return x if x.dtype == dtype else x.to(dtype)


class _Attention(StreamingModule):
    like: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.capacity = config.window + config.slack
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, eps=config.eps)
            self.k_norm = RMSNorm(config.head_dim, eps=config.eps)
        else:  # something that follows the module's device and dtype, for the state
            self.register_buffer("like", torch.zeros(()), persistent=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def init_state(self, batch: int) -> State:
        state = State(batch)
        # Not of `qkv`, which may be packed (nn/packed.py).
        weight = self.q_norm.weight if self.config.qk_norm else self.like
        for name in ("keys", "values"):
            shape = (self.config.heads, self.capacity, self.config.head_dim)
            state.add(name, *shape, dtype=weight.dtype, device=weight.device, write_only=True)
        return state

    def forward(
        self, x: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor | None, write: Tensor | None, state: State | None
    ) -> Tensor:
        batch, time, _ = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.config.heads, self.config.head_dim)
        v = qkv.select(2, 2).transpose(1, 2)
        # Queries and keys are normalised and rotated together: at batch 1 the count of operations is the cost.
        qk = qkv.narrow(2, 0, 2)
        if self.config.qk_norm:
            gain = torch.stack([self.q_norm.weight, self.k_norm.weight])[:, None]
            qk = rms_norm(qk, self.config.eps, gain)
        qk = _as(rotate(qk, tables), v.dtype)
        q, k = qk.permute(0, 2, 3, 1, 4).unbind(1)
        if state is not None and write is not None:
            held = state["keys"].dtype
            # Written for frozen slots too: the place lies past their position, so it holds nothing of value.
            k = _as(state["keys"].scatter_(2, write, _as(k, held)), v.dtype)
            v = _as(state["values"].scatter_(2, write, _as(v, held)), v.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=False)
        return self.out(y.transpose(1, 2).reshape(batch, time, -1))


class _Block(StreamingModule):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, eps=config.eps)
        self.attention = _Attention(config)
        self.mlp_norm = RMSNorm(config.width, eps=config.eps)
        self.gate_up = nn.Linear(config.width, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else _same
        self.modulation = _modulation(config)

    def init_state(self, batch: int) -> State:
        return self._state_of(batch, attention=self.attention)

    def forward(
        self,
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        mask: Tensor | None,
        write: Tensor | None,
        condition: Tensor | None,
        state: State | None,
    ) -> Tensor:
        child = None if state is None else state.child("attention")
        if self.modulation is None:
            x = x + self.dropout(self.attention(self.attention_norm(x), tables, mask, write, child))
            return x + self.dropout(self._mlp(self.mlp_norm(x)))
        assert condition is not None
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, -1)
        y = self.attention_norm(x) * (1 + scale1) + shift1
        x = x + gate1 * self.dropout(self.attention(y, tables, mask, write, child))
        y = self.mlp_norm(x) * (1 + scale2) + shift2
        return x + gate2 * self.dropout(self._mlp(y))

    def _mlp(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


def _modulation(config: TransformerConfig) -> nn.Module | None:
    """adaLN-zero (Peebles & Xie 2023): every block starts as the identity."""
    if not config.condition:
        return None
    rank = config.modulation_rank
    last = nn.Linear(rank or config.condition, 6 * config.width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(config.condition, rank, bias=False), last) if rank else last


class Transformer(StreamingModule):
    """A stack of blocks and a final norm; `[batch, time, width] -> [batch, time, width]`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.capacity = config.window + config.slack
        self.layers = nn.ModuleList(self._block() for _ in range(config.layers))
        self.norm = self._last_norm()
        self._init_weights()

    def _block(self) -> StreamingModule:
        return _Block(self.config)

    def _last_norm(self) -> RMSNorm | None:
        return RMSNorm(self.config.width, eps=self.config.eps)

    def _init_weights(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and "modulation" not in name:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / ((2 * self.config.layers) ** 0.5 if residual else 1.0))

    def init_state(self, batch: int) -> State:
        if not self.config.causal:
            raise BadInput("a non-causal transformer cannot stream; build it with causal=True")
        state = self._state_of(batch, layers=self.layers)
        state.add("position", dtype=torch.long, device=next(self.parameters()).device)
        return state

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Runs the stack, offline or from where each slot of `state` stands.

        Args:
            x: `[batch, time, width]`.
            condition: `[batch, time or 1, condition]` for adaLN.
            mask: BoolTensor `[batch or 1, 1, time, time]`, True = may attend; replaces the causal window (offline
            only).
            positions: `[batch or 1, time]`, integer or fractional, for RoPE; default 0, 1, 2, ... from where a slot
            stands. In a stream they move nothing else.

        Raises:
            BadInput: a streamed chunk is longer than the ring cache allows.
        """
        time = x.shape[1]
        if state is None:
            write = None
            if positions is None:
                positions = torch.arange(time, device=x.device)[None]
            if mask is None:
                mask = self._offline_mask(time, x.device)
        else:
            if time == 0:
                return x
            if time > self.config.slack + 1:
                raise BadInput(f"chunk of {time} positions; this cache takes at most {self.config.slack + 1} at a time")
            at = state["position"][:, None] + torch.arange(time, device=x.device)
            places, mask = self._ring(at, state)
            write = places[:, None, :, None].expand(-1, self.config.heads, -1, self.config.head_dim)
            positions = at if positions is None else positions
            if x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
                # What attention would make of a truth value, once for all layers.
                mask = torch.where(mask, 0.0, float("-inf")).to(x.dtype)
            state.update("position", state["position"] + time)
        cos, sin = rope_tables(positions, self.config.head_dim, self.config.rope_base)
        tables = _as(cos[:, :, None, None], x.dtype), _as(sin[:, :, None, None], x.dtype)
        for i, layer in enumerate(self.layers):
            child = None if state is None else state.child(f"layers.{i}")
            x = layer(x, tables, mask, write, condition, child)
        return x if self.norm is None else self.norm(x)

    def _offline_mask(self, time: int, device: torch.device) -> Tensor | None:
        if not self.config.causal:
            return None
        index = torch.arange(time, device=device)
        back = index[:, None] - index[None]
        return ((back >= 0) & (back < self.config.window))[None, None]

    def _ring(self, positions: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Where in the ring the positions `[batch, time]` are written, and what they may see of it."""
        return positions % self.capacity, self._ring_mask(positions)

    def _ring_mask(self, positions: Tensor) -> Tensor:
        """Which ring places each query may see: `[batch, 1, time, capacity]`.

        Place j holds the latest position that is j modulo the capacity, counted after this chunk is written.
        """
        last = positions[:, -1:]
        place = torch.arange(self.capacity, device=positions.device)[None]
        held = last - (last - place) % self.capacity
        back = positions[:, :, None] - held[:, None]
        return ((back >= 0) & (back < self.config.window) & (held[:, None] >= 0))[:, None]
