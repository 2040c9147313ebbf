"""Drafters are trained from the model that will judge them, and belong to its weights."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from quaver.errors import BadInput, ConfigError, MissingFile
from quaver.training.loop import Trainer
from quaver.training.recipe import Recipe, load_recipe
from quaver.training.tasks import build_task
from quaver.training.tasks.draft import group_loss
from quaver.tts.drafters import LMDrafter, load_drafter
from quaver.tts.groups import build_groups, code_embeddings, save_groups, weights_hash
from quaver.tts.speculative import Channel
from quaver.tts.speculative_depth import HeadDrafter, ResidualDrafter, SpeculativeHead
from quaver.tts.speculative_plan import SpeculativeGeneration
from quaver.tts.speculative_voice import SpeculationSettings, load_depth_drafter, speculate
from quaver.tts.synthesizer import load_lm
from quaver.tts.token_lm import load_token_lm

from .conftest import TINY, MakeRecipe

ROOT = Path(__file__).parents[2]


def train(recipe: Recipe, out: Path) -> dict[str, list[float]]:
    torch.manual_seed(recipe.seed)
    Trainer(build_task(recipe), recipe, out).run()
    with open(out / "log.csv") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def draft_recipe(make: MakeRecipe, **options: Any) -> Recipe:
    base = make("token_lm", steps=12)
    settings = {"codes": "tiny", **options}
    return base.model_copy(update={"task": "draft", "model": {}, "options": settings})


class Voice:
    """What `speculate` asks of a synthesizer."""

    def __init__(self, lm: Any) -> None:
        self.lm, self.loop = lm, None


def one_codebook(pack: Any) -> None:
    """A track of single tokens beside the codes of three books."""
    import numpy as np

    track, offsets = pack.track("codes.tiny.u16", np.uint16, 3)
    rows = [np.asarray(track[a:b, :1]) for a, b in pairwise(offsets)]
    pack.write_track("codes.flat.u16", rows, np.uint16)


def test_a_drafter_along_time_learns_loads_and_speaks(recipe: MakeRecipe, pack: Any, tmp_path: Path) -> None:
    one_codebook(pack)
    model = {"codebooks": 1, "backbone": {**TINY, "layers": 3}}
    target = tmp_path / "target"
    train(recipe("token_lm", model=model, options={"codes": "flat"}), target)
    sha256 = weights_hash(target)
    lm, _ = load_token_lm(str(target))
    groups = build_groups(code_embeddings(lm.head), 3.0, control=2)
    save_groups(groups, target / "groups.safetensors", sha256)
    plain = train(draft_recipe(recipe, target=target, codes="flat"), target / "draft")
    assert plain["kl"][-1] < plain["kl"][0]
    grouped = draft_recipe(
        recipe, target=target, codes="flat", loss="group", groups=target / "groups.safetensors", layers=2
    )
    found = train(grouped, tmp_path / "grouped")
    assert found["loss"][-1] < found["loss"][0]
    assert all(a >= b - 1e-5 for a, b in zip(found["accept_groups"], found["accept"], strict=True))
    drafter = load_drafter(str(target / "draft"), lm, sha256)
    assert isinstance(drafter, LMDrafter)
    assert drafter.lm.head.table is lm.head.table  # shared, not copied
    for mode in ("exact", "pcg", "budgeted", "tolerance"):
        voice = Voice(lm)
        speculate(voice, str(target), SpeculationSettings.model_validate({"mode": mode}))
        assert isinstance(voice.loop(lm), SpeculativeGeneration)  # type: ignore[misc]
    with pytest.raises(ConfigError, match="other weights"):
        load_drafter(str(target / "draft"), lm, "0" * 64)
    with pytest.raises(ConfigError, match="no drafter"):
        load_drafter(str(target), lm, sha256)
    with pytest.raises(BadInput, match="multi-token head"):
        speculate(Voice(lm), str(target), SpeculationSettings(draft="head"))
    with pytest.raises(BadInput, match="negative"):
        speculate(Voice(lm), str(target), SpeculationSettings(mode="budgeted", delta=-1.0))
    save_groups(groups, target / "groups.safetensors", "1" * 64)
    with pytest.raises(ConfigError, match="other weights"):
        speculate(Voice(lm), str(target), SpeculationSettings(mode="pcg"))


@pytest.mark.parametrize("task", ["lm", "token_lm"])
def test_a_drafter_along_depth_learns_and_loads(task: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    block = {"width": 8, "layers": 1, "heads": 2, "hidden": 8}
    target = tmp_path / "target"
    train(recipe(task, model={} if task == "lm" else {"head": "depth", "block": block}), target)
    found = train(draft_recipe(recipe, target=target, hidden=8), target / "draft")
    assert found["loss"][-1] < found["loss"][0]
    lm: Any = (load_lm if task == "lm" else load_token_lm)(str(target))[0]
    head, sha256 = lm.head, weights_hash(target)
    load_depth_drafter(str(target / "draft"), head, sha256)
    voice = Voice(lm)
    speculate(voice, str(target), SpeculationSettings())
    assert isinstance(voice.lm.head, SpeculativeHead)
    assert isinstance(voice.lm.head.drafter, ResidualDrafter)
    lm.head = head
    with pytest.raises(MissingFile, match="groups build"):
        speculate(voice, str(target), SpeculationSettings(mode="pcg", groups=tmp_path / "none.safetensors"))
    with pytest.raises(BadInput, match="one codebook"):
        speculate(voice, str(target), SpeculationSettings(mode="tolerance"))
    with pytest.raises(BadInput, match="along time"):
        speculate(voice, str(target), SpeculationSettings(draft="lookup"))
    with pytest.raises(ConfigError, match="other weights"):
        load_depth_drafter(str(target / "draft"), head, "0" * 64)


@pytest.mark.parametrize("task", ["lm", "token_lm"])
def test_along_depth_nothing_needs_to_be_trained_or_built(task: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    block = {"width": 8, "layers": 1, "heads": 2, "hidden": 8}
    target = tmp_path / "target"
    train(recipe(task, model={} if task == "lm" else {"head": "depth", "block": block}), target)
    lm: Any = (load_lm if task == "lm" else load_token_lm)(str(target))[0]
    head = lm.head
    for mode in ("exact", "pcg", "budgeted"):
        voice = Voice(lm)
        speculate(voice, str(target), SpeculationSettings.model_validate({"mode": mode}))
        assert isinstance(voice.lm.head.drafter, HeadDrafter)
        lm.head = head
    save_groups(build_groups(code_embeddings(head)), target / "groups.safetensors", "1" * 64)
    with pytest.raises(ConfigError, match="other weights"):  # a file that is there counts
        speculate(Voice(lm), str(target), SpeculationSettings(mode="pcg"))


def test_a_model_that_cannot_speculate_says_which_can(recipe: MakeRecipe, tmp_path: Path) -> None:
    target = tmp_path / "target"
    train(recipe("token_lm"), target)
    lm, _ = load_token_lm(str(target))
    with pytest.raises(BadInput, match=r"recipes/cosyvoice-lm\.yaml"):
        speculate(Voice(lm), str(target), SpeculationSettings())
    with pytest.raises(ConfigError, match="depth or chain"):
        build_task(draft_recipe(recipe, target=target))


def test_the_group_loss_is_what_it_says() -> None:
    """Against the sums over groups, written out."""
    g = torch.Generator().manual_seed(0)
    p, q = (2 * torch.randn(2, 3, 6, generator=g)).log_softmax(-1)
    channel = Channel.of_groups([[0, 1, 2], [2, 3], [4], [5]], 6)
    weight = torch.zeros(4, 6)
    weight[channel.groups, channel.tokens] = channel.weights
    loss, kept = group_loss(p, q, channel, 0.5)
    for row in range(3):
        joint_p, joint_q = weight * p[row].exp(), weight * q[row].exp()
        coarse_p, coarse_q = joint_p.sum(1), joint_q.sum(1)
        inside = sum(
            coarse_q[k] * float((x * (x / y).log()).nansum())
            for k in range(4)
            for x, y in [(joint_q[k] / coarse_q[k], joint_p[k] / coarse_p[k])]
        )
        wanted = -torch.minimum(coarse_p, coarse_q).sum().log() + 0.5 * inside
        assert torch.allclose(loss[row], wanted, atol=1e-5)
        assert torch.allclose(kept[row], torch.minimum(coarse_p, coarse_q).sum(), atol=1e-6)


@pytest.mark.parametrize("name", ["draft-lm", "draft-depth"])
def test_recipes_load(name: str) -> None:
    assert load_recipe(ROOT / "recipes" / f"{name}.yaml").task == "draft"
