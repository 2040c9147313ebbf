"""The one training loop: accelerate for devices and processes, EMA weights, resume, CSV and TensorBoard logs, a
progress bar with the remaining time.

What is trained is a *task* (`training/tasks/`): it builds the model, draws batches and computes losses. The loop knows
nothing of audio. Batches depend only on (seed, step, process), so a resumed run sees exactly the data that an
uninterrupted one would have seen.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import BadInput, ConfigError
from .recipe import Optimizer, Recipe

__all__ = ["Task", "Trainer"]

Batch = Mapping[str, Tensor]


class Task(Protocol):
    """What a task gives to the loop. `network` computes the losses in its `forward(batch, step)`; `model` is the part
    of it that is saved for use."""

    network: nn.Module
    model: nn.Module

    def batch(self, rng: np.random.Generator, step: int) -> Batch: ...

    def config(self) -> dict[str, Any]:
        """The model's configuration, saved beside the weights."""
        ...


class Trainer:
    """Runs a task for the recipe's steps, in `out/`: `last/` (to resume), `model.safetensors` (EMA), `log.csv`."""

    def __init__(self, task: Task, recipe: Recipe, out: Path, resume: bool = True) -> None:
        on_cpu = not torch.cuda.is_available()
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision=recipe.precision)
        self.task, self.recipe, self.out = task, recipe, out
        self.network = self.accelerator.prepare(task.network)
        self.parameters = [p for p in task.network.parameters() if p.requires_grad]
        self.optimizer = _adamw(task.network, recipe.optimizer, fused=True)
        self.ema = {k: v.detach().clone().float() for k, v in _trained(task.model).items()}
        self.step, self.stopped = 0, False
        out.mkdir(parents=True, exist_ok=True)
        if resume and (out / "last" / "progress.json").exists():
            self._load()

    def run(self) -> None:
        """Trains to the end, saving every `save_every` steps and at the end."""
        recipe, rows, since = self.recipe, [], time.monotonic()
        with self._progress() as bar:
            job = bar.add_task(recipe.name, total=recipe.steps, completed=self.step)
            while self.step < recipe.steps and not self.stopped:
                rows.append(self._one_step())
                self.step += 1
                bar.advance(job)
                if self.step % recipe.log_every == 0 or self.step == recipe.steps:
                    # Not `log_every`: the last row, and the first after a resume, may cover fewer steps.
                    seconds = (time.monotonic() - since) / len(rows)
                    self._log(_means(rows) | {"seconds": seconds})
                    rows, since = [], time.monotonic()
                if self.step % recipe.save_every == 0 or self.step == recipe.steps:
                    self.save()
        self.accelerator.wait_for_everyone()

    def _one_step(self) -> dict[str, float]:
        rate = learning_rate(self.recipe.optimizer, self.step, self.recipe.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng([self.recipe.seed, self.step, self.accelerator.process_index])
        torch.manual_seed(int(rng.integers(2**62)))
        batch = {k: v.to(self.accelerator.device) for k, v in self.task.batch(rng, self.step).items()}
        self.network.train()
        with self.accelerator.autocast():
            losses = self.network(batch, self.step)
        total = losses["loss"]
        if not torch.isfinite(total):
            raise BadInput(
                f"the loss became {total.item()} at step {self.step}; lower optimizer.lr, resume from `last`"
            )
        self.accelerator.backward(total)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average()
        return {k: float(v.detach()) for k, v in losses.items()} | {"norm": float(norm)}

    @torch.no_grad()
    def _average(self) -> None:
        # The average warms up with the run: early weights would otherwise linger in short trainings.
        decay = min(self.recipe.optimizer.ema, (1 + self.step) / (10 + self.step))
        for name, value in _trained(self.task.model).items():
            if value.dtype.is_floating_point:
                self.ema[name].lerp_(value.float(), 1 - decay)
            else:
                self.ema[name].copy_(value)

    # -- files --------------------------------------------------------------------------------------------------------
    def save(self) -> None:
        """Writes `last/` (weights, optimizer, progress) and the EMA model; each file beside, then renamed."""
        if not self.accelerator.is_main_process:
            return
        last = self.out / "last"
        last.mkdir(exist_ok=True)
        _save(self.task.network.state_dict(), last / "network.safetensors")
        _save(self.ema, last / "ema.safetensors")
        _save(_flatten(self.optimizer), last / "optimizer.safetensors")
        exported = self.task.model.state_dict() | {
            k: v.to(self.task.model.state_dict()[k].dtype) for k, v in self.ema.items()
        }
        _save(exported, self.out / "model.safetensors")
        _write(self.out / "config.json", json.dumps(self.task.config(), indent=1, ensure_ascii=False))
        _write(self.out / "recipe.json", self.recipe.model_dump_json(indent=1))
        if (save_extra := getattr(self.task, "save_extra", None)) is not None:  # a vocabulary, say
            save_extra(self.out)
        _write(last / "progress.json", json.dumps({"step": self.step}))

    def _load(self) -> None:
        last = self.out / "last"
        self.step = json.loads((last / "progress.json").read_text())["step"]
        self.task.network.load_state_dict(load_file(last / "network.safetensors"))
        for name, value in load_file(last / "ema.safetensors").items():
            self.ema[name].copy_(value)
        _unflatten(self.optimizer, load_file(last / "optimizer.safetensors"))

    def _log(self, row: dict[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        row = {"step": self.step, "lr": self.optimizer.param_groups[0]["lr"], **row}
        path = self.out / "log.csv"
        fresh = not path.exists()
        columns = list(row) if fresh else path.read_text().splitlines()[0].split(",")
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=columns, extrasaction="ignore")
            if fresh:
                writer.writeheader()
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*columns, disable=not self.accelerator.is_main_process)


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each loss over the steps that had it: a task may have steps of several kinds."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def learning_rate(optimizer: Optimizer, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `final * lr`."""
    if step < optimizer.warmup:
        return optimizer.lr * (step + 1) / optimizer.warmup
    done = (step - optimizer.warmup) / max(1, steps - optimizer.warmup)
    return optimizer.lr * (optimizer.final + (1 - optimizer.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def _adamw(network: nn.Module, config: Optimizer, fused: bool) -> torch.optim.AdamW:
    """No weight decay on vectors (norms, biases, scales) and embeddings' lookup tables stay decayed like matrices."""
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that are averaged: parameters only. Buffers (codebooks) are moving averages already."""
    return dict(model.named_parameters())


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def _unflatten(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    if sum(len(g["params"]) for g in groups) < len(state):
        raise ConfigError("the saved optimizer belongs to another model; start afresh with --no-resume")
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    part = path.with_name(path.name + ".part")
    save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, part)
    os.replace(part, path)


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)
