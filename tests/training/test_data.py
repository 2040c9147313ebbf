"""Packs, mixtures, alignments and recipes: what training reads is what was put in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from quaver.codecs.native import XCodec, XCodecConfig
from quaver.codecs.semantic import SemanticConfig, SemanticTokenizer
from quaver.errors import BadInput, ConfigError, MissingFile
from quaver.training.align import add_alignment, add_codes, pointers, progress_of, speaking_rate
from quaver.training.loop import learning_rate
from quaver.training.losses import SpectralLoss
from quaver.training.pack import Pack, pack_manifest
from quaver.training.recipe import Optimizer, Source, load_recipe
from quaver.training.sampling import Mixture
from quaver.training.tasks.ctc import ctc_symbols
from quaver.tts.alignment import align, ctc_targets, starts_of
from quaver.tts.text import is_pause

from ..laws import many, randn
from .conftest import MODELS, PHONES, STARTS, MakeRecipe


def test_pack_round_trip(tmp_path: Path) -> None:
    """Mono at 24 kHz, and stereo at 16 kHz resampled; text, phones and words survive."""
    rows = []
    for name, rate, channels in (("a", 24_000, 1), ("b", 16_000, 2)):
        wave = 0.5 * np.sin(2 * np.pi * 200 * np.arange(rate // 2) / rate)
        soundfile.write(tmp_path / f"{name}.wav", np.stack([wave] * channels, 1), rate)
        row = {
            "path": f"{name}.wav",
            "text": "hello world.",
            "voice": name,
            "seconds": 0.5,
            "phonemes": "həlˈO wˈɜɹld.",
        }
        rows.append(json.dumps(row))
    (tmp_path / "m.jsonl").write_text("\n".join(rows) + "\n")
    pack = pack_manifest(tmp_path / "m.jsonl", tmp_path / "pack")
    assert len(pack) == 2
    assert [e.voice for e in pack.entries] == ["a", "b"]
    assert [w[0] for w in pack.entries[0].words] == ["hello", "world"]
    assert pack.entries[0].phones[-1] == "."
    expected = 0.5 * np.sin(2 * np.pi * 200 * np.arange(12_000) / 24_000)
    for i in range(2):
        assert pack.entries[i].samples == 12_000
        assert np.abs(pack.wave(i) - expected)[500:-500].max() < 5e-3
    assert not list((tmp_path / "pack").glob("*.part"))


def test_a_crop_is_padded_with_silence_and_never_reads_the_next_utterance(pack: Pack) -> None:
    whole = pack.wave(1)
    assert len(whole) == pack.entries[1].samples
    crop = pack.wave(1, len(whole) - 100, 400)
    assert np.array_equal(crop[:100], whole[-100:])
    assert not crop[100:].any()


def test_tracks_come_back_as_written(pack: Pack) -> None:
    arrays = [np.arange(i * 3).reshape(i, 3) for i in range(4)]
    pack.write_track("x.i16", arrays, np.int16)
    track, offsets = pack.track("x.i16", np.int16, 3)
    assert offsets.tolist() == [0, 0, 1, 3, 6]
    assert all(np.array_equal(track[offsets[i] : offsets[i + 1]], a) for i, a in enumerate(arrays))
    with pytest.raises(BadInput, match="3 arrays"):
        pack.write_track("y.i16", arrays[:3], np.int16)
    for missing in (lambda: pack.track("y.i16", np.int16), lambda: Pack(pack.folder / "nowhere")):
        with pytest.raises(MissingFile):
            missing()


def test_starts_of_a_best_path() -> None:
    """Blanks belong to the target before them; equal neighbours are parted by a blank; the first begins at 0."""
    path = np.array([0, 0, 4, 4, 0, 4, 2, 2, 0, 0, 3])
    assert starts_of(path, 4).tolist() == [0, 5, 6, 10]
    assert starts_of(np.array([1, 1, 1]), 1).tolist() == [0]


@many
@given(
    gaps=st.lists(st.integers(0, 9), min_size=1, max_size=10),
    frames=st.integers(0, 60),
)
def test_pointers_only_move_forward_and_begin_at_the_silence(gaps: list[int], frames: int) -> None:
    starts = np.concatenate([[0], np.cumsum(gaps)]).astype(np.int16)
    pointer = pointers(starts, frames)
    assert len(pointer) == frames
    if frames:
        assert pointer[0] == 0
        assert (np.diff(pointer) >= 0).all()
        assert pointer.max() < len(starts)
    for t in range(1, frames):
        middle = 2 * t + 1
        assert starts[pointer[t]] <= middle
        assert pointer[t] == len(starts) - 1 or starts[pointer[t] + 1] > middle
    progress = progress_of(pointer)
    for t in range(frames):
        assert progress[t] == t - int(np.flatnonzero(pointer == pointer[t])[0])


def test_the_speaking_rate_leaves_pauses_out() -> None:
    starts = np.array([0, 10, 20, 70, 80])
    assert speaking_rate(starts, ("h", ",", "l", "."), is_pause, 200) == pytest.approx(2 / (20 / 50))


def test_ctc_symbols_cover_every_phone() -> None:
    symbols = ctc_symbols()
    assert len(set(symbols)) == len(symbols)
    assert symbols[0] == "-"
    targets = ctc_targets(PHONES)
    assert set(targets) <= set(symbols)
    assert len(targets) == len(PHONES) + 1
    assert targets[0] == targets[-1] == "|"


def test_each_phone_says_how_surely_it_is_where_it_is() -> None:
    torch.manual_seed(0)
    model = SemanticTokenizer(SemanticConfig.model_validate({**MODELS["ctc"], "symbols": ctc_symbols()})).eval()
    found = align(model, 0.1 * torch.randn(1, 1, 19_200), PHONES)
    assert found is not None
    assert found.sureness.shape == found.starts.shape
    assert (found.sureness < 0).all()
    spoken = [i + 1 for i, p in enumerate(PHONES) if not is_pause(p)]
    # The score weighs by frames what `sureness` weighs by phones; both are means of the same log probabilities.
    low, high = np.exp(found.sureness[spoken].min()), np.exp(found.sureness[spoken].max())
    assert low <= found.score <= high


def test_alignment_and_codes_are_added_for_every_utterance(pack: Pack) -> None:
    torch.manual_seed(0)
    model = SemanticTokenizer(SemanticConfig.model_validate({**MODELS["ctc"], "symbols": ctc_symbols()})).eval()
    add_alignment(pack, model)
    track, offsets = pack.track("align.i16", np.int16)
    for i in range(len(pack)):
        starts = track[offsets[i] : offsets[i + 1], 0]
        assert len(starts) == len(PHONES) + 1
        assert starts[0] == 0
        assert (np.diff(starts) > 0).all()
    assert align(model, torch.zeros(1, 1, 960), PHONES) is None  # two frames cannot hold ten symbols
    codec = XCodec(XCodecConfig(**MODELS["codec"])).eval()
    add_codes(pack, codec, "mine")
    codes, offsets = pack.track("codes.mine.u16", np.uint16, 3)
    assert np.diff(offsets).tolist() == [-(-e.samples // 960) for e in pack.entries]
    with torch.no_grad():
        expected = codec.encode(torch.from_numpy(pack.wave(2))[None, None])[0][0].T
    assert np.array_equal(codes[offsets[2] : offsets[3]], expected.numpy())


def test_language_model_batches_hold_what_the_alignment_says(recipe: MakeRecipe) -> None:
    from quaver.training.tasks import build_task

    task = build_task(recipe("lm", batch_seconds=3.0, options={"rate_drop": 0.0}))
    batch = task.batch(np.random.default_rng(0), 0)
    assert batch["codes"].shape[:2] == (len(batch["voice"]), 3)
    pointer = torch.from_numpy(pointers(STARTS, batch["codes"].shape[-1]))
    for row in range(len(batch["voice"])):
        frames = int((batch["codes"][row, 0] != 12).sum())
        assert torch.equal(batch["pointer"][row, :frames], pointer[:frames])
        advance = batch["advance"][row]
        assert torch.equal(advance[: frames - 1], pointer[1:frames] - pointer[: frames - 1])
        assert advance[frames - 1] == len(PHONES) + 1 - pointer[frames - 1]  # the last frame leaves the text: the stop
        assert (advance[frames:] == -100).all()
        assert (batch["codes"][row, :, frames:] == 12).all()
    assert batch["rate"].abs().max() <= 0.4


def test_mixtures_draw_by_weight_and_keep_to_their_hours(pack: Pack) -> None:
    mixture = Mixture((Source(pack=pack.folder, weight=3), Source(pack=pack.folder, weight=1)))
    rng = np.random.default_rng(0)
    first = sum(mixture.utterance(rng).pack is mixture.packs[0] for _ in range(2000)) / 2000
    assert abs(first - 0.75) < 0.04
    for _ in range(50):
        picks = mixture.bucket(rng, 2.0)
        longest = max(p.pack.entries[p.index].seconds for p in picks)
        assert longest * len(picks) < 3.2
    small = Mixture((Source(pack=pack.folder, hours=1.3 / 3600),))
    assert sorted(small.usable[0].tolist()) == [0]
    with pytest.raises(BadInput, match="utterance"):
        Mixture((Source(pack=pack.folder),), longest=0.1)


def test_speech_without_a_text_is_left_out_where_texts_are_learnt(pack: Pack) -> None:
    lines = (pack.folder / "index.jsonl").read_text().splitlines()
    bare = [json.dumps({**json.loads(line), "phones": [], "words": []}) for line in lines]
    (pack.folder / "index.jsonl").write_text("\n".join([lines[0], *bare[1:]]) + "\n")
    assert Mixture((Source(pack=pack.folder),), texts=True).usable[0].tolist() == [0]
    assert len(Mixture((Source(pack=pack.folder),)).usable[0]) == len(lines)
    (pack.folder / "index.jsonl").write_text("\n".join(bare) + "\n")
    with pytest.raises(BadInput, match="with a text"):
        Mixture((Source(pack=pack.folder),), texts=True)


def test_the_learning_rate_warms_up_then_falls_along_a_cosine() -> None:
    optimizer = Optimizer(lr=1.0, warmup=10, final=0.1)
    rates = [learning_rate(optimizer, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(Optimizer(lr=1.0, warmup=0), 500, 10) == pytest.approx(0.02)


def test_the_spectral_loss_is_zero_for_equal_signals_and_finite_for_silence() -> None:
    loss = SpectralLoss()
    x = 0.1 * randn(1, 6000)
    assert all(float(v) == 0 for v in loss(x, x).values())
    quiet = torch.zeros(1, 6000, requires_grad=True)
    losses = loss(quiet, torch.zeros(1, 6000))
    (gradient,) = torch.autograd.grad(losses["stft"] + losses["mel"], quiet)
    assert torch.isfinite(gradient).all()
    near, far = loss(0.9 * x, x), loss(0.1 * x, x)
    assert all(0 < near[k] < far[k] for k in near)


RECIPE = "name: x\ntask: lm\nsteps: 5\nbatch_seconds: 1\ndata: [{pack: p}]\n"


def test_recipes_are_read_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(path, ["steps=9", "optimizer.lr=0.5", "model.backbone.width=8"])
    assert (recipe.steps, recipe.optimizer.lr, recipe.model) == (9, 0.5, {"backbone": {"width": 8}})


@pytest.mark.parametrize(
    ("text", "override"),
    [
        (RECIPE, "steps"),
        (RECIPE, "stepz=3"),
        (RECIPE, "steps=many"),
        (RECIPE, "steps.x=3"),
        (RECIPE, "data.0.pack=q"),
        (RECIPE + "surprise: 1\n", "steps=3"),
        ("name: [", "steps=3"),
        ("- a\n- b\n", "steps=3"),
        ("", "steps=3"),
    ],
)
def test_a_faulty_recipe_is_a_clear_error(tmp_path: Path, text: str, override: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, [override])
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="recipes"):
        load_recipe(tmp_path / "r.yaml")
