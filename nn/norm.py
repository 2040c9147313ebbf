"""RMSNorm (Zhang & Sennrich 2019) that a step of a small model does not feel.

torch has no kernel of it for a CPU: its own is a chain of a dozen operations. Under inference it is five here, the sum
of squares being one: 14 us against 43 where a step is recorded (`nn/recorded.py`), one row of 256.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RMSNorm", "rms_norm"]


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` over the last axis, the same to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        if self.eps is None or len(self.normalized_shape) != 1:
            return super().forward(x)
        return rms_norm(x, self.eps, self.weight)


def rms_norm(x: Tensor, eps: float, weight: Tensor) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis; `weight` broadcasts to `x`. Gradients, exports and other
    kinds of numbers or devices take torch's own."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if not plain or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        if weight.ndim == 1:
            return F.rms_norm(x, x.shape[-1:], weight, eps)
        return F.rms_norm(x, x.shape[-1:], eps=eps) * weight
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # A tensor and no number: so it is one operation, and a recording keeps it as a constant.
    scale = torch.addcmul(torch.tensor(eps, device=x.device), length, length, value=1 / x.shape[-1]).rsqrt()
    return x * scale * weight
