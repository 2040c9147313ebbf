"""Makes a trained ARDiT smaller: the matrices that modulate its blocks, of low rank."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BadInput
from ..tts.ardit import Ardit, ArditConfig

__all__ = ["narrow_modulation"]

TIMES = 200


@torch.no_grad()
def narrow_modulation(lm: Ardit, rank: int) -> Ardit:
    """The same model with `modulation_rank: rank`: of each matrix, what matters most for the conditions that it meets
    (all voices, at all times), in the least squares sense.

    Raises:
        BadInput: the rank is none that makes it smaller, or the model has been narrowed already.
    """
    width, condition = 6 * lm.config.backbone.width, lm.config.backbone.condition
    assert condition is not None
    if lm.config.backbone.modulation_rank is not None:
        raise BadInput("this model's modulation has a low rank already")
    most = condition * width // (condition + width)
    if not 1 <= rank < most:
        raise BadInput(f"a rank of {rank} makes nothing smaller; it must lie below {most}")
    backbone = lm.config.backbone.model_copy(update={"modulation_rank": rank})
    small = Ardit(ArditConfig.model_validate({**lm.config.model_dump(), "backbone": backbone.model_dump()}))
    tensors = {name: x for name, x in lm.state_dict().items() if ".modulation." not in name}
    met = _conditions(lm)
    for number, layer in enumerate(lm.backbone.layers):
        full = layer.modulation
        assert isinstance(full, nn.Linear)
        directions = torch.linalg.svd(full.weight @ met.T, full_matrices=False).U[:, :rank]
        place = f"backbone.layers.{number}.modulation."
        tensors |= {place + "0.weight": directions.T @ full.weight, place + "1.weight": directions}
        tensors[place + "1.bias"] = full.bias
    small.load_state_dict({name: x.contiguous() for name, x in tensors.items()})
    return small.eval()


def _conditions(lm: Ardit) -> Tensor:
    """All conditions that the blocks can meet `[n, condition]`."""
    device = lm.mean.device
    moments = torch.cat([lm._when(torch.linspace(0, 1, TIMES, device=device)), lm.segment.weight])
    return F.silu(moments[:, None] + lm.voice.weight).flatten(0, 1)
