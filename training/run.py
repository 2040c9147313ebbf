"""`quaver train`: one command for one process, several CPU processes, or a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from .loop import Trainer
from .recipe import load_recipe
from .tasks import build_task

__all__ = ["main", "train"]


def train(recipe: Path, out: Path, overrides: list[str], resume: bool = True, processes: int = 1) -> None:
    """Trains a recipe into `out`.

    With `processes > 1` that many data-parallel processes of one thread each are started (gloo). One thread a
    process is deliberate: two OpenMP threads were measured 2-30 times slower when a neighbour uses the core.
    """
    load_recipe(recipe, overrides)  # fail early, once, and in this process
    if processes > 1:
        _spawn(recipe, out, overrides, resume, processes)
    else:
        _worker(recipe, out, overrides, resume)


def _spawn(recipe: Path, out: Path, overrides: list[str], resume: bool, processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    command += ["-m", "quaver.training.run", str(recipe), str(out), "resume" if resume else "fresh", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise SystemExit(code)


def _worker(recipe: Path, out: Path, overrides: list[str], resume: bool) -> None:
    settings = load_recipe(recipe, overrides)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    Trainer(build_task(settings), settings, out, resume).run()


def main(arguments: list[str]) -> None:
    """Entry point of one worker process: `RECIPE OUT resume|fresh [overrides...]`."""
    recipe, out, mode, *overrides = arguments
    _worker(Path(recipe), Path(out), overrides, mode == "resume")


if __name__ == "__main__":
    main(sys.argv[1:])
