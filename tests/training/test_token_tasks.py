"""Training of the CosyVoice family: every layout and head runs, learns, resumes, and leaves what loads."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quaver.codecs.mel import load_mel
from quaver.codecs.semantic import SemanticConfig, SemanticTokenizer
from quaver.errors import BadInput, ConfigError, MissingFile
from quaver.training.align import add_codes
from quaver.training.loop import Trainer
from quaver.training.pack import Pack
from quaver.training.recipe import Recipe, load_recipe
from quaver.training.tasks import build_task
from quaver.tts.flow import load_flow
from quaver.tts.generate import Generation
from quaver.tts.layouts import FILL, SPEECH
from quaver.tts.sampling import SamplingConfig
from quaver.tts.synthesizer import load_lm
from quaver.tts.token_lm import load_token_lm
from quaver.tts.token_plan import TokenRequest

from .conftest import MODELS, TINY, MakeRecipe

ROOT = Path(__file__).parents[2]
LOADERS: dict[str, Callable[[str], nn.Module]] = {
    "token_lm": lambda name: load_token_lm(name)[0],
    "flow": lambda name: load_flow(name)[0],
    "vocoder": load_mel,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "prefix": {},
    "interleave": {"layout": "interleave", "ratio": (3, 2)},
    "delay": {"pattern": "delay"},
    "depth": {"head": "depth", "block": {"width": 8, "layers": 1, "heads": 2, "hidden": 8}},
    "vita": {"layout": "interleave", "ratio": (3, 2), "head": "multi_token", "drafts": 2},
    "koel": {"layout": "cross", "cross": {"stages": 2, "heads": 2, "relative": False}},
    "vat": {"layout": "cross", "cross": {"stages": 2, "heads": 2}, "text_blocks": 1, "text_hidden": 8},
}
CROSS = {"prior_until": 8, "align": 0.1, "place": 0.1}


def train(recipe: Recipe, out: Path) -> Trainer:
    torch.manual_seed(recipe.seed)
    trainer = Trainer(build_task(recipe), recipe, out)
    trainer.run()
    return trainer


def losses(out: Path, name: str = "loss") -> list[float]:
    with open(out / "log.csv") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("task", LOADERS)
def test_a_run_leaves_a_model_that_loads_and_resumes(task: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    trainer = train(recipe(task), tmp_path / "run")
    model = LOADERS[task](str(tmp_path / "run"))
    named = dict(model.named_parameters())
    assert all(torch.allclose(named[name], value, atol=1e-6) for name, value in trainer.ema.items())
    assert not model.training
    half = Trainer(build_task(recipe(task, steps=4)), recipe(task, steps=4), tmp_path / "run")
    assert half.step == 3
    half.run()
    assert half.step == 4
    other = "flow" if task != "flow" else "vocoder"
    with pytest.raises(ConfigError):
        LOADERS[other](str(tmp_path / "run"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_head_learns(layout: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    quiet = {"replace": 0.0, "blank": 0.0, "mixed": 0.3}
    more = CROSS if LAYOUTS[layout].get("layout") == "cross" else {}
    settings = recipe("token_lm", steps=24, log_every=4, batch_seconds=0.5, model=LAYOUTS[layout], options=quiet | more)
    train(settings, tmp_path / "run")
    found = losses(tmp_path / "run", "codes")
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize("task", ["flow", "vocoder"])
def test_flow_and_vocoder_learn(task: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    wide = {"backbone": {**TINY, "width": 32, "hidden": 32, "condition": 8}} if task == "flow" else {}
    train(recipe(task, steps=40, log_every=10, batch_seconds=1.5, model=wide), tmp_path / "run")
    found = losses(tmp_path / "run")
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_parameter_that_is_trained_gets_a_gradient(layout: str, recipe: MakeRecipe) -> None:
    """One that gets none stops a run on several processes (DistributedDataParallel)."""
    more = CROSS if LAYOUTS[layout].get("layout") == "cross" else {}
    task = build_task(recipe("token_lm", model=LAYOUTS[layout], options={"speakers": False, **more}))
    task.network(task.batch(np.random.default_rng(0), 0), 0)["loss"].backward()
    named = task.network.named_parameters()
    idle = {"backbone.pace"} if layout == "koel" else set()
    missing = [n for n, p in named if p.grad is None]
    assert {n.removeprefix("model.").rsplit(".", 1)[0] for n in missing} <= idle


def test_targets_are_the_next_step_and_the_fill_where_text_is_due(recipe: MakeRecipe) -> None:
    options = {"mixed": 0.0, "replace": 0.0, "blank": 0.0}
    task: Any = build_task(recipe("token_lm", model=LAYOUTS["interleave"], options=options))
    batch = task.batch(np.random.default_rng(0), 0)
    assert int((batch["target"] == FILL).sum()) == len(batch["ids"]) * (9 // 3)
    seen: list[Tensor] = []
    head = task.model.head
    original, head.loss = head.loss, lambda hidden, codes: seen.append(codes) or original(hidden, codes)
    task.network(batch, 0)
    (targets,) = seen
    chosen = batch["target"] != -1
    assert len(targets) == int(chosen.sum())
    assert int((targets[:, 0] == head.fill).sum()) == int((batch["target"] == FILL).sum())
    assert int((targets[:, 0] == head.eos).sum()) == len(batch["ids"])
    # What a position sees as the last step is never what it is to predict.
    row, at = chosen.nonzero()[5].tolist()
    step = int(batch["target"][row, at])
    if step > 0 and int(batch["kind"][row, at]) == SPEECH:
        assert int(batch["value"][row, at]) == step - 1


def test_a_padded_batch_has_the_loss_of_its_items(recipe: MakeRecipe) -> None:
    task: Any = build_task(recipe("token_lm", model=LAYOUTS["vat"], options={"replace": 0.0, "blank": 0.0}))
    task.network.eval()
    batch = task.batch(np.random.default_rng(1), 0)
    wider = {
        k: torch.nn.functional.pad(v, (0, 5), value={"codes": 14, "steps": 14, "target": -1, "pointer": -100}.get(k, 0))
        if k != "lengths"
        else v
        for k, v in batch.items()
    }
    with torch.no_grad():
        a, b = task.network(batch, 0), task.network(wider, 0)
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)


def test_silent_codes_are_those_of_the_pauses(recipe: MakeRecipe, pack: Pack) -> None:
    codes = []
    for i in range(4):
        frames = -(-pack.entries[i].samples // 960)
        rows = np.arange(frames * 3).reshape(frames, 3) % 7 + 1
        rows[5:8, 0] = 11  # the comma lasts from frame 5 (50 Hz 11) to 7
        codes.append(rows)
    pack.write_track("codes.tiny.u16", codes, np.uint16)
    task: Any = build_task(recipe("token_lm"))
    assert 11 in task.settings.silent


def test_a_semantic_tokenizer_makes_the_tokens_of_a_pack(pack: Pack, recipe: MakeRecipe) -> None:
    torch.manual_seed(0)
    model = SemanticTokenizer(SemanticConfig.model_validate({**MODELS["ctc"], "symbols": ["-", "|"]})).eval()
    add_codes(pack, model, "meaning", most=3)
    track, offsets = pack.track("codes.meaning.u16", np.uint16)
    lengths = np.diff(offsets).tolist()
    assert lengths == [*(-(-e.samples // 960) for e in pack.entries[:3]), 0]
    wave = torch.from_numpy(pack.wave(1))[None, None]
    with torch.no_grad():
        assert track[offsets[1] : offsets[2], 0].tolist() == model(wave).codes[0, 0].tolist()
    task: Any = build_task(recipe("token_lm", model={"codebooks": 1, "vocab": 27}, options={"codes": "meaning"}))
    assert len(task.mixture.usable[0]) == 3  # the one without tokens is left out
    with pytest.raises(MissingFile):
        build_task(recipe("token_lm", options={"codes": "none"}))


def test_what_cannot_be_trained_is_said_so(recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="positions"):
        task = build_task(recipe("token_lm", model={"backbone": {**TINY, "window": 10}}))
        task.batch(np.random.default_rng(0), 0)
    with pytest.raises(MissingFile, match="checkpoint"):
        build_task(recipe("token_lm", model={"backbone": f"hf:{tmp_path / 'nowhere'}"}))


@pytest.mark.parametrize(
    "name",
    [
        "cosyvoice-lm", "cosyvoice2-lm", "cosyvoice-flow", "mel-vocoder", "qtts-depth", "qtts-delay", "vita", "koel",
    ],
)  # fmt: skip
def test_the_family_s_recipes_are_read_and_name_a_task_that_takes_them(
    name: str, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    assert recipe.name == name
    codes, width = recipe.options.get("codes"), 8 if recipe.options.get("codes") == "quaver-24k" else 1
    if codes:
        rows = [np.zeros((-(-e.samples // 960), width)) for e in pack.entries]
        pack.write_track(f"codes.{codes}.u16", rows, np.uint16)
    options = {
        name: value for name, value in recipe.options.items() if name != "body"
    }  # of other voices than the pack's
    data = (recipe.data[0].model_copy(update={"pack": pack.folder}),)
    task = build_task(recipe.model_copy(update={"data": data, "options": options}))
    assert task.config()["kind"] in ("token_lm", "lm", "flow", "mel")


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tiny_model_learns_its_utterances_by_heart(layout: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    """Text in, the very codes of the corpus out: training, weights on disk, loading and generation, end to end."""
    more = {"prior_until": 100, "align": 0.1, "place": 0.1} if LAYOUTS[layout].get("layout") == "cross" else {}
    backbone = {"width": 48, "layers": 2, "heads": 2, "hidden": 96, "window": 120, "slack": 15}
    model = {**LAYOUTS[layout], "backbone": backbone, "silent_run": 0}
    if layout == "depth":
        model["block"] = {"width": 32, "layers": 1, "heads": 2, "hidden": 64}
    settings = recipe(
        "token_lm",
        steps=500,
        log_every=100,
        batch_seconds=3.0,
        model=model,
        options={"replace": 0.0, "blank": 0.05, "mixed": 0.2, **more},
        optimizer={"lr": 0.004, "warmup": 20, "ema": 0.9},
    )
    train(settings, tmp_path / "run")
    lm, _ = load_token_lm(str(tmp_path / "run"))
    task: Any = build_task(settings)
    right = total = 0
    for i in (0, 1):  # one utterance of either voice (all say the same words)
        pick = next(p for _ in range(200) for p in task.mixture.bucket(np.random.default_rng(_), 1.0) if p.index == i)
        truth = task._codes(pick)
        request = TokenRequest(task._text(pick), voice=i, sampling=SamplingConfig(temperature=0))
        generation, frames = Generation(lm), []
        plan = generation.join(0, request)
        while not plan.done:
            frames += [f.codes.numpy() for f in generation.tick().values()]
        count = min(len(frames), len(truth))
        right += int((np.array(frames[:count])[:, 0] == truth[:count, 0]).sum())
        total += max(len(frames), len(truth))
    assert right / total > 0.4  # two utterances share each voice and text, so half of the codes is all there is


def test_a_head_of_codes_begins_with_another_heads_body(recipe: MakeRecipe, tmp_path: Path) -> None:
    first: Any = train(recipe("lm"), tmp_path / "chain")
    model = {"head": "depth", "depth": {"width": 8, "layers": 1, "heads": 2, "hidden": 8}}
    task: Any = build_task(recipe("lm", model=model, options={"body": str(tmp_path / "chain")}))
    own = task.model.state_dict()
    taken = {
        key: x for key, x in load_lm(str(tmp_path / "chain"))[0].state_dict().items() if not key.startswith("head.")
    }
    assert taken
    assert all(torch.equal(x, own[key]) for key, x in taken.items())
    assert first.task.model.head.__class__ is not task.model.head.__class__
    with pytest.raises(ConfigError, match=r"options\.body.*the same backbone"):
        build_task(
            recipe(
                "lm",
                model={"backbone": {**MODELS["lm"]["backbone"], "width": 16}},
                options={"body": str(tmp_path / "chain")},
            )
        )
