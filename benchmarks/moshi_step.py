"""A step of Moshi's language model, ours beside package `moshi`: `python benchmarks/moshi_step.py --moshi FOLDER`.

The same random weights in both (theirs are saved and read by `quaver.dialogue.moshi`), the same configuration (a small
one: `--dim`, `--layers`), float32, one thread, sampling with top-k in both, turn by turn in one process. Ours is the
step of a live session without its codec (`DuplexBatch`), recorded as the server runs it; theirs is `LMGen.step`.
Medians of CPU time.

`--moshi FOLDER` is where the package was installed to (`pip install --target FOLDER --no-deps moshi einops`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from quaver.codecs.native import XCodec, XCodecConfig
from quaver.dialogue.model import DuplexModel
from quaver.dialogue.monologue import PieceVocabulary
from quaver.dialogue.moshi import MOSHI_7B, load_moshi
from quaver.dialogue.session import DuplexBatch, DuplexSettings
from quaver.nn.recorded import record

CARD, TEXTS = 2048, 8000


def configuration(dim: int, layers: int) -> dict[str, Any]:
    """Moshi's, with fewer and narrower layers, and as many text tokens as a small vocabulary has."""
    sizes = {"dim": dim, "num_layers": layers, "num_heads": dim // 64, "text_card": TEXTS, "context": 250}
    depth = {"depformer_dim": dim // 2, "depformer_num_heads": dim // 128, "depformer_num_layers": 4}
    more = {"depformer_dim_feedforward": int(4.125 * dim / 2), "depformer_multi_linear": True}
    fixed = {"gating": "silu", "positional_embedding": "rope", "depformer_pos_emb": "none", "causal": True}
    return {
        **MOSHI_7B,
        **sizes,
        **depth,
        **more,
        **fixed,
        "depformer_weights_per_step": True,
        "depformer_gating": "silu",
    }


def theirs(config: dict[str, Any]) -> Any:
    from moshi.models.lm import LMModel

    torch.manual_seed(0)
    return LMModel(device="cpu", dtype=torch.float32, **config).eval()


def ours(model: Any, config: dict[str, Any]) -> DuplexModel:
    with tempfile.TemporaryDirectory() as folder:
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return load_moshi(Path(folder)).eval()


def our_step(model: DuplexModel, slots: int) -> Callable[[torch.Tensor], Any]:
    """Codes of the user `[slot, 8]` -> the next column."""
    small: dict[str, Any] = {"width": 8, "hidden": 8, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1), "dim": 4}
    codec = XCodec(XCodecConfig.model_validate({**small, "codebooks": 8, "vocab": CARD, "semantic": "none"}))
    vocabulary = PieceVocabulary([f"w{i}" for i in range(200)])
    vocabulary.pad, vocabulary.epad = model.config.pad, model.config.epad  # type: ignore[misc]
    batch = DuplexBatch(model, codec, vocabulary, slots)
    for slot in range(slots):
        batch.join(slot, DuplexSettings(top_k=250, text_top_k=25, temperature=0.8, text_temperature=0.7))
    dice = torch.Generator().manual_seed(0)
    trials = [(torch.randint(CARD, (slots, 8), generator=dice),) for _ in range(3)]
    step = record(batch._advance, batch.state, [model], trials)
    return torch.inference_mode()(step or batch._advance)


def their_step(model: Any, slots: int) -> Callable[[torch.Tensor], Any]:
    from moshi.models.lm import LMGen

    generator = LMGen(model, temp=0.8, temp_text=0.7, top_k=250, top_k_text=25)
    generator.streaming_forever(slots)
    return torch.inference_mode()(lambda codes: generator.step(codes[..., None]))


def spent(step: Callable[[torch.Tensor], Any], codes: torch.Tensor) -> float:
    started = time.process_time()
    step(codes)
    return time.process_time() - started


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--moshi", help="folder of the package")
    options.add_argument("--dim", type=int, default=512)
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--steps", type=int, default=40)
    chosen = options.parse_args()
    if chosen.moshi:
        sys.path.insert(0, chosen.moshi)
    os.environ.setdefault("NO_TORCH_COMPILE", "1")  # of their package, which otherwise looks for a compiler
    torch.set_num_threads(1)
    config = configuration(chosen.dim, chosen.layers)
    with torch.inference_mode():
        reference = theirs(config)
    model = ours(reference, config)
    out = sys.stdout.write
    size = sum(p.numel() for p in model.parameters()) / 1e6
    out(f"{size:.0f} M parameters, 1 + 8 + 8 streams, float32, one thread\n\n")
    out("| slots | quaver, ms a step | moshi, ms a step | ratio |\n|---:|---:|---:|---:|\n")
    for slots in (1, 8):
        steps = {"quaver": our_step(model, slots), "moshi": their_step(theirs(config), slots)}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(chosen.steps):
            codes = torch.randint(CARD, (slots, 8))
            for name, step in steps.items():
                times[name].append(spent(step, codes))
        mine, other = (1000 * median(times[name][5:]) for name in ("quaver", "moshi"))
        out(f"| {slots} | {mine:.1f} | {other:.1f} | {mine / other:.2f} |\n")


if __name__ == "__main__":
    main()
