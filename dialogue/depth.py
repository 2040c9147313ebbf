"""The depth transformer: the codes of one frame, one after the other, with weights of their own for each level.

As in Moshi (Défossez et al. 2024, section 3.3; github.com/kyutai-labs/moshi): no positional embedding, for the weights
of a step tell the steps apart; a schedule may let several levels share a set of weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from ..nn.norm import RMSNorm

__all__ = ["DepthConfig", "DepthTransformer"]


class DepthConfig(BaseModel):
    """Sizes of the depth transformer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = 128
    layers: int = 2
    heads: int = 4
    hidden: int = 344
    eps: float = 1e-6

    @model_validator(mode="after")
    def _check(self) -> DepthConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must split into {self.heads} heads")
        return self


Cache = list[tuple[Tensor, Tensor]]
"""Keys and values `[n, heads, levels so far, head_dim]` of each layer; lives within one frame."""


class _Block(nn.Module):
    def __init__(self, config: DepthConfig, sets: int) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm = RMSNorm(width, eps=config.eps)
        self.qkv = _linears(sets, width, 3 * width)
        self.out = _linears(sets, width, width)
        self.mlp_norm = RMSNorm(width, eps=config.eps)
        self.gate_up = _linears(sets, width, 2 * config.hidden)
        self.down = _linears(sets, config.hidden, width)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[n, level, 3 * width]` -> queries, keys, values `[n, heads, level, head_dim]`."""
        q, k, v = x.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor, schedule: Sequence[int]) -> Tensor:
        q, k, v = self._heads(_each(self.qkv, self.attention_norm(x), schedule))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + _each(self.out, y.transpose(1, 2).flatten(2), schedule)
        gate, up = _each(self.gate_up, self.mlp_norm(x), schedule).chunk(2, -1)
        return x + _each(self.down, F.silu(gate) * up, schedule)

    def step(self, x: Tensor, which: int, held: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One level `[n, width]` with the set of weights `which`."""
        q, k, v = self._heads(self.qkv[which](self.attention_norm(x))[:, None])
        if held is not None:
            k, v = torch.cat([held[0], k], 2), torch.cat([held[1], v], 2)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out[which](y.flatten(1))
        gate, up = self.gate_up[which](self.mlp_norm(x)).chunk(2, -1)
        return x + self.down[which](F.silu(gate) * up), (k, v)


class DepthTransformer(nn.Module):
    """Over the levels of a frame.

    Args:
        schedule: the set of weights of each level, such as (0, 1, 2, 2).
    """

    def __init__(self, config: DepthConfig, schedule: Sequence[int]) -> None:
        super().__init__()
        self.config, self.schedule = config, tuple(schedule)
        self.layers = nn.ModuleList(_Block(config, max(schedule) + 1) for _ in range(config.layers))
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = ".out." in name or ".down." in name
                nn.init.normal_(parameter, std=config.width**-0.5 / ((2 * config.layers) ** 0.5 if residual else 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Teacher-forced: `[n, level, width]` -> `[n, level, width]`."""
        for layer in self.layers:
            x = layer(x, self.schedule)
        return x

    def step(self, x: Tensor, level: int, cache: Cache) -> Tensor:
        """The next level `[n, width]`; `cache` is an empty list at level 0 and grows with the levels."""
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, _Block)
            x, held = layer.step(x, self.schedule[level], cache[i] if level else None)
            cache[i : i + 1] = [held]
        return x


def _linears(sets: int, inputs: int, outputs: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(inputs, outputs, bias=False) for _ in range(sets))


def _each(layers: nn.ModuleList, x: Tensor, schedule: Sequence[int]) -> Tensor:
    """Level k of `x[n, level, width]` through the layer `schedule[k]`."""
    return torch.stack([layers[which](x[:, k]) for k, which in enumerate(schedule)], 1)
