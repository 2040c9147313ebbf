"""The arithmetic of least times, against a layer counted by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quaver.benchmarks import machine, roofline, scaling
from quaver.benchmarks.roofline import Cost
from quaver.nn.transformer import Transformer, TransformerConfig

CEILINGS = {"read": {"1": 40e9, "32": 20e9, "256": 10e9}, "flops": 50e9}


def test_a_block_counted_by_hand() -> None:
    """Width 4, hidden 6, 10 places of cache, one row: 4x12 + 4x4 + 4x12 + 6x4 weights."""
    cost = roofline.transformer(4, 1, 6, 10)
    weights = 48 + 16 + 48 + 24
    assert cost.read == 4 * weights + 2 * 10 * 4 * 4
    assert cost.flops == 2 * weights + 2 * (2 * 10 * 4)


def test_weights_are_those_of_the_network() -> None:
    config = TransformerConfig(width=32, layers=3, heads=2, hidden=40, qk_norm=False)
    with torch.device("meta"):
        network = Transformer(config)
    held = sum(p.numel() for p in network.parameters() if p.ndim == 2)
    assert roofline.transformer(32, 3, 40, 0).read == 4 * held


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), slots=st.integers(1, 9), seen=st.integers(0, 99))
def test_more_rows_read_the_weights_once_and_more_slots_their_own_caches(rows: int, slots: int, seen: int) -> None:
    one, many = roofline.transformer(8, 2, 12, seen), roofline.transformer(8, 2, 12, seen, rows, slots)
    none = roofline.transformer(8, 2, 12, 0)
    assert many.flops == pytest.approx(rows * slots * one.flops)
    assert many.read == pytest.approx(none.read + slots * (one.read - none.read))


def test_the_larger_of_the_two_limits_counts() -> None:
    assert roofline.least(Cost(20e6, 1e6), CEILINGS) == pytest.approx(20e6 / 20e9)
    assert roofline.least(Cost(1e6, 5e9), CEILINGS) == pytest.approx(0.1)
    assert roofline.share(Cost(20e6, 1e6), 4e-3, CEILINGS) == pytest.approx(0.25)


def test_bandwidth_is_that_of_the_next_larger_buffer() -> None:
    assert roofline.bandwidth(CEILINGS, 0.5 * 2**20) == 40e9
    assert roofline.bandwidth(CEILINGS, 2 * 2**20) == 20e9
    assert roofline.bandwidth(CEILINGS, 1e12) == 10e9


def test_ceilings_and_machine_are_told() -> None:
    found = machine.ceilings(0.001)
    assert set(found["read"]) == {str(size) for size in machine.SIZES} == set(found["copy"])
    assert all(rate > 0 for rate in (*found["read"].values(), *found["copy"].values(), found["flops"]))
    described = machine.describe(machine.Path(__file__).parents[2])
    assert described["cores"] >= 1
    assert described["torch"] == torch.__version__


def test_sizes_that_fit_nowhere_are_told_of_by_arithmetic() -> None:
    assert 6.5e9 < scaling.parameters("7 B") < 7.5e9
    text = scaling.table(CEILINGS, {"5M": 4.0})
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert [line[0] for line in lines[2:]] == list(scaling.SIZES)
    # 5 M: 10.6 MB of half-precision weights and 3.1 MB of cache at 20 GB/s.
    cost = scaling.step("5M", 2)
    assert cost.read == 2 * (6 * (4 * 256 * 256 + 3 * 256 * 688) + 256 * 1026) + 6 * 2 * 256 * 256 * 4
    assert lines[2][3:6] == [f"{1000 * cost.read / 20e9:.2f}", "4.00", f"{100 * 1000 * cost.read / 20e9 / 4:.0f} %"]
    assert lines[3][4:6] == ["", ""]


def test_measured_sizes_are_those_of_the_row() -> None:
    rows = [{"name": "size", "sides": [{"name": "quaver, 5M", "cpu": 3.0}, {"name": "quaver, 20M", "error": "no"}]}]
    assert scaling.measured_sizes(rows) == {"5M": 3.0}
    assert scaling.measured_sizes([]) == {}
    from quaver.benchmarks.rows import SIZES

    assert set(SIZES) <= set(scaling.SIZES)
