"""The CosyVoice family in training: the flow's speaker encoder learns, and every kind of model can be exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from quaver.codecs.mel import load_mel
from quaver.training.export import export
from quaver.training.loop import Trainer
from quaver.training.tasks import build_task
from quaver.training.tasks.flow import FlowTask
from quaver.tts.flow import load_flow
from quaver.tts.token_lm import load_token_lm

from ..laws import randomised
from .conftest import MakeRecipe

LOADERS: dict[str, Callable[[str], nn.Module]] = {
    "token_lm": lambda name: load_token_lm(name)[0],
    "flow": lambda name: load_flow(name)[0],
    "vocoder": load_mel,
}


def test_the_speaker_encoder_is_trained_on_other_utterances_of_the_speaker(recipe: MakeRecipe) -> None:
    import numpy as np

    task = FlowTask(recipe("flow", model={"vector": 6}, options={"described": 1.0, "reference": (0.2, 0.4)}))
    batch = task.batch(np.random.default_rng(0), 0)
    assert bool(batch["described"].all())
    assert batch["reference"].shape[0] == len(batch["voice"])
    assert int(batch["reference_frames"].max()) <= 41
    torch.manual_seed(0)
    randomised(task.model, scale=0.1)  # the condition's layers begin at zero
    task.network(batch, 0)["loss"].backward()
    encoder = task.model.encoder
    assert encoder is not None
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in encoder.parameters())
    assert any(bool(p.grad.any()) for p in encoder.parameters() if p.grad is not None)
    table = task.model.voice.weight.grad
    assert table is None or not bool(table.any())  # nobody was told by name
    picks = task.mixture.bucket(np.random.default_rng(1), 1.5)
    for pick in picks:
        assert all(other.pack.entries[other.index].voice == pick.pack.entries[pick.index].voice
                   for other in task.spoken[pick.pack.entries[pick.index].voice])  # fmt: skip


@pytest.mark.parametrize("task", list(LOADERS))
def test_every_kind_is_exported_in_int8_and_loads(task: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    made = recipe(task, steps=1, model={"vector": 6} if task == "flow" else {})
    Trainer(build_task(made), made, tmp_path / "run", resume=False).run()
    card = export(tmp_path / "run", tmp_path / "model")
    before, after = (LOADERS[task](str(tmp_path / name)) for name in ("run", "model"))
    assert card["parameters"] == sum(p.numel() for p in before.parameters())
    for name, value in before.named_parameters():
        other = after.get_parameter(name)
        assert torch.allclose(other, value, atol=0.02 * float(value.detach().abs().max()) + 1e-6), name
