"""A pack of synthetic signals with all its tracks, and recipes of tiny models for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quaver.training.pack import Pack
from quaver.training.recipe import Recipe

PHONES = ("h", "ə", "l", ",", "w", "ɜː", "l", "d", ".")
STARTS = np.array([0, 3, 6, 8, 11, 14, 16, 20, 22, 26], np.int16)  # 50 Hz frames of ^ and of each phone


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Four utterances of 0.6 to 0.9 s, two voices."""
    folder = tmp_path / "pack"
    folder.mkdir()
    start, waves, lines = 0, [], []
    for i in range(4):
        samples = 14_400 + 2400 * i + 100
        time = np.arange(samples) / 24_000
        waves.append((8000 * np.sin(2 * np.pi * (150 + 30 * i) * time)).astype(np.int16))
        row = {"id": f"u{i}", "voice": f"v{i % 2}", "text": "hello, world.", "phones": PHONES}
        words = [("hello", 0, 3), ("world", 4, 8)]
        lines.append(json.dumps({**row, "words": words, "start": start, "samples": samples}))
        start += samples
    (folder / "audio.i16").write_bytes(np.concatenate(waves).tobytes())
    (folder / "index.jsonl").write_text("\n".join(lines) + "\n")
    pack = Pack(folder)
    rng = np.random.default_rng(0)
    pack.write_track("f0.f16", [np.full(e.frames_100hz, 150.0) for e in pack.entries], np.float16)
    pack.write_track("align.i16", [STARTS] * 4, np.int16)
    codes = [rng.integers(0, 12, (-(-e.samples // 960), 3)) for e in pack.entries]
    pack.write_track("codes.tiny.u16", codes, np.uint16)
    return pack


SMALL = {"width": 12, "hidden": 16, "mels": 16}
MODELS: dict[str, dict[str, Any]] = {
    "ctc": {**SMALL, "low_blocks": 1, "middle_blocks": 1, "upper_blocks": 1, "levels": (3, 3, 3)},
    "codec": {
        **SMALL,
        "encoder_blocks": (1, 1),
        "decoder_blocks": (1, 1),
        "dim": 4,
        "codebooks": 3,
        "vocab": 12,
        "semantic_dim": 6,
        "teacher_dim": 12,
    },
    "lm": {
        "codebooks": 3,
        "vocab": 12,
        "head_hidden": 8,
        "backbone": {"width": 8, "layers": 1, "heads": 2, "hidden": 12, "window": 40, "slack": 2},
        "phone_blocks": 1,
        "phone_hidden": 8,
    },
}
TINY = {"width": 8, "layers": 2, "heads": 2, "hidden": 12, "window": 120, "slack": 7}
MODELS |= {
    "token_lm": {"codebooks": 3, "vocab": 12, "backbone": TINY, "silent_run": 8},
    "flow": {
        "codebooks": 3,
        "vocab": 12,
        "levels": (),
        "mels": 16,
        "chunk": 4,
        "chunks": (0, 4),
        "backbone": {**TINY, "condition": 8},
    },
    "vocoder": {**SMALL, "blocks": 1},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ctc": {},
    "codec": {"crop": 0.48},
    "lm": {"codes": "tiny"},
    "token_lm": {"codes": "tiny"},
    "flow": {"codes": "tiny"},
    "vocoder": {"crop": 0.48},
}

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def recipe(pack: Pack) -> MakeRecipe:
    """`recipe("lm", steps=3, options={...})`"""

    def make(task: str, **changes: Any) -> Recipe:
        model = {**MODELS[task], **changes.pop("model", {})}
        options = {**OPTIONS[task], **changes.pop("options", {})}
        base = {
            "name": task,
            "task": task,
            "steps": 3,
            "batch_seconds": 1.5,
            "seed": 7,
            "log_every": 2,
            "save_every": 50,
        }
        data = [{"pack": pack.folder}]
        optimizer = {"lr": 0.01, "warmup": 2}
        return Recipe.model_validate(
            {**base, "data": data, "model": model, "options": options, "optimizer": optimizer, **changes}
        )

    return make
