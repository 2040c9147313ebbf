"""What speculation gains and what it changes: `python benchmarks/speculation.py --out runs/speculation`.

Everything in one run, in float32 on one thread; times are the process's own CPU time, the rules interleaved.

1. `rules`: each rule on pairs of laws with clustered tokens, the draft calibrated to an exact acceptance: acceptance,
   tokens per call of the target, total variation, transport distance (W1 in the angle between embeddings, by linear
   programming) and the distance of the group histogram (of a partition, so that it can be seen in the output). Mixing
   and tolerance are set to the acceptance of each coarse-grained rule, so that they can be compared.
2. `walls`: the generation loop itself, on a target of random weights whose later layers are damped until its first
   layer, the drafter, is accepted as often as wanted. Speed only: it says nothing about sound.
3. `depth`: rounds and time of a depth head of 16 levels against drawing them one by one, same calibration.
4. `target` (--target MODEL --draft FOLDER): a trained voice with a depth or chain head: acceptance, time of its LM, and
   phone error rate by the bundled recogniser.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from quaver.nn.transformer import TransformerConfig
from quaver.tts.drafters import LMDrafter, first_layers
from quaver.tts.generate import Generation
from quaver.tts.groups import Groups, build_groups, code_embeddings
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
from quaver.tts.speculative_depth import ResidualDrafter, SpeculativeHead, depth_rule
from quaver.tts.speculative_plan import Speculation, SpeculativeGeneration
from quaver.tts.token_heads import DepthHead
from quaver.tts.token_lm import TokenLM, TokenLMConfig
from quaver.tts.token_plan import TokenRequest

Row = dict[str, Any]
SIZES = (4.0, 8.0, 16.0)
DELTAS = (0.05, 0.1, 0.2)
LENGTH = 3


def cpu(call: Callable[[], Any], repeats: int = 3) -> float:
    """Median CPU seconds of a call, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return median(times)


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


# -- 2. the loop ------------------------------------------------------------------------------------------------------
def damped(config: TokenLMConfig, factor: float) -> TokenLM:
    """Random weights; tokens in clusters of 8; layers after the first speak `factor` times as loud."""
    torch.manual_seed(0)
    lm = TokenLM(config).eval()
    with torch.no_grad():
        clusters = max(1, config.vocab // 8)
        label = torch.arange(config.vocab) % clusters
        for weight in (lm.head.table.weight, lm.head.levels[0].weight):  # type: ignore[union-attr,index]
            centre = torch.randn(clusters, weight.shape[1])[label]
            noise = torch.randn(config.vocab, weight.shape[1])
            scale = 0.35 if weight is lm.head.table.weight else 0.08
            weight[: config.vocab] = scale * (centre + 0.5 * noise)
        for i, layer in enumerate(lm.backbone.layers):  # type: ignore[union-attr,arg-type]
            for name, weight in layer.named_parameters():
                if name.endswith(("out.weight", "down.weight")):
                    weight.mul_(8.0 if i == 0 else 8.0 * factor)
    return lm


def speak(generation: Generation, frames: int, sampling: SamplingConfig, seed: int) -> tuple[int, float]:
    """Tokens made and CPU seconds, of one answer."""
    text = tuple(int(x) for x in torch.randint(1, 60, (24,), generator=torch.Generator().manual_seed(seed)))
    plan = generation.join(0, TokenRequest(text, sampling=sampling, least=frames, most=frames, seed=seed))
    start = time.process_time()
    while not plan.done:
        generation.tick()
    spent = time.process_time() - start
    generation.leave(0)
    return len(plan.steps), spent


def walls(config: TokenLMConfig, wanted: float, frames: int, texts: int) -> tuple[Row, list[Row]]:
    sampling = SamplingConfig(temperature=0.8, top_k=50)
    small = config.model_copy(update={"backbone": config.backbone.model_copy(update={"layers": 3})})

    def accepted(factor: float) -> float:
        lm = damped(small, factor * ((config.backbone.layers - 1) / 2) ** 0.5)  # type: ignore[union-attr]
        generation = SpeculativeGeneration(lm, Speculation(LMDrafter(first_layers(lm, 1)), Exact(), LENGTH))
        speak(generation, 60, sampling, 0)
        return generation.figures.acceptance

    factor = bisect(lambda x: -accepted(x), -wanted, 0.0, 0.6, 6)
    lm = damped(config, factor)
    draft = LMDrafter(first_layers(lm, 1).eval())
    channels = {s: build_groups(code_embeddings(lm.head), s, control=2).channels[0] for s in SIZES}
    loops: dict[str, Generation] = {"autoregressive": Generation(lm)}
    chosen: list[tuple[str, Rule]] = [
        ("exact", Exact()),
        ("mixing 0.2", Mixing(0.2)),
        ("tolerance 0.3", Tolerance(0.3)),
    ]
    chosen += [(f"pcg, groups of {s:g}", CoarseGrained(c)) for s, c in channels.items()]
    chosen += [(f"budgeted, delta {d:g}", Budgeted(CoarseGrained(channels[8.0]), d)) for d in DELTAS]
    for name, rule in chosen:
        loops[name] = SpeculativeGeneration(lm, Speculation(draft, rule, LENGTH))
    tokens, spent = dict.fromkeys(loops, 0), dict.fromkeys(loops, 0.0)
    for generation in loops.values():
        speak(generation, 4, sampling, 99)
    for text in range(texts):
        for name, generation in loops.items():
            made, seconds = speak(generation, frames, sampling, text)
            tokens[name] += made
            spent[name] += seconds
    base = spent["autoregressive"] / tokens["autoregressive"]
    out = []
    for name, generation in loops.items():
        row: Row = {"rule": name, "ms_per_token": 1000 * spent[name] / tokens[name]}
        row["speed_up"] = base / (spent[name] / tokens[name])
        if isinstance(generation, SpeculativeGeneration):
            row["acceptance"] = generation.figures.acceptance
            row["tokens_per_call"] = generation.figures.tokens_per_call
        out.append(row)
    return costs(lm, draft, channels[8.0]), out


@torch.inference_mode()
def costs(lm: TokenLM, draft: LMDrafter, channel: Any) -> Row:
    """What a step, a draft and the arithmetic of a rule cost."""
    state, other = lm.backbone.init_state(1), draft.lm.backbone.init_state(1)  # type: ignore[operator,union-attr]
    width = lm.width
    none = torch.zeros(9, 1, dtype=torch.long)

    def step(model: TokenLM, held: Any, m: int) -> None:
        mark = held.mark()
        hidden = model.backbone(torch.randn(1, m, width), held)
        model.head.logits(hidden[0], none[:m])
        held.rollback(mark)

    one = cpu(lambda: step(lm, state, 1), 7)
    p, q = torch.rand(2, 1, LENGTH, channel.vocab).mul(8).softmax(-1)
    return {
        "parameters": sum(x.numel() for x in lm.parameters()),
        "step_ms": 1000 * one,
        "verify": {m: cpu(lambda m=m: step(lm, state, m), 5) / one for m in (1, 2, 4, 8)},
        "draft_over_target": cpu(lambda: step(draft.lm, other, 1), 7) / one,
        "rule_over_target": {
            name: cpu(lambda r=r: r(p, q), 7) / one
            for name, r in {"exact": Exact(), "pcg": CoarseGrained(channel)}.items()
        },
    }


# -- 3. depth ---------------------------------------------------------------------------------------------------------
def depth(levels: int = 16, vocab: int = 256, width: int = 256, wanted: float = 0.75, frames: int = 20) -> list[Row]:
    torch.manual_seed(0)
    sizes = TransformerConfig(width=384, layers=4, heads=6, hidden=1024, window=levels, slack=0)
    head = DepthHead(width, levels, vocab, sizes).eval()
    sampling = SamplingConfig(temperature=1.0, top_k=50)
    base = Calibrated(head, ResidualDrafter(width, levels, vocab, head.size(0)))
    groups = build_groups([0.3 * table for table in code_embeddings(head)], 8.0, control=2)
    hidden = torch.randn(frames, 1, width)
    uniform = torch.rand(frames, 1, 2, levels)

    def run(target: nn.Module) -> None:
        with torch.inference_mode():
            for h, u in zip(hidden, uniform, strict=True):
                target.sample(h, u, sampling)  # type: ignore[operator]

    def accepted(noise: float) -> float:
        base.noise = noise
        trial = SpeculativeHead(head, base, Exact(), redraft=False)
        run(trial)
        return trial.figures.acceptance

    base.noise = bisect(lambda x: -accepted(x), -wanted, 0.0, 6.0, 7)
    out: list[Row] = [
        {"rule": "one by one", "rounds": levels - 1, "ms_per_frame": 1000 * cpu(lambda: run(head)) / frames}
    ]
    for name, rule, redraft in (("exact", "exact", False), ("exact, redrafted", "exact", True), ("pcg", "pcg", False)):
        trial = SpeculativeHead(head, base, depth_rule(rule, groups), redraft)
        seconds = cpu(lambda t=trial: run(t)) / frames
        row = {"rule": name, "acceptance": trial.figures.acceptance, "rounds": trial.figures.rounds_per_frame}
        out.append({**row, "ms_per_frame": 1000 * seconds})
    for row in out:
        row["speed_up"] = out[0]["ms_per_frame"] / row["ms_per_frame"]
    return out


class Calibrated(ResidualDrafter):
    """Draft heads that are right as often as wanted: after their own forward, whose cost they keep, they say what the
    target's head says on average over lower codes, plus noise. The average costs nothing here: it is looked up."""

    noise = 0.0

    def __init__(self, head: DepthHead, like: ResidualDrafter) -> None:
        super().__init__(like.norm.weight.numel(), like.codebooks, like.vocab, like.code.num_embeddings)
        self._target, self._known = [head], dict[bytes, Tensor]()

    def forward(self, hidden: Tensor, first: Tensor) -> Tensor:
        cost = super().forward(hidden, first)
        key = hidden.numpy().tobytes() + first.numpy().tobytes()
        if key not in self._known:
            self._known[key] = self._average(hidden, first)
        mean, noise = self._known[key]
        return mean + self.noise * noise + 0 * cost

    def _average(self, hidden: Tensor, first: Tensor, draws: int = 16) -> Tensor:
        head = self._target[0]
        codes = torch.randint(0, self.vocab, (draws, head.codebooks))
        codes[:, 0] = first
        logits = torch.stack(head.logits(hidden.expand(draws, -1), codes)[1:], 1)
        mean = logits.softmax(-1).mean(0, keepdim=True).log()
        return torch.stack([mean, torch.randn(mean.shape)])


# -- 4. a trained voice -----------------------------------------------------------------------------------------------
TEXTS = ("The birch canoe slid on the smooth planks.", "Four hours of steady work faced us.")


def voice(name: str, draft: str, texts: Sequence[str]) -> list[Row]:
    from quaver.codecs.loading import load_semantic, model_folder
    from quaver.evaluation.words import compare
    from quaver.tts.groups import weights_hash
    from quaver.tts.speculative_voice import load_depth_drafter
    from quaver.tts.synthesizer import Synthesizer
    from quaver.tts.text import is_pause, strip_stress

    synthesizer = Synthesizer.load(name)
    lm: Any = synthesizer.lm
    head = lm.head
    recogniser = load_semantic("semantic-25hz")
    drafter = load_depth_drafter(draft, head, weights_hash(model_folder(name)))
    groups = build_groups(code_embeddings(head), 8.0, control=int(getattr(head, "stops", 0)))
    out: list[Row] = []
    for mode in ("off", "exact", "pcg", "budgeted"):
        rule = None if mode == "off" else depth_rule(mode, groups, 0.1)
        lm.head = head if rule is None else SpeculativeHead(head, drafter, rule)
        said, heard, seconds, length = [], [], 0.0, 0.0
        for seed, text in enumerate(texts):
            start = time.process_time()
            speech = synthesizer.say(text, seed=seed)
            seconds += time.process_time() - start
            length += len(speech.samples) / speech.sample_rate
            said += [strip_stress(p) for u in synthesizer.frontend(text) for p in u.phones if not is_pause(p)]
            heard += [p for p in recogniser.transcribe(torch.from_numpy(speech.samples)[None, None])[0] if p != "|"]
        row: Row = {"rule": mode, "phone_errors": 100 * compare(said, heard).rate, "phones": len(said)}
        row["cpu_per_second"] = seconds / length
        if rule is not None:
            figures = lm.head.figures
            row |= {"acceptance": figures.acceptance, "rounds": figures.rounds_per_frame}
        out.append(row)
    lm.head = head
    return out


# -- report -----------------------------------------------------------------------------------------------------------
def table(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = [row.get(name, "") for name in names]
        lines.append("| " + " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines)


def plot(found: Row, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6))
    FigureCanvasAgg(figure)
    for i, name in enumerate(("tv", "w1", "group_tv")):
        axes: Any = figure.add_subplot(1, 3, i + 1)
        for kind, marker in (("exact", "k*"), ("pcg", "o"), ("mixing", "s"), ("tolerance", "x"), ("budgeted", "^")):
            rows = [row for row in found["rules"] if row["rule"].startswith(kind)]
            axes.plot([r["acceptance"] for r in rows], [r[name] for r in rows], marker, label=kind)
        axes.set(xlabel="acceptance", title={"tv": "total variation", "w1": "transport", "group_tv": "groups"}[name])
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/speculation"))
    parser.add_argument("--width", type=int, default=768, help="of the random target (768 x 8 layers: 62 M parameters)")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--acceptance", type=float, default=0.6, help="to which drafts are calibrated")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--texts", type=int, default=2)
    parser.add_argument("--target", help="a trained voice with a depth or chain head")
    parser.add_argument("--draft", help="its drafter's folder")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: Row = {"rules": rules(wanted=wanted.acceptance)}
    width = wanted.width
    backbone = {"width": width, "layers": wanted.layers, "heads": width // 64, "hidden": 8 * width // 3 // 8 * 8}
    config = TokenLMConfig.model_validate({"vocab": 1024, "backbone": {**backbone, "window": 256, "slack": 15}})
    with torch.inference_mode():
        found["costs"], found["walls"] = walls(config, wanted.acceptance, wanted.frames, wanted.texts)
        found["depth"] = depth()
        if wanted.target:
            found["target"] = voice(wanted.target, wanted.draft, TEXTS)
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
