"""The training loop over every task: it runs, it learns, it resumes exactly, on one process and on two."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quaver.codecs.loading import load_codec, load_semantic
from quaver.codecs.semantic import SemanticConfig, SemanticTokenizer
from quaver.errors import BadInput, ConfigError
from quaver.training.loop import Trainer
from quaver.training.recipe import Recipe
from quaver.training.tasks import build_task
from quaver.tts.synthesizer import load_lm

from .conftest import MODELS, MakeRecipe

TASKS = ("ctc", "codec", "lm")


def train(recipe: Recipe, out: Path, resume: bool = True) -> Trainer:
    torch.manual_seed(recipe.seed)
    trainer = Trainer(build_task(recipe), recipe, out, resume)
    trainer.run()
    return trainer


def weights(out: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{k}": v
        for name in ("network", "ema")
        for k, v in load_file(out / "last" / f"{name}.safetensors").items()
    }


@pytest.mark.parametrize("task", TASKS)
def test_a_run_leaves_a_model_that_loads(task: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trainer = train(recipe(task), out)
    load = {"ctc": load_semantic, "codec": load_codec, "lm": lambda name: load_lm(name)[0]}[task]
    model = load(str(out))
    named = dict(model.named_parameters())
    for name, value in trainer.ema.items():
        assert torch.allclose(named[name], value, atol=1e-6)
    with open(out / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "3"]
    # Both rows are means over the steps they cover: the last one covers one step, not `log_every`.
    first, last = (float(row["loss"]) for row in rows)
    assert 0.6 < last / first < 1.5
    assert not list(out.rglob("*.part"))


@pytest.mark.parametrize("task", TASKS)
def test_resuming_equals_never_having_stopped(task: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe(task, steps=4), whole)
    # Stopped after the second of four steps, as by a power cut after a save.
    half = Trainer(_built(recipe(task, steps=4)), recipe(task, steps=4), parts)
    for _ in range(2):
        half._one_step()
        half.step += 1
    half.save()
    torch.manual_seed(99)  # nothing outside `last/` may matter
    resumed = train(recipe(task, steps=4), parts)
    assert resumed.step == 4
    a, b = weights(whole), weights(parts)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    fresh = train(recipe(task, steps=1), parts, resume=False)
    assert fresh.step == 1


def _built(recipe: Recipe) -> Any:
    torch.manual_seed(recipe.seed)
    return build_task(recipe)


@pytest.mark.parametrize("task", ["ctc", "lm"])
def test_training_lowers_the_loss(task: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    """On one utterance, over and over."""
    settings = recipe(
        task, steps=25, log_every=5, batch_seconds=0.5, options={"replace": 0.0, "blank": 0.0} if task == "lm" else {}
    )
    train(settings, tmp_path / "run")
    with open(tmp_path / "run" / "log.csv") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.9 * losses[0]


def test_a_loss_that_is_no_number_stops_the_run_before_the_weights(recipe: MakeRecipe, tmp_path: Path) -> None:
    trainer = Trainer(_built(recipe("lm")), recipe("lm"), tmp_path / "run")
    trainer.parameters[0].data.fill_(float("nan"))
    before = [p.clone() for p in trainer.parameters[1:]]
    with pytest.raises(BadInput, match="step 0"):
        trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters[1:], strict=True))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_the_optimizer_of_another_model_is_refused(recipe: MakeRecipe, tmp_path: Path) -> None:
    train(recipe("lm", steps=1), tmp_path / "run")
    path = tmp_path / "run" / "last" / "optimizer.safetensors"
    save_file({f"{i}.step": torch.zeros(()) for i in range(500)}, path)
    with pytest.raises(ConfigError, match="optimizer"):
        Trainer(_built(recipe("lm")), recipe("lm"), tmp_path / "run")


def teacher(folder: Path) -> Path:
    """A random semantic tokenizer in a folder."""
    config = {**MODELS["ctc"], "symbols": ["-", "|"]}
    folder.mkdir()
    save_file(SemanticTokenizer(SemanticConfig.model_validate(config)).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"kind": "semantic", **config}))
    return folder


def test_the_teacher_stays_in_eval_and_is_not_trained(recipe: MakeRecipe, tmp_path: Path) -> None:
    """X-Codec's trainer left its teacher's dropout on."""
    settings = recipe("codec", options={"teacher": str(teacher(tmp_path / "teacher"))})
    trainer = Trainer(_built(settings), settings, tmp_path / "run")
    network: Any = trainer.task.network
    (model,) = network._teacher
    before = {k: v.clone() for k, v in model.state_dict().items()}
    losses = trainer._one_step()
    assert {"semantic", "student"} <= losses.keys()
    assert not any(module.training for module in model.modules())
    assert trainer.task.network.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    known = {id(p) for p in model.parameters()}
    assert not any(id(p) in known for p in trainer.parameters)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("semantic", ["teacher_input", "none"])
@pytest.mark.parametrize("bottleneck", ["fsq", "vae"])
def test_other_forms_of_the_codec_train(semantic: str, bottleneck: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    model = {"semantic": semantic, "bottleneck": bottleneck, "levels": (3, 3, 3, 3), "head": "istft"}
    options = {"teacher": str(teacher(tmp_path / "teacher"))} if semantic == "teacher_input" else {}
    settings = recipe("codec", model=model, options=options)
    losses = Trainer(_built(settings), settings, tmp_path / "run")._one_step()
    assert np.isfinite(losses["loss"])
    assert ("kl" in losses) == (bottleneck == "vae")


@pytest.mark.parametrize("with_teacher", [True, False])
def test_every_parameter_that_is_trained_gets_a_gradient(
    with_teacher: bool, recipe: MakeRecipe, tmp_path: Path
) -> None:
    """One that gets none stops a run on several processes (DistributedDataParallel)."""
    options = {"teacher": str(teacher(tmp_path / "teacher"))} if with_teacher else {}
    task = _built(recipe("codec", options=options))
    batch = task.batch(np.random.default_rng(0), 0)
    for own_f0 in (True, False):
        task.network.zero_grad()
        task.network(batch | {"own_f0": torch.tensor(own_f0)}, 0)["loss"].backward()
        named = task.network.named_parameters()
        assert [name for name, p in named if p.requires_grad and p.grad is None] == []


def test_a_frozen_encoder_keeps_its_codes(recipe: MakeRecipe, tmp_path: Path) -> None:
    """Language models trained on the codes stay valid while the sound improves."""
    train(recipe("codec", steps=1), tmp_path / "first")
    options = {"freeze_encoder": True}
    train(recipe("codec", steps=2, init=tmp_path / "first", options=options), tmp_path / "second")
    a, b = load_codec(str(tmp_path / "first")), load_codec(str(tmp_path / "second"))
    audio = 0.3 * torch.randn(1, 1, 4800, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        codes = a.encode(audio)[0]
        assert torch.equal(codes, b.encode(audio)[0])
        assert not torch.equal(a.decode(codes), b.decode(codes))


def test_every_process_and_step_draws_other_data(recipe: MakeRecipe) -> None:
    task = _built(recipe("codec"))

    def audio(*seed: int) -> torch.Tensor:
        return task.batch(np.random.default_rng([7, *seed]), 0)["audio"]

    assert torch.equal(audio(0, 0), audio(0, 0))
    assert not torch.equal(audio(0, 0), audio(1, 0))
    assert not torch.equal(audio(0, 0), audio(0, 1))


def test_an_unknown_task_is_refused(recipe: MakeRecipe) -> None:
    with pytest.raises(ConfigError, match="ctc, codec, lm"):
        build_task(recipe("lm").model_copy(update={"task": "opera"}))


WORKER = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from quaver.training.loop import Trainer
from quaver.training.recipe import Recipe
from quaver.training.tasks import build_task
recipe, out = Recipe.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
torch.set_num_threads(1)
torch.manual_seed(recipe.seed)
task = build_task(recipe)
trainer = Trainer(task, recipe, out)
trainer.run()
save_file({k: v.clone() for k, v in task.model.state_dict().items()}, out / f"rank{trainer.accelerator.process_index}")
"""


@pytest.mark.long
def test_two_processes_hold_the_same_codebooks(recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "recipe.json").write_text(recipe("codec").model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += [str(tmp_path / n) for n in ("worker.py", "recipe.json", "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [load_file(tmp_path / "out" / f"rank{i}") for i in range(2)]
    alone = train(recipe("codec"), tmp_path / "alone").task.model.state_dict()
    for name, value in ranks[0].items():
        assert torch.equal(value, ranks[1][name]), name
    assert not torch.equal(ranks[0]["quantizer.codebook"], alone["quantizer.codebook"])  # both had a say
