"""Continuous tokens in training: stored latents, ARDiT and its distillation, the pointer layout's heads over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quaver.codecs.loading import load_codec, weights_sha256
from quaver.codecs.native import XCodec, XCodecConfig
from quaver.errors import BadInput, ConfigError, MissingFile
from quaver.training.align import add_codes, latents_track
from quaver.training.export import export
from quaver.training.loop import Trainer
from quaver.training.narrow import narrow_modulation
from quaver.training.pack import Pack
from quaver.training.recipe import Recipe
from quaver.training.tasks import build_task
from quaver.training.tasks.latent_lm import _one_more
from quaver.tts.ardit import Ardit
from quaver.tts.lm import SpeechLM
from quaver.tts.synthesizer import load_lm

from ..laws import randomised

BACKBONE = {"width": 8, "layers": 1, "heads": 2, "hidden": 12, "window": 60, "slack": 40}
ARDIT: dict[str, Any] = {
    "dim": 4,
    "block": 3,
    "backbone": {**BACKBONE, "condition": 6},
    "phone_blocks": 1,
    "phone_hidden": 8,
}
LM: dict[str, Any] = {
    "head": "gaussian",
    "latent": {"dim": 8, "group": 2, "hidden": 8, "prenet": 8},
    "backbone": BACKBONE,
    "phone_blocks": 1,
    "phone_hidden": 8,
}


@pytest.fixture
def codec(tmp_path: Path) -> Path:
    """A small codec with a continuous bottleneck, random."""
    folder = tmp_path / "tiny-vae"
    folder.mkdir()
    small: dict[str, Any] = {"width": 12, "hidden": 16, "mels": 16, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}
    config = XCodecConfig.model_validate({**small, "bottleneck": "vae", "dim": 4, "semantic": "none"})
    torch.manual_seed(0)
    save_file(randomised(XCodec(config)).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"kind": "codec", **config.model_dump()}))
    return folder


def recipe(task: str, pack: Pack, codec: Path, model: dict[str, Any], **changes: Any) -> Recipe:
    options = {"codes": str(codec), **changes.pop("options", {})}
    base = {"name": task, "task": task, "steps": 3, "batch_seconds": 1.5, "seed": 7, "save_every": 50}
    base |= {"data": [{"pack": pack.folder}], "optimizer": {"lr": 0.01, "warmup": 2}}
    return Recipe.model_validate({**base, "model": model, "options": options, **changes})


def test_latents_are_stored_as_the_codec_gives_them(pack: Pack, codec: Path) -> None:
    model = load_codec(str(codec))
    add_codes(pack, model, codec.name)
    track, offsets = pack.track(latents_track(codec.name), np.float16, 8)
    assert list(np.diff(offsets)) == [-(-e.samples // 960) for e in pack.entries]
    mean, log_std = model.posterior(torch.from_numpy(pack.wave(1))[None, None])
    assert log_std is not None
    stored = torch.from_numpy(np.array(track[offsets[1] : offsets[2]], np.float32)).T
    assert torch.allclose(stored, torch.cat([mean, log_std], 1)[0], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("align", ["exact", "uniform"])
def test_ardit_learns_and_is_exported(pack: Pack, codec: Path, tmp_path: Path, align: str) -> None:
    add_codes(pack, load_codec(str(codec)), codec.name)
    made = recipe("ardit", pack, codec, {**ARDIT, "align": align}, options={"gaps": 0.5})
    task = build_task(made)
    model = task.model
    assert isinstance(model, Ardit)
    batch = task.batch(np.random.default_rng(0), 0)
    ranks = batch["rank"]
    assert bool((ranks.amax(1) > 0).all())
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.02), []
    for step in range(60):
        torch.manual_seed(step % 4)  # the same few draws of noise and time: the loss must fall
        loss = task.network(batch, step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    Trainer(build_task(made), made, tmp_path / "run", resume=False).run()
    export(tmp_path / "run", tmp_path / "model")
    lm, name = load_lm(str(tmp_path / "model"))
    assert isinstance(lm, Ardit)
    assert name == str(codec)
    assert lm.config.voices == ("v0", "v1")


def test_a_narrow_modulation_is_nearly_the_same(pack: Pack, codec: Path, tmp_path: Path) -> None:
    add_codes(pack, load_codec(str(codec)), codec.name)
    made = recipe("ardit", pack, codec, ARDIT)
    Trainer(build_task(made), made, tmp_path / "run", resume=False).run()
    whole, _ = load_lm(str(tmp_path / "run"))
    assert isinstance(whole, Ardit)
    randomised(whole, scale=0.2)
    for rank, error in ((4, 0.4), (2, 0.8)):
        small = narrow_modulation(whole, rank)
        condition = torch.nn.functional.silu(whole._when(torch.tensor([0.3])) + whole.voice.weight[:1])
        layers = zip(whole.backbone.layers, small.backbone.layers, strict=True)
        pairs = [(a.modulation(condition).detach(), b.modulation(condition)) for a, b in layers]  # type: ignore[operator]
        assert all(float((a - b.detach()).norm() / a.norm()) < error for a, b in pairs)
    card = export(tmp_path / "run", tmp_path / "small", modulation_rank=2)
    assert card["parameters"] < sum(p.numel() for p in whole.parameters())
    lm, _ = load_lm(str(tmp_path / "small"))
    assert lm.config.backbone.modulation_rank == 2
    for rank in (0, 5):
        with pytest.raises(BadInput, match="makes nothing smaller"):
            narrow_modulation(whole, rank)


def test_gaps_are_what_the_mask_expects(pack: Pack, codec: Path) -> None:
    add_codes(pack, load_codec(str(codec)), codec.name)
    task: Any = build_task(recipe("ardit", pack, codec, ARDIT, options={"gaps": 1.0}))
    rng = np.random.default_rng(0)
    for _ in range(20):
        rank = task._rank(30, rng)
        inside = np.flatnonzero(rank)
        assert len(inside) >= 3
        assert np.array_equal(inside, np.arange(inside[0], inside[-1] + 1))
        assert np.array_equal(rank[inside], 1 + np.arange(len(inside)) // 3)


def test_a_student_comes_nearer_to_its_teachers_end_points(pack: Pack, codec: Path, tmp_path: Path) -> None:
    add_codes(pack, load_codec(str(codec)), codec.name)
    made = recipe("ardit", pack, codec, ARDIT, steps=30)
    Trainer(build_task(made), made, tmp_path / "teacher", resume=False).run()
    student = recipe("ardit_distill", pack, codec, ARDIT, init=tmp_path / "teacher", options={"euler": 4})
    task: Any = build_task(student)
    assert task.config()["steps"] == 1
    before = {name: p.clone() for name, p in task.network._teacher[0].named_parameters()}
    randomised(task.model.out, scale=0.5)  # it has forgotten something
    batch = task.batch(np.random.default_rng(0), 0)
    parameters = [p for p in task.network.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.Adam(parameters, 0.005), []
    for step in range(60):
        torch.manual_seed(step % 3)
        out = task.network(batch, step)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(float(out["regression"].detach()))
    assert np.mean(losses[-6:]) < 0.5 * losses[0]
    assert all(torch.equal(p, before[name]) for name, p in task.network._teacher[0].named_parameters())
    same = [name for name, p in task.model.named_parameters() if torch.equal(p, before[name])]
    assert {name.split(".")[0] for name in same} >= {"phones", "lengths", "pace"}  # it speaks as long as its teacher


def test_a_student_needs_a_teacher(pack: Pack, codec: Path) -> None:
    add_codes(pack, load_codec(str(codec)), codec.name)
    with pytest.raises(ConfigError, match="starts from its teacher"):
        build_task(recipe("ardit_distill", pack, codec, ARDIT))


def test_the_heads_read_stored_latents_or_the_audio(pack: Pack, codec: Path) -> None:
    from_audio: Any = build_task(recipe("latent_lm", pack, codec, LM))
    assert "audio" in from_audio.batch(np.random.default_rng(0), 0)
    add_codes(pack, load_codec(str(codec)), codec.name)
    stored: Any = build_task(recipe("latent_lm", pack, codec, LM, options={"normalise": True}))
    assert isinstance(stored.model, SpeechLM)
    batch = stored.batch(np.random.default_rng(0), 0)
    assert batch["latents"].shape[2] == 16  # mean and spread of two frames of four numbers
    assert batch["latents"].shape[:2] == batch["pointer"].shape
    losses = stored.network(batch, 0)
    assert bool(losses["loss"].isfinite())


def test_another_head_begins_with_a_trained_body(pack: Pack, codec: Path, tmp_path: Path) -> None:
    add_codes(pack, load_codec(str(codec)), codec.name)
    first = recipe("latent_lm", pack, codec, LM, options={"normalise": True})
    Trainer(build_task(first), first, tmp_path / "kalle", resume=False).run()
    trained = load_file(tmp_path / "kalle" / "model.safetensors")
    options = {"normalise": True, "body": str(tmp_path / "kalle")}
    task: Any = build_task(recipe("latent_lm", pack, codec, {**LM, "head": "melle"}, options=options))
    own = task.model.state_dict()
    assert all(torch.equal(x, own[key]) for key, x in trained.items() if not key.startswith("head."))
    assert torch.equal(own["head.scale"], trained["head.scale"])
    assert task.network(task.batch(np.random.default_rng(0), 0), 0)["loss"].isfinite()
    wide = {**LM, "backbone": {**BACKBONE, "width": 12}}
    with pytest.raises(ConfigError, match=r"options\.body.*the same backbone"):
        build_task(recipe("latent_lm", pack, codec, wide, options=options))


@pytest.mark.parametrize(("head", "stop"), [("gaussian", "distance"), ("gaussian", "logit"), ("melle", "logit")])
def test_a_stop_rule_is_learnt(pack: Pack, codec: Path, head: str, stop: str) -> None:
    add_codes(pack, load_codec(str(codec)), codec.name)
    model = {**LM, "head": head, "latent": {**LM["latent"], "stop": stop}}
    task: Any = build_task(recipe("latent_lm", pack, codec, model, options={"losses": {"stop": 1.0}}))
    batch = task.batch(np.random.default_rng(0), 0)
    optimizer, losses = torch.optim.Adam(task.model.parameters(), 0.02), []
    for step in range(60):
        torch.manual_seed(step % 4)
        out = task.network(batch, step)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(float(out["stop"].detach()))
    assert np.mean(losses[-4:]) < 0.5 * losses[0]


def test_the_step_after_the_end_follows_the_last_one() -> None:
    holds = torch.tensor([[True, True, True], [True, False, False]])
    values = torch.tensor([[1, 2, 5], [3, 0, 0]])
    assert _one_more(values, holds, 1).tolist() == [[1, 2, 5, 6], [3, 4, 0, 0]]


def test_what_is_missing_is_said(pack: Pack, codec: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"latents\.tiny-vae"):
        build_task(recipe("ardit", pack, codec, ARDIT))
    config = json.loads((codec / "config.json").read_text()) | {"bottleneck": "fsq", "levels": [3, 3, 3, 3]}
    codes = tmp_path / "codes"
    codes.mkdir()
    (codes / "config.json").write_text(json.dumps(config))
    settings = {name: value for name, value in config.items() if name != "kind"}
    save_file(XCodec(XCodecConfig.model_validate(settings)).state_dict(), codes / "model.safetensors")
    with pytest.raises(ConfigError, match="needs a codec with a vae bottleneck"):
        build_task(recipe("ardit", pack, codes, ARDIT))


def test_latents_of_other_weights_are_refused(pack: Pack, codec: Path) -> None:
    add_codes(pack, load_codec(str(codec)), codec.name, source=weights_sha256(codec))
    build_task(recipe("ardit", pack, codec, ARDIT))
    weights = load_file(codec / "model.safetensors")
    save_file({name: x + 0.01 for name, x in weights.items()}, codec / "model.safetensors")
    for task, model in (("ardit", ARDIT), ("latent_lm", LM)):
        with pytest.raises(BadInput, match="made by another codec of that name"):
            build_task(recipe(task, pack, codec, model))


def test_a_mel_has_no_posterior_to_store(pack: Pack) -> None:
    from quaver.codecs.mel import MelCodec, MelConfig

    with pytest.raises(BadInput, match="no posterior"):
        add_codes(pack, MelCodec(MelConfig(mels=16, width=12, hidden=16, blocks=1)), "mel")
