"""The parts of a report that are no columns of its table, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import Report

__all__ = ["codec_findings", "length_findings", "worst_sentences"]


def codec_findings(report: Report) -> list[str]:
    """Bitrate, and use and entropy of each codebook."""
    sections = []
    for system in report.systems:
        codes = system.extra.get("codes")
        if not codes:
            continue
        lines = [
            f"Codes of {system.label}: {codes['frames']} frames, {codes['bitrate']:.0f} bit/s nominal, "
            f"{codes['entropy_bitrate']:.0f} bit/s by the entropy of each level",
            "",
            "| level | " + " | ".join(str(i + 1) for i in range(len(codes["use"]))) + " |",
            "|---|" + "---:|" * len(codes["use"]),
            "| entries used, % | " + " | ".join(f"{100 * x:.0f}" for x in codes["use"]) + " |",
            "| entropy, bits | " + " | ".join(f"{x:.2f}" for x in codes["entropy"]) + " |",
        ]
        sections.append("\n".join(lines))
    return sections


def length_findings(report: Report) -> list[str]:
    """What a second of audio costs in short and in long texts."""
    return [
        f"Cost of {system.label} in CPU seconds per second of audio: {found['short_cost']:.4f} in "
        f"{found['short_seconds']:.0f} s, {found['long_cost']:.4f} in {found['long_seconds']:.0f} s: "
        f"{100 * (found['ratio'] - 1):+.0f} %"
        for system in report.systems
        if (found := system.extra.get("length_scaling"))
    ]


def worst_sentences(report: Report) -> str:
    """The worst sentences of every system: wanted, heard."""
    lines = []
    for system in report.systems:
        for row in system.worst:
            failed = f" [{', '.join(row['failed'])}]" if row.get("failed") else ""
            lines.append(f"- {system.label} {row['index']}{failed}: {row['text']} → {row['hypothesis'] or '(nothing)'}")
    return "Worst sentences (wanted → heard):\n\n" + "\n".join(lines) if lines else ""
