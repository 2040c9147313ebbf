"""Conditioners: a label or words in the manifest reach the pack, the model, and what it says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quaver.errors import BadInput, ConfigError
from quaver.training.corpus import load_manifest
from quaver.training.loop import Trainer
from quaver.training.pack import Pack, pack_manifest
from quaver.training.tasks import build_task
from quaver.tts.conditions import Condition, Conditioners
from quaver.tts.generate import Generation
from quaver.tts.guidance import GuidedLM
from quaver.tts.sampling import SamplingConfig
from quaver.tts.token_lm import load_token_lm
from quaver.tts.token_plan import TokenRequest

from .conftest import MakeRecipe

EMOTIONS = ("angry", "calm")
WORDS = ("say it in anger", "say it calmly")
SIZES = {"width": 32, "layers": 1, "heads": 2, "hidden": 48, "window": 120, "slack": 15}


@pytest.fixture
def told(pack: Pack) -> Pack:
    """The tiny pack, each utterance with an emotion; the emotion alone decides its codes."""
    rows = [json.loads(line) for line in (pack.folder / "index.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        row["about"] = {"emotion": EMOTIONS[i % 2], "instruct": WORDS[i % 2]}
    (pack.folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Pack(pack.folder)


@pytest.mark.parametrize(("name", "kind"), [("emotion", "label"), ("instruct", "text")])
def test_the_label_decides_what_is_said(name: str, kind: str, told: Pack, recipe: MakeRecipe, tmp_path: Path) -> None:
    settings: Any = recipe(
        "token_lm",
        steps=60 if kind == "label" else 200,
        batch_seconds=1.0,
        model={"conditions": [{"name": name, "kind": kind, "drop": 0.2}], "backbone": SIZES},
        options={"replace": 0.0, "blank": 0.0, "speakers": False},
        optimizer={"lr": 0.01, "warmup": 5, "ema": 0.8},
    )
    width = settings.model.get("codebooks", 1)
    counts = [-(-e.samples // 960) for e in told.entries]
    tracks = [np.full((n, width), 3 + 4 * (i % 2)) for i, n in enumerate(counts)]
    told.write_track(f"codes.{settings.options['codes']}.u16", tracks, np.uint16)
    torch.manual_seed(0)
    task: Any = build_task(settings)
    Trainer(task, settings, tmp_path / "run").run()
    lm, _ = load_token_lm(str(tmp_path / "run"))
    assert lm.config.conditions[0].labels == (EMOTIONS if kind == "label" else ())
    text = task._text(next(iter(task.mixture.bucket(np.random.default_rng(0), 1.0))))

    def said(value: str | None, guidance: float = 1.0) -> int:
        """The code that is said most: a model of an utterance or two may wander off past their length."""
        model = lm if guidance == 1 else GuidedLM(lm)
        conditions = {} if value is None else {name: value}
        generation, codes = Generation(model), Counter[int]()
        request = TokenRequest(
            text, conditions=conditions, over="conditions", guidance=guidance, sampling=SamplingConfig(temperature=0)
        )
        plan = generation.join(0, request)
        while not plan.done:
            codes.update(int(f.codes[0]) for f in generation.tick().values())
        return codes.most_common(1)[0][0]

    values = EMOTIONS if kind == "label" else WORDS
    assert said(values[0]) == 3
    assert said(values[1]) == 7
    assert said(values[1], guidance=3.0) == 7
    assert said(None) in (3, 7)  # left out in training too
    with pytest.raises(BadInput, match=name):
        said("furious" if kind == "label" else " ")
    with pytest.raises(BadInput, match="no condition"):
        Generation(lm).join(0, TokenRequest(text, conditions={"tempo": "fast"}))


def test_a_condition_that_no_pack_knows_is_refused(recipe: MakeRecipe) -> None:
    with pytest.raises(ConfigError, match="no pack says 'emotion'"):
        build_task(recipe("token_lm", model={"conditions": [{"name": "emotion"}]}))


def test_what_a_manifest_says_in_words_reaches_the_pack(told: Pack, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "a.wav", told.wave(0), 24_000)
    row = {"path": "a.wav", "text": "Hello.", "voice": "x", "seconds": 1.0, "emotion": "calm", "speed": 1.0}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    assert load_manifest(tmp_path / "manifest.jsonl")[0].about == {"emotion": "calm"}
    assert pack_manifest(tmp_path / "manifest.jsonl", tmp_path / "pack").entries[0].about == {"emotion": "calm"}


def test_a_batch_of_instructions_equals_its_items() -> None:
    torch.manual_seed(0)
    known = (Condition(name="emotion", labels=EMOTIONS), Condition(name="instruct", kind="text"))
    net = Conditioners(known, 8)
    told: list[dict[str, str]] = [{"emotion": "calm", "instruct": "slow"}, {"instruct": "much longer than that"}, {}]
    rows = [net.ids(values) for values in told]
    longest = max(r.shape[1] for r in rows)
    batch = torch.stack([torch.nn.functional.pad(r, (0, longest - r.shape[1]), value=-1) for r in rows])
    with torch.no_grad():
        whole = net(batch)
        for i, row in enumerate(rows):
            assert torch.allclose(whole[i], net(row[None])[0], atol=1e-5)
    assert torch.equal(whole[2], net.absent)
    assert torch.equal(whole[1, 0], net.absent[0])
    assert net.guess("CALM") == {"emotion": "calm"}
    assert net.guess("as if in a hurry") == {"instruct": "as if in a hurry"}
    with pytest.raises(BadInput, match="angry, calm"):
        Conditioners(known[:1], 8).guess("as if in a hurry")
    with pytest.raises(ValueError, match="labels"):
        Condition(name="x", kind="text", labels=("a",))
