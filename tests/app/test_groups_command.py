"""`quaver groups build` and what `quaver say --speculate` refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from quaver.tts.groups import load_groups, weights_hash
from quaver.tts.token_lm import TokenLM, TokenLMConfig

from .conftest import Run, Tones, assert_one_line


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    backbone = {"width": 8, "layers": 2, "heads": 2, "hidden": 12, "window": 60, "slack": 7}
    lm = TokenLM(TokenLMConfig.model_validate({"vocab": 20, "backbone": backbone}))
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(lm.state_dict(), folder / "model.safetensors")
    config = {"kind": "token_lm", "codec": "tokens", **lm.config.model_dump(mode="json")}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_groups_are_built_with_a_report_and_a_picture(run: Run, model: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    np.arange(15, dtype=np.uint16).tofile(pack / "codes.tokens.u16")
    result = run("groups", "build", model, "--size", 3, "--pack", pack, "--plot", "sizes.png")
    assert result.code == 0, result.err
    path = Path(result.out.decode().strip())
    assert path == model / "groups.safetensors"
    groups = load_groups(path, weights_hash(model))
    assert groups.live == (15,)
    assert groups.channels[0].vocab == 22
    assert json.loads(path.with_suffix(".json").read_text())["codebooks"][0]["live"] == 15
    assert (tmp_path / "sizes.png").read_bytes()[:4] == b"\x89PNG"
    assert "mean" in result.err


def test_what_is_wrong_with_groups_is_one_line(run: Run, model: Path, tmp_path: Path) -> None:
    assert_one_line(run("groups", "build", "nobody"), "nobody")
    assert_one_line(run("groups", "build", model, "--threshold", 1.5), "(0, 1]")
    assert_one_line(run("groups", "build", model, "--size", 0.2), "cannot be made")
    assert_one_line(run("groups", "build", model, "--pack", tmp_path), "quaver corpus codes")
    assert_one_line(run("groups", "build", "quaver-24k", "-o", "g.safetensors"), "lm or token_lm")


def test_speculation_is_refused_where_it_cannot_be(run: Run, tones: type[Tones]) -> None:
    assert_one_line(run("say", "one", "--speculate", "maybe"), "off, exact, pcg, budgeted, tolerance")
    assert_one_line(run("say", "one", "--speculate", "exact", "--draft-length", 99), "0 and 64")
    assert_one_line(run("say", "one", "--speculate", "budgeted", "--delta", -1), "negative")
