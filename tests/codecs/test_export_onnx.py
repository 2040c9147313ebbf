"""The native codec as ONNX graphs: onnxruntime, fed with its own states, gives what our stream gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quaver.codecs.export_onnx import export_onnx
from quaver.codecs.native import XCodec, XCodecConfig
from quaver.codecs.quantizers import ResidualVQ, SplitVQ
from quaver.errors import BadInput

from ..laws import randn, randomised

pytest.importorskip("onnx", reason="onnx comes with quaver[train]")
onnxruntime = pytest.importorskip("onnxruntime")

SIZES: dict[str, Any] = {
    "width": 32, "hidden": 48, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1), "dim": 8, "codebooks": 3,
    "vocab": 20, "semantic_dim": 8, "teacher_dim": 8,
}  # fmt: skip
FRAMES = 12


def made(**change: Any) -> XCodec:
    """Random weights, and codebooks that lie where the latents do, so that the codes change."""
    torch.manual_seed(0)
    codec = randomised(XCodec(XCodecConfig.model_validate(SIZES | change)), scale=0.1)
    if codec.config.semantic != "teacher_input":
        with torch.no_grad():
            latents = codec._latents(sound(1, 40 * codec.frame_size, seed=7), None, None)[0]
            if isinstance(codec.quantizer, ResidualVQ):
                codec.quantizer._initialise(latents.transpose(1, 2))
            if isinstance(codec.quantizer, SplitVQ):
                codec.quantizer.semantic._initialise(codec.quantizer.semantic_in(latents).transpose(1, 2))
                codec.quantizer.acoustic._initialise(codec.quantizer.acoustic_in(latents).transpose(1, 2))
    return codec


def sound(batch: int, samples: int, seed: int = 0) -> torch.Tensor:
    """Noise whose loudness and colour change."""
    noise = randn(batch, 1, samples, seed=seed)
    swell = torch.linspace(0, 20, samples).sin().exp()
    return 0.1 * (swell * noise + swell.flip(0) * noise.cumsum(-1) / 30)


def run(folder: Path, part: str, steps: list[np.ndarray], batch: int) -> list[np.ndarray]:
    """Feeds a graph step by step with what the last step left, from zeros."""
    about = json.loads((folder / "codec.json").read_text())[part]
    session = onnxruntime.InferenceSession(str(folder / f"{part}.onnx"))
    names = [output.name for output in session.get_outputs()]
    state = {f"state.{name}": np.zeros((batch, *entry["shape"]), entry["type"]) for name, entry in about.items()}
    results = []
    for step in steps:
        out = dict(zip(names, session.run(None, {session.get_inputs()[0].name: step, **state}), strict=True))
        results.append(out[names[0]])
        state = {name: out["next." + name.removeprefix("state.")] for name in state}
    return [*results, state["state.head.istft.tail"]] if part == "decoder" else results


@pytest.mark.parametrize(
    "change",
    [{}, {"head": "istft", "semantic": "none"}, {"bottleneck": "split_rvq"},
     {"bottleneck": "rfsq", "dim": 3, "levels": (3, 4, 5)}],
    ids=["harmonic-rvq", "istft", "split", "rfsq"],
)  # fmt: skip
def test_the_graphs_give_what_the_stream_gives(tmp_path: Path, change: dict[str, Any]) -> None:
    """Two streams at once though the graph was made of one: the batch axis is free."""
    codec, batch = made(**change), 2
    export_onnx(codec, tmp_path)
    size = codec.frame_size
    audio = sound(batch, FRAMES * size)
    with torch.no_grad():
        state = codec.init_state(batch)
        codes = torch.cat([codec.encode(part, state=state)[0] for part in audio.split(size, -1)], -1)
        state = codec.init_state(batch)
        parts = [codec.decode(codes[..., t : t + 1], state) for t in range(FRAMES)]
        wanted = torch.cat([*parts, codec.flush(state)], -1)
    theirs = run(tmp_path, "encoder", [part.numpy() for part in audio.split(size, -1)], batch)
    assert np.array_equal(np.concatenate(theirs, -1), codes.numpy())
    assert len(np.unique(codes)) > 3, "codes that never change would prove nothing"
    steps = run(tmp_path, "decoder", [codes[..., t : t + 1].numpy() for t in range(FRAMES)], batch)
    back = np.concatenate([*(step[:, 0] for step in steps[:-1]), steps[-1]], -1)
    assert np.abs(back).max() > 0.01
    np.testing.assert_allclose(back, wanted[:, 0].numpy(), atol=1e-4 * max(1.0, np.abs(back).max()))


def test_the_description_says_what_a_host_must_know(tmp_path: Path) -> None:
    codec = made()
    paths = export_onnx(codec, tmp_path)
    about = json.loads((tmp_path / "codec.json").read_text())
    assert [path.name for path in paths] == ["encoder.onnx", "decoder.onnx", "codec.json"]
    assert (about["frame_size"], about["latency"], about["codebooks"]) == (960, codec.latency, 3)
    assert about["decoder"]["head.phase"] == {"shape": [], "type": "float64"}
    assert not set(about["encoder"]) & set(about["decoder"])
    assert "pending" not in about["encoder"]


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    for codec in (made(bottleneck="vae"), made(semantic="teacher_input")):
        with pytest.raises(BadInput):
            export_onnx(codec, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_the_bundled_codec_as_a_graph(tmp_path: Path) -> None:
    from quaver.codecs.loading import load_codec

    codec = load_codec()
    export_onnx(codec, tmp_path)
    audio = sound(1, 50 * 960)
    with torch.no_grad():
        state = codec.init_state(1)
        codes, _ = codec.encode(audio, state=state)
        wanted = torch.cat([codec.decode(codes, state), codec.flush(state)], -1)
    theirs = run(tmp_path, "encoder", [part.numpy() for part in audio.split(960, -1)], 1)
    assert np.array_equal(np.concatenate(theirs, -1), codes.numpy())
    steps = run(tmp_path, "decoder", [codes[..., i : i + 1].numpy() for i in range(50)], 1)
    back = np.concatenate([*(step[:, 0] for step in steps[:-1]), steps[-1]], -1)
    np.testing.assert_allclose(back, wanted[:, 0].numpy(), atol=1e-4 * max(1.0, np.abs(back).max()))
