"""Least cost of a step by model size, up to what no CPU here can hold: networks on the meta device, and arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from quaver.nn.transformer import Transformer, TransformerConfig

from . import roofline

SIZES: dict[str, tuple[int, int, int, int]] = {
    "5M": (256, 6, 4, 688),
    "20M": (512, 6, 8, 1376),
    "120M": (896, 12, 14, 2432),
    "350M": (1280, 18, 20, 3456),
    "1 B": (2048, 20, 16, 5504),
    "3 B": (2816, 32, 22, 7552),
    "7 B": (4096, 34, 32, 11_008),
}
"""Width, layers, heads, hidden."""
VOCAB, SEEN = 1026, 256
H200 = 4.8e12
"""Bytes per second of an H200's memory, by its data sheet; not measured here."""


def parameters(size: str) -> int:
    """Of the network with its table and output, counted on the meta device."""
    width, layers, heads, hidden = SIZES[size]
    config = TransformerConfig(width=width, layers=layers, heads=heads, hidden=hidden, qk_norm=False)
    with torch.device("meta"):
        network = Transformer(config)
    return sum(p.numel() for p in network.parameters()) + 2 * VOCAB * width


def step(size: str, weight_bytes: float, rows: int = 1, slots: int = 1) -> roofline.Cost:
    width, layers, _, hidden = SIZES[size]
    network = roofline.transformer(width, layers, hidden, SEEN, rows, slots, weight_bytes)
    return network + roofline.linear(width, VOCAB, rows * slots, weight_bytes)


def table(ceilings: Mapping[str, Any], measured: Mapping[str, float]) -> str:
    """Markdown; `measured`: milliseconds a token of a size, where there are any."""
    heads = ["size", "M parameters", "MB read a token (2 bytes a weight)", "least here, ms", "measured here, CPU ms"]
    heads += ["of the roofline", "least at 4.8 TB/s, ms", "16 slots together, ms a token and slot here"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for size in SIZES:
        cost, many = step(size, 2), step(size, 2, slots=16)
        floor, took = roofline.least(cost, ceilings), measured.get(size)
        share = f"{100 * 1000 * floor / took:.0f} %" if took else ""
        cells = [size, f"{parameters(size) / 1e6:.1f}", f"{cost.read / 1e6:.0f}", f"{1000 * floor:.2f}"]
        cells += [f"{took:.2f}" if took else "", share, f"{1000 * cost.read / H200:.3f}"]
        cells.append(f"{1000 * roofline.least(many, ceilings) / 16:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def measured_sizes(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """CPU milliseconds a token of the sides of the row `size`."""
    sides = next((row["sides"] for row in rows if row["name"] == "size"), [])
    return {side["name"].split(", ")[-1]: side["cpu"] for side in sides if "cpu" in side}
