"""Fine-tuning a pointer voice on somebody's own recordings: `quaver train --from MODEL --data FOLDER`.

    folder -> checks -> packs (24 kHz, aligned, coded; some held out) -> training with early stop -> a model folder

The model keeps its voices and gets one more, which begins as their mean. What is written is the state with the lowest
loss on the held-out recordings; LoRA is merged into it, so that the result is an ordinary model.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ..codecs.loading import MODELS, model_folder, read_config, read_json
from ..errors import BadInput, ConfigError, QuaverError
from .corpus import beside
from .loop import Trainer
from .lora import add_lora, merge_lora
from .pack import pack_manifest
from .recipe import Optimizer, Recipe, Source
from .sampling import Mixture
from .tasks.lm import LMTask
from .tracks import TrackJob, make_track
from .user_data import Recordings, read_folder, write_split

__all__ = ["FineTuning", "Tuned", "finetune"]

TRAINED = ("voice.", "advance.")
"""What LoRA trains as a whole beside its low-rank changes: who speaks, and how fast the pointer moves."""


@dataclass(frozen=True)
class FineTuning:
    """Settings.

    Attributes:
        voice: name of the new voice (of a known one: it is trained on).
        lora: rank of the low-rank changes; None trains every weight.
        steps: at most. every: steps between looks at the held-out recordings. patience: looks without progress after
            which it stops. held: share that is held out. lr: None: 3e-4 in full, 2e-3 with LoRA.
        aligner: the recogniser that says when each phone sounds.
    """

    voice: str
    lora: int | None = None
    steps: int = 400
    every: int = 25
    patience: int = 4
    held: float = 0.1
    lr: float | None = None
    batch_seconds: float = 30.0
    aligner: str = "semantic-25hz"
    seed: int = 0


@dataclass(frozen=True)
class Tuned:
    """What came of it: losses on the held-out recordings, and at which step the best was."""

    recordings: Recordings
    trained_on: int
    held_out: int
    before: float
    after: float
    best_step: int
    steps: int


def finetune(model: str, data: Path, out: Path, settings: FineTuning) -> Tuned:
    """Trains a pointer voice on a folder of recordings and writes a model folder into `out` (with its packs in
    `out/data` and its log in `out/run`).

    Raises:
        BadInput: settings out of range, or recordings of which too little can be used. MissingFile, ConfigError,
        CorruptFile: of the model.
    """
    _check(settings, out)
    base = model_folder(model)
    config = read_config(base)
    if config.get("kind") != "lm":
        raise ConfigError(f"{base} is no pointer voice (its kind is {config.get('kind')!r}); only those are fine-tuned")
    names = _names(base, config)
    own = names.get(settings.voice, settings.voice)  # as the model calls it
    recordings = read_folder(data, own)
    codec = str(config.get("codec"))
    near = base.parent / Path(codec).name
    packs = _packs(recordings, out / "data", str(near) if (near / "config.json").exists() else codec, settings)
    recipe = _recipe(base, config, packs[0], Path(codec).name, settings)
    torch.manual_seed(settings.seed)
    task = LMTask(recipe)
    if settings.lora is not None:
        add_lora(task.model, settings.lora, train=TRAINED)
    trainer = _EarlyStop(task, recipe, out / "run", packs[1], settings.patience)
    before = trainer.judge()
    trainer.run()
    task.model.load_state_dict(trainer.best_weights())
    merge_lora(task.model)
    apart = near.parent.resolve() not in (out.parent.resolve(), MODELS.resolve())  # else its name finds it
    codec_name = str(near.resolve()) if apart and (near / "config.json").exists() else codec
    _write(out, task, {**task.config(), "codec": codec_name}, _settings(base, names, settings.voice, own))
    held = len(trainer.held.usable[0])
    used = len(task.mixture.usable[0])
    return Tuned(recordings, used, held, before, trainer.best, trainer.best_step, trainer.step)


def _check(settings: FineTuning, out: Path) -> None:
    if not settings.voice or not all(c.isalnum() or c in "-_" for c in settings.voice):
        raise BadInput(f"{settings.voice!r} cannot be the name of a voice; use letters, digits, - and _")
    if min(settings.steps, settings.every, settings.patience) < 1 or not 0 < settings.held < 1:
        raise BadInput("steps, every and patience must be at least 1, and the held-out share between 0 and 1")
    if (out / "config.json").exists():
        raise BadInput(f"{out} holds a model already; choose another --out")


def _packs(recordings: Recordings, folder: Path, codec: str, settings: FineTuning) -> tuple[Path, Path]:
    """Packs of what is trained on and of what is held out, with alignments and codes."""
    made = []
    for manifest in write_split(recordings.rows, folder, settings.held, settings.seed):
        pack = pack_manifest(manifest, folder / manifest.stem)
        make_track(pack, TrackJob("align", settings.aligner))
        make_track(pack, TrackJob("codes", codec))
        made.append(pack.folder)
    return made[0], made[1]


def _recipe(base: Path, config: dict[str, Any], pack: Path, codec: str, settings: FineTuning) -> Recipe:
    lr = settings.lr or (3e-4 if settings.lora is None else 2e-3)
    kept = {k: v for k, v in config.items() if k not in ("kind", "codec", "trimmed", "voices", "rates")}
    return Recipe(
        name=settings.voice,
        task="lm",
        seed=settings.seed,
        steps=settings.steps,
        batch_seconds=settings.batch_seconds,
        data=(Source(pack=pack),),
        model=kept,
        options={"codes": codec},
        optimizer=Optimizer(lr=lr, warmup=min(20, settings.steps), ema=0.99, weight_decay=0.01),
        init=base,
        log_every=settings.every,
        save_every=settings.every,
    )


class _EarlyStop(Trainer):
    """Looks at held-out recordings whenever it saves; keeps the best averaged weights, and stops when they get no
    better."""

    LOOKS = 4
    """Batches of a look; always the same ones, with the same random numbers."""

    def __init__(self, task: LMTask, recipe: Recipe, out: Path, held: Path, patience: int) -> None:
        trained: Any = task  # its network and model are of classes of their own, which the protocol does not foresee
        super().__init__(trained, recipe, out, resume=False)
        self.held = Mixture((Source(pack=held),), texts=True)
        self.held.keep("align.i16", np.int16)
        self.lm_task, self.patience = task, patience
        self.best, self.best_step, self._since = float("inf"), 0, 0

    def save(self) -> None:
        super().save()
        self.judge()

    @torch.no_grad()
    def judge(self) -> float:
        """The averaged model's loss on the held-out recordings; keeps it if it is the best so far."""
        model, task = self.lm_task.model, self.lm_task
        mine = {k: v.clone() for k, v in model.state_dict().items()}
        training = self.network.training
        model.load_state_dict({**mine, **{k: v.to(mine[k].dtype) for k, v in self.ema.items()}})
        own, task.mixture = task.mixture, self.held
        self.network.eval()
        losses = []
        try:
            with torch.random.fork_rng():
                for look in range(self.LOOKS):
                    torch.manual_seed(look)
                    batch = task.batch(np.random.default_rng(look), 0)
                    batch = {k: v.to(self.accelerator.device) for k, v in batch.items()}
                    losses.append(float(self.network(batch, self.step)["loss"]))
            loss = float(np.mean(losses))
            if loss < self.best:
                self.best, self.best_step, self._since = loss, self.step, 0
                save_file({k: v.cpu().contiguous() for k, v in model.state_dict().items()}, self._best_file)
            else:
                self._since += 1
                self.stopped = self._since >= self.patience
        finally:
            task.mixture = own
            model.load_state_dict(mine)
            self.network.train(training)
        return loss

    @property
    def _best_file(self) -> Path:
        return self.out / "best.safetensors"

    def best_weights(self) -> dict[str, torch.Tensor]:
        if not self._best_file.exists():
            raise QuaverError("the loss on the held-out recordings was never a number; lower the learning rate")
        return load_file(self._best_file)


def _names(base: Path, config: dict[str, Any]) -> dict[str, str]:
    """Public voice names of a model -> its own."""
    path = base / "settings.json"
    if path.exists():
        return dict(read_json(path).get("names", {}))
    return {voice: voice for voice in config.get("voices", ())}


def _settings(base: Path, names: dict[str, str], voice: str, own: str) -> dict[str, Any]:
    path = base / "settings.json"
    known = read_json(path) if path.exists() else {}
    return {**known, "names": {**names, voice: own}, "default": voice}


def _write(out: Path, task: LMTask, config: dict[str, Any], settings: dict[str, Any]) -> None:
    with beside(out / "model.safetensors") as part:
        save_file({k: v.detach().cpu().contiguous() for k, v in task.model.state_dict().items()}, part)
        part.chmod(0o644)  # safetensors makes private files
    for name, content in (("settings.json", settings), ("config.json", config)):
        with beside(out / name) as part:
            part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(out / "run" / "last", ignore_errors=True)  # a run with early stop is not resumed
