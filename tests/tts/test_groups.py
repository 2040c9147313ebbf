"""Groups: thresholds, ids that stay alone, files that belong to their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from quaver.errors import BadInput, ConfigError, CorruptFile, MissingFile
from quaver.tts.groups import (
    CoarseGrainedLevels,
    build_groups,
    cosine_groups,
    load_groups,
    save_groups,
    threshold_for,
    weights_hash,
)
from quaver.tts.speculative import CoarseGrained

from ..laws import few, randn


def clustered(seed: int, count: int = 40, clusters: int = 8) -> torch.Tensor:
    return randn(clusters, 12, seed=seed).repeat(count // clusters, 1) + 0.5 * randn(count, 12, seed=seed + 1)


@few
@given(seed=st.integers(0, 1000), threshold=st.floats(0.05, 1.0), partition=st.booleans())
def test_groups_cover_every_token_and_hold_what_is_near(seed: int, threshold: float, partition: bool) -> None:
    groups = cosine_groups(clustered(seed), threshold, partition)
    members = [t for group in groups for t in group]
    assert set(members) == set(range(40))
    assert len({tuple(g) for g in groups}) == len(groups)
    if partition:
        assert len(members) == 40
    if threshold == 1.0:
        assert all(len(group) == 1 for group in groups)


@few
@given(seed=st.integers(0, 1000), size=st.floats(1.5, 12))
def test_the_threshold_gives_the_wanted_mean_size(seed: int, size: float) -> None:
    table = clustered(seed)
    threshold = threshold_for(table, size)
    assert 0 < threshold <= 1
    unit = torch.nn.functional.normalize(table, dim=-1)
    shared = unit.mean(0)
    if float(shared.square().sum()) > 0.2:
        unit = torch.nn.functional.normalize(unit - shared, dim=-1)
    near = unit @ unit.T
    near.fill_diagonal_(2.0)
    assert float((near > threshold).sum()) / 40 <= size + 1e-6
    assert float((near > threshold - 0.002).sum()) / 40 >= size - 0.2


def test_control_and_dead_ids_are_alone_and_each_codebook_has_its_threshold() -> None:
    tables = [clustered(0), 0.2 * clustered(3) + randn(40, 12, seed=7)]
    live = [torch.arange(40) < 30, torch.ones(40, dtype=torch.bool)]
    groups = build_groups(tables, 4.0, live=live, control=2)
    first = groups.channels[0]
    assert first.vocab == 42
    sizes = first.back(first.sizes.float())
    assert (sizes[30:] == 1).all()
    assert sizes[:30].mean() > 2
    assert groups.thresholds[0] != groups.thresholds[1]
    assert groups.live == (30, 40)
    rows = groups.report()
    assert [row["codebook"] for row in rows] == [0, 1]
    assert rows[0]["alone"] >= 12 / 42
    # what is alone keeps the target's law, whatever the draft says
    p, q = torch.rand(2, 3, 42).softmax(-1)
    verdict = CoarseGrained(first)(p, q)
    out = p * verdict.accept + verdict.residual
    assert torch.allclose(out[:, 30:], q[:, 30:], atol=1e-6)


def test_a_file_comes_back_and_belongs_to_its_weights(tmp_path: Path) -> None:
    groups = build_groups([clustered(0), clustered(1)], 3.0, control=2, partition=True)
    path = tmp_path / "groups.safetensors"
    save_groups(groups, path, "a" * 64)
    back = load_groups(path, "a" * 64)
    assert back.thresholds == groups.thresholds
    assert back.partition
    law = torch.rand(5, 42).softmax(-1)
    assert torch.equal(back.channels[0].coarse(law), groups.channels[0].coarse(law))
    with pytest.raises(ConfigError, match="other weights"):
        load_groups(path, "b" * 64)
    with pytest.raises(MissingFile, match="groups build"):
        load_groups(tmp_path / "none")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CorruptFile):
        load_groups(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CorruptFile, match="not a groups file"):
        load_groups(path)
    with pytest.raises(MissingFile):
        weights_hash(tmp_path)


def test_levels_are_judged_each_by_its_own_channel() -> None:
    groups = build_groups([clustered(0), clustered(1), clustered(2)], 5.0)
    p, q = torch.rand(2, 4, 3, 40).mul(4).softmax(-1)
    joined = CoarseGrainedLevels(groups.channels)(p, q)
    for level, channel in enumerate(groups.channels):
        alone = CoarseGrained(channel)(p[:, level], q[:, level])
        assert torch.allclose(joined.accept[:, level], alone.accept, atol=1e-5)
        assert torch.allclose(joined.residual[:, level], alone.residual, atol=1e-6)
        assert joined.cost is not None
        assert alone.cost is not None
        assert torch.allclose(joined.cost[:, level], alone.cost, atol=1e-5)


def test_misuse_is_refused() -> None:
    table = clustered(0)
    for threshold in (0.0, -0.5, 1.2):
        with pytest.raises(BadInput, match=r"\(0, 1\]"):
            cosine_groups(table, threshold)
    for size in (0.5, 41):
        with pytest.raises(BadInput, match="cannot be made"):
            threshold_for(table, size)
    with pytest.raises(BadInput, match="live"):
        build_groups([table], live=[torch.zeros(40, dtype=torch.bool)])
    with pytest.raises(BadInput, match="one size"):
        CoarseGrainedLevels(build_groups([table, table[:20]], 3.0).channels)
