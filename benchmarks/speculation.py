"""What speculation gains and what it changes: `python benchmarks/speculation.py --out runs/speculation`.

Everything in one run, in float32 on one thread; times are the process's own CPU time, the rules interleaved.

1. `rules`: each rule on pairs of laws with clustered tokens, the draft calibrated to an exact acceptance: acceptance,
   tokens per call of the target, total variation, transport distance (W1 in the angle between embeddings, by linear
   programming) and the distance of the group histogram (of a partition, so that it can be seen in the output). Mixing
   and tolerance are set to the acceptance of each coarse-grained rule, so that they can be compared.
2. `target` (--target MODEL --draft FOLDER --texts FILE --limit N): a trained voice, along time or along depth
   (`benchmarks/speculation_voice.py`): acceptance, cost, phone and word errors, DNSMOS, similarity, by rule.

How fast the loops are, on targets of random weights with calibrated drafts: `benchmarks/speculation_speed.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from quaver.tts.groups import Groups, build_groups
from quaver.tts.sampling import SamplingConfig
from quaver.tts.speculative import (
    Budgeted,
    CoarseGrained,
    Exact,
    Mixing,
    Rule,
    Tolerance,
    acceptance,
    output_law,
    total_variation,
)

Row = dict[str, Any]
SIZES = (4.0, 8.0, 16.0)
DELTAS = (0.05, 0.1, 0.2)
LENGTH = 3


def bisect(rising: Callable[[float], float], wanted: float, low: float, high: float, steps: int = 30) -> float:
    """The argument at which a rising function has the wanted value."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2


def per_cycle(share: float, length: int = LENGTH) -> float:
    """Tokens of a cycle when each drafted token is kept with this probability."""
    return (1 - share ** (length + 1)) / (1 - share) if share < 1 else length + 1.0


# -- 1. rules on laws -------------------------------------------------------------------------------------------------
def clustered_laws(count: int, vocab: int, wanted: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings `[vocab, dim]` in clusters, and laws p, q `[count, vocab]` that differ mostly inside them."""
    g = torch.Generator().manual_seed(seed)
    clusters = vocab // 8
    label = torch.arange(vocab) % clusters
    table = torch.randn(clusters, 24, generator=g)[label] + 0.6 * torch.randn(vocab, 24, generator=g)
    shared = 2.0 * torch.randn(count, clusters, generator=g)[:, label]
    mine, other = (torch.randn(2, count, vocab, generator=g)).unbind(0)
    across = torch.randn(count, clusters, generator=g)[:, label]

    def laws(noise: float) -> tuple[Tensor, Tensor]:
        settings = SamplingConfig(temperature=1.0, top_k=50)
        from quaver.tts.sampling import sampling_law

        q = sampling_law(shared + 0.7 * mine, settings)
        return sampling_law(shared + 0.7 * mine + noise * (other + 0.3 * across), settings), q

    noise = bisect(lambda x: -float(torch.minimum(*laws(x)).sum(-1).mean()), -wanted, 0.0, 8.0)
    return table, *laws(noise)


def transport(a: Tensor, b: Tensor, unit: Tensor) -> float:
    """W1 of two laws in the angle between the embeddings `unit[vocab, dim]`; exact, on what differs."""
    gap = (a - b).double()
    gap[gap.abs() < 1e-9] = 0
    give, take = torch.nonzero(gap > 0)[:, 0], torch.nonzero(gap < 0)[:, 0]
    if not len(give) or not len(take):
        return 0.0
    mass = gap[give], -gap[take]
    mass = mass[0], mass[1] * (mass[0].sum() / mass[1].sum())
    cost = (unit[give] @ unit[take].T).clamp(-1, 1).acos().double().numpy()
    n, m = cost.shape
    rows = np.kron(np.eye(n), np.ones((1, m)))
    columns = np.kron(np.ones((1, n)), np.eye(m))
    found = linprog(
        cost.ravel(), A_eq=np.vstack([rows, columns])[:-1], b_eq=torch.cat(mass).numpy()[:-1], method="highs"
    )
    return float(found.fun)


def judge_laws(rule: Rule, p: Tensor, q: Tensor, unit: Tensor, partition: Groups, transports: int) -> Row:
    verdict = rule(p, q)
    out, share = output_law(p, verdict), float(acceptance(p, verdict).mean())
    channel = partition.channels[0]
    return {
        "acceptance": share,
        "tokens_per_call": per_cycle(share),
        "tv": float(total_variation(out, q).mean()),
        "w1": float(np.mean([transport(out[i], q[i], unit) for i in range(transports)])),
        "group_tv": float(total_variation(channel.coarse(out), channel.coarse(q)).mean()),
    }


def rules(vocab: int = 256, count: int = 120, wanted: float = 0.55, transports: int = 24) -> list[Row]:
    table, p, q = clustered_laws(count, vocab, wanted)
    unit = nn.functional.normalize(table, dim=-1)
    partition = build_groups([table], 8.0, partition=True)
    exact = Exact()

    def row(name: str, rule: Rule) -> Row:
        return {"rule": name, **judge_laws(rule, p, q, unit, partition, transports)}

    def share(rule: Rule) -> float:
        return float(acceptance(p, rule(p, q)).mean())

    out = [row("exact", exact)]
    for size in SIZES:
        coarse = CoarseGrained(build_groups([table], size).channels[0])
        out.append(row(f"pcg, groups of {size:g}", coarse))
        level = share(coarse)
        out.append(row("mixing, same acceptance", Mixing(bisect(lambda e: share(Mixing(e)), level, 0, 1))))
        out.append(row("tolerance, same acceptance", Tolerance(bisect(lambda b: share(Tolerance(b)), level, 0, 1))))
    out.append(row("pcg, partition of 8", CoarseGrained(partition.channels[0])))
    coarse = CoarseGrained(build_groups([table], 8.0).channels[0])
    out += [row(f"budgeted, delta {delta:g}", Budgeted(coarse, delta)) for delta in DELTAS]
    return out


# -- report -----------------------------------------------------------------------------------------------------------
def table(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = [row.get(name, "") for name in names]
        lines.append("| " + " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines)


KINDS = (("exact", "k*"), ("pcg", "o"), ("mixing", "s"), ("tolerance", "x"), ("budgeted", "^"))
TITLES = {"tv": "total variation", "w1": "transport", "group_tv": "groups"}


def plot(found: Row, path: Path) -> None:
    """What each rule costs over what it keeps: of laws, and of a voice's phones (with 95 % intervals)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    voice = [row for row in found.get("target", ()) if "acceptance" in row]
    panels = len(TITLES) + bool(voice)
    figure = Figure(figsize=(3.7 * panels, 3.6))
    FigureCanvasAgg(figure)
    for i, (name, title) in enumerate(TITLES.items()):
        axes: Any = figure.add_subplot(1, panels, i + 1)
        for kind, marker in KINDS:
            rows = [row for row in found["rules"] if row["rule"].startswith(kind)]
            axes.plot([r["acceptance"] for r in rows], [r[name] for r in rows], marker, label=kind)
        axes.set(xlabel="acceptance", title=title)
    axes.legend()
    if voice:
        axes = figure.add_subplot(1, panels, panels)
        for kind, marker in KINDS:
            rows = [row for row in voice if row["rule"].startswith(kind)]
            middle = [r["difference"] for r in rows]
            spread = [[r["difference"] - r["low"] for r in rows], [r["high"] - r["difference"] for r in rows]]
            axes.errorbar([r["acceptance"] for r in rows], middle, yerr=spread, fmt=marker, capsize=2, label=kind)
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.set(xlabel="acceptance", title="phone errors, points over plain")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/speculation"))
    parser.add_argument("--acceptance", type=float, default=0.6, help="to which drafts are calibrated")
    parser.add_argument("--target", help="a trained voice: a token language model, or one with a depth or chain head")
    parser.add_argument("--draft", help="its drafter's folder, or head (along depth)")
    parser.add_argument("--length", type=int, default=3, help="tokens to draft at a time, along time")
    parser.add_argument("--texts", type=Path, help="sentences, one a line")
    parser.add_argument("--limit", type=int, default=20, help="only so many of them")
    parser.add_argument("--asr", help="faster-whisper folder, for word errors")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: Row = {"rules": rules(wanted=wanted.acceptance)}
    with torch.inference_mode():
        if wanted.target:
            from speculation_voice import TEXTS, rows

            texts = wanted.texts.read_text().split("\n") if wanted.texts else TEXTS
            texts = [text for text in texts if text.strip()][: wanted.limit]
            found["target"] = rows(wanted.target, wanted.draft, texts, wanted.asr, wanted.length)
    wanted.out.mkdir(parents=True, exist_ok=True)
    (wanted.out / "speculation.json").write_text(json.dumps(found, indent=1) + "\n")
    text = "\n\n".join(
        f"## {name}\n\n{table(x) if isinstance(x, list) else json.dumps(x)}" for name, x in found.items()
    )
    (wanted.out / "speculation.md").write_text(text + "\n")
    plot(found, wanted.out / "speculation.png")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
