"""Linear layers for inference on a CPU: half-precision weights (`pack_linears`), or float32 in the order that a step
reads them in (`lay_out_linears`).

A step of a small model reads all weights once and computes little: it costs what reading them costs. FBGEMM keeps them
packed as float16 and widens them in registers; activations and sums stay float32, so nothing of a row depends on its
neighbours (dynamic int8 would take its scale from the whole batch), nor on its place among them (`_spare`). Measured on
an AVX2 core, 256 x 1376: 129 -> 62 us for one row, 301 -> 113 us for eight.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PackedLinear", "can_pack", "lay_out_linears", "pack_linears"]

LARGEST = 65_504.0
"""Of float16: a larger weight cannot be packed."""


class PackedLinear(nn.Module):
    """`y = x W^T + b` with W in packed float16; `x[..., row, in] -> [..., row, out]`, float32. For inference
    only: no gradients, and its weights are not in the state dict."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.packed: Any = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach().float(), bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        spare = _spare(rows)
        if not spare:
            return _multiply(x, self.packed)
        padded = nn.functional.pad(x.reshape(rows, self.in_features), (0, 0, 0, spare))
        return _multiply(padded, self.packed)[:rows].view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _multiply(x: Tensor, packed: Any) -> Tensor:
    return torch.ops.quantized.linear_dynamic_fp16.default(x, packed)  # half the overhead of the bare name


@cache
def _spare(rows: int) -> int:
    """How many rows to add to a batch of so many, so that each row is summed in the same order.

    FBGEMM cuts a batch into blocks of at most six rows, and its kernels for one and for two rows sum in another order
    than the larger ones: with AVX2, the last two of 32 equal rows came out differently from the others, by rounding.
    A slot's answer would then depend on which slot it got. Which numbers of rows are cut badly differs from processor
    to processor and not from layer to layer, so it is tried, once for each number.
    """
    dice = torch.Generator().manual_seed(0)
    row, weight = torch.randn(1, 256, generator=dice), torch.randn(16, 256, generator=dice)
    packed = torch.ops.quantized.linear_prepack_fp16(weight, None)
    for spare in range(7):
        out = _multiply(row.expand(rows + spare, -1).contiguous(), packed)
        if torch.equal(out, out[:1].expand_as(out)):
            return spare
    return 0


def can_pack() -> bool:
    """Whether this torch and this processor have the kernel (x86 with FBGEMM)."""
    return "fbgemm" in torch.backends.quantized.supported_engines and hasattr(
        torch.ops.quantized, "linear_dynamic_fp16"
    )


def pack_linears(module: nn.Module, smallest: int = 4096) -> int:
    """Replaces the linear layers of a CPU model in place; returns how many.

    Layers with fewer than `smallest` weights stay, as do weights that float16 cannot hold, shared weights, and
    everything where the kernel is missing: the model then runs as it did.
    """
    if not can_pack():
        return 0
    owners: dict[int, int] = {}
    for parameter in (p for m in module.modules() for p in m.parameters(recurse=False)):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and _fits(child, smallest) and owners[id(child.weight)] == 1:
                setattr(parent, name, PackedLinear(child))
                count += 1
    return count


def _fits(linear: nn.Linear, smallest: int) -> bool:
    weight = linear.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or weight.numel() < smallest:
        return False
    return bool(weight.detach().abs().max() <= LARGEST)


def lay_out_linears(module: nn.Module, smallest: int = 4096) -> int:
    """Stores the float32 weights of a CPU model's widening layers (more outputs than inputs) input by input, in place;
    returns how many. Shapes, names and results stay (to rounding: sums are made in another order).

    One or two rows times weights in this order read memory once from end to end; in the usual order each output is a
    sum of its own. Measured on an AVX2 core with torch's MKL, weights out of cache: 512 x 2048 in 258 us against 423,
    896 x 4864 in 938 against 1453; layers that narrow gain nothing, and no number of rows loses.
    """
    if not torch.backends.mkl.is_available():
        return 0
    count = 0
    for linear in module.modules():
        if type(linear) is not nn.Linear or linear.out_features <= linear.in_features:
            continue
        weight = linear.weight
        wanted = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()
        if wanted and weight.numel() >= smallest:
            weight.data = weight.data.t().contiguous().t()
            count += 1
    return count
