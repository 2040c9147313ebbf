"""What a second of speech costs with each head, side by side: `python benchmarks/heads.py [--out FOLDER]`.

Language models of one backbone (width 256, 6 layers) with random weights: codes drawn in a chain and by a depth
transformer, MELLE with 1, 2 and 4 frames a step, KALL-E, flow heads in eight evaluations and in one, ARDiT by blocks of
one and of four frames in sixteen evaluations and in one. Each says the same phones for the same number of seconds; all
of them one after the other in every round; medians of CPU time over rounds. The codec's decoder is not counted: it is
the same for codes and latents, and a vocoder's for mels.

`--model FOLDER` (repeatable): trained models say one sentence, and their spectrograms are drawn one below the other.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from quaver.nn.packed import pack_linears
from quaver.tts.ardit import Ardit, ArditConfig
from quaver.tts.generate import Generation, Request
from quaver.tts.lm import SpeechLM, SpeechLMConfig, phone_features
from quaver.tts.sampling import SamplingConfig

SENTENCE = "Bring your best compass to the third class."
PHONES = (*tuple("hɛlwldðɪsɪzətɛst") * 2, ".")
BACKBONE: dict[str, Any] = {"width": 256, "layers": 6, "heads": 4, "hidden": 688, "window": 256, "slack": 16}
MEL = {"hidden": 512, "prenet": 256, "postnet": 128}
VAE = {"dim": 32, "group": 1, "hidden": 512, "prenet": 256}
DEPTH = {"width": 128, "layers": 2, "heads": 4, "hidden": 344}


def lm(rate: float, **settings: Any) -> tuple[SpeechLM, float]:
    return SpeechLM(SpeechLMConfig.model_validate({"backbone": BACKBONE, **settings})), rate


def melle(group: int) -> tuple[SpeechLM, float]:
    backbone = {**BACKBONE, "window": 1024 // group}
    latent = {**MEL, "dim": 100 * group, "group": group}
    return lm(100 / group, head="melle", latent=latent, backbone=backbone, longest=125 // group)


def ardit(block: int, steps: int) -> tuple[Ardit, float]:
    backbone = {**BACKBONE, "hidden": 512, "window": 480, "slack": 320, "condition": 64}
    return Ardit(ArditConfig.model_validate({"block": block, "steps": steps, "backbone": backbone})), 25.0


SYSTEMS: dict[str, Callable[[], tuple[SpeechLM | Ardit, float]]] = {
    "codes, chain (8 x 1024)": lambda: lm(25),
    "codes, depth transformer": lambda: lm(25, head="depth", depth=DEPTH),
    "MELLE, r = 1": lambda: melle(1),
    "MELLE, r = 2": lambda: melle(2),
    "MELLE, r = 4": lambda: melle(4),
    "KALL-E, mel r = 4": lambda: lm(25, head="gaussian", latent={**MEL, "dim": 400, "group": 4}),
    "KALL-E, 32 latents": lambda: lm(25, head="gaussian", latent=VAE),
    "flow head, 8 evaluations": lambda: lm(25, head="flow", latent={**VAE, "steps": 8}),
    "flow head, 1 evaluation": lambda: lm(25, head="flow", latent={**VAE, "steps": 1, "distill": True}),
    "ARDiT, B = 1, 16 evaluations": lambda: ardit(1, 16),
    "ARDiT, B = 4, 16 evaluations": lambda: ardit(4, 16),
    "ARDiT, B = 1, 1 evaluation": lambda: ardit(1, 1),
    "ARDiT, B = 4, 1 evaluation": lambda: ardit(4, 1),
}


def spoken(model: SpeechLM | Ardit, frames: int) -> tuple[float, int]:
    """CPU seconds of saying so many frames, and the loop's steps."""
    generation, ticks, made = Generation(model), 0, 0
    sampling = SamplingConfig(temperature=0.7)
    plan = generation.join(0, Request(phone_features(PHONES, {0}), frames=frames, sampling=sampling))
    started = time.process_time()
    while not plan.done and made < frames:
        waiting = bool(plan.ready)
        made += len(generation.tick())
        ticks += not waiting
    return time.process_time() - started, ticks


def measure(seconds: float, rounds: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    systems = {name: make() for name, make in SYSTEMS.items()}
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, (model, _) in systems.items()}
    for model, _ in systems.values():
        pack_linears(model.eval())
    times: dict[str, list[float]] = {name: [] for name in systems}
    steps: dict[str, int] = {}
    for turn in range(rounds + 1):
        for name, (model, rate) in systems.items():
            spent, steps[name] = spoken(model, round(seconds * rate))
            if turn:  # the first round warms up
                times[name].append(spent / seconds)
    return [
        {"head": name, "parameters": sizes[name], "steps_per_second": steps[name] / seconds, "cpu": median(times[name])}
        for name in systems
    ]


def as_table(rows: list[dict[str, Any]]) -> str:
    least = min(row["cpu"] for row in rows)
    lines = [
        "| head | parameters | steps a second | CPU ms per second of speech | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        cost = f"{row['cpu'] * 1000:.0f} | {row['cpu'] / least:.2f}"
        lines.append(f"| {row['head']} | {row['parameters'] / 1e6:.1f} M | {row['steps_per_second']:.1f} | {cost} |")
    return "\n".join(lines)


def picture(folders: list[str], path: Path, seed: int) -> None:
    """Spectrograms of one sentence, said by trained models."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from quaver.codecs.features import LogMel
    from quaver.tts.synthesizer import load_synthesizer

    figure = Figure(figsize=(8, 1.6 * len(folders) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    for row, folder in enumerate(folders):
        synthesizer = load_synthesizer(folder)
        rate, spoken = synthesizer.sample_rate, synthesizer.say(SENTENCE, seed=seed)
        samples = spoken if isinstance(spoken, np.ndarray) else spoken.samples
        mel = LogMel(rate, 960, 240, 100)(torch.from_numpy(np.array(samples))[None, None])[0]
        axes, length = figure.add_subplot(len(folders), 1, row + 1), len(samples) / rate
        axes.imshow(mel.numpy(), origin="lower", aspect="auto", cmap="magma", extent=(0, length, 0, 100))
        axes.set_title(f"{Path(folder).name}: {length:.1f} s", fontsize=8, loc="left")
        axes.set_yticks([])
        axes.tick_params(labelsize=6)
    axes.set_xlabel("seconds", fontsize=7)
    figure.savefig(path, format="png", dpi=110)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, help="folder of heads.md, heads.json and heads.png")
    options.add_argument("--seconds", type=float, default=4.0, help="of speech in every round")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--model", action="append", default=[], help="a trained model to draw a spectrogram of")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    rows = measure(chosen.seconds, chosen.rounds) if chosen.rounds else []
    table = as_table(rows) if rows else ""
    sys.stdout.write(table + "\n")
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        if rows:
            (chosen.out / "heads.md").write_text(table + "\n")
            (chosen.out / "heads.json").write_text(json.dumps(rows, indent=1))
        if chosen.model:
            picture(chosen.model, chosen.out / "heads.png", chosen.seed)


if __name__ == "__main__":
    main()
