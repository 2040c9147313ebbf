"""How fast the speculative loops are: `python benchmarks/speculation_speed.py --out runs/speculation --seconds 300`.

FOR SPEED ONLY: targets of random weights with calibrated drafts. A target of the shape of SmolLM2-135M (with speech
tokens only) is drafted for by its own first layers, run at their full cost; what they say is disturbed by a noise whose
size, inside and across clusters of tokens, is bisected until the exact rule and PCG would keep the wanted shares. What
is printed as acceptance is what the loop then measured. Nothing here says how speech sounds.

Sections, one thread, weights in packed float16, all rows interleaved text by text (frame by frame):

- `rows`: what a step costs when it verifies 1 to 12 positions, in steps of one position.
- `walls`: the loop along time against plain generation, for two calibrations: `laws` (the clustered laws of
  `speculation.py`: 0.60 exact, 0.80 PCG) and `bundled` (what the real drafter of the bundled voice reaches along depth:
  0.53 and 0.60).
- `depth`: a depth transformer of 16 levels, drafts calibrated to an acceptance of 0.75.

On a crowded machine: every answer ends after `--row` seconds, a section after `--seconds`, totals are saved after each
answer, and the same command again goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quaver.benchmarks.speculation import Row, bisect, table
from quaver.nn.packed import pack_linears
from quaver.nn.transformer import TransformerConfig
from quaver.tts.drafters import LMDrafter, first_layers
from quaver.tts.generate import Generation
from quaver.tts.groups import Groups, build_groups, code_embeddings
from quaver.tts.sampling import SamplingConfig, sampling_law
from quaver.tts.speculative import Budgeted, CoarseGrained, Exact, Mixing, Rule, Tolerance, acceptance
from quaver.tts.speculative_depth import ResidualDrafter, SpeculativeHead, depth_rule
from quaver.tts.speculative_plan import Speculation, SpeculativeGeneration
from quaver.tts.token_heads import DepthHead
from quaver.tts.token_lm import TokenLM, TokenLMConfig
from quaver.tts.token_plan import TokenRequest

SAMPLING = SamplingConfig(temperature=0.8, top_k=50)
CALIBRATIONS = {"laws": (0.60, 0.80), "bundled": (0.533, 0.599)}
"""Shares kept by the exact rule and by PCG with groups of 8 (docs/speculation.md, Measured)."""


# -- what has been measured so far ------------------------------------------------------------------------------------
class Tally:
    """Totals of each row, saved as they grow, so that a stopped run can go on.

    Args:
        path: a JSON file. settings: totals of other settings are not gone on with.
    """

    def __init__(self, path: Path, settings: Row) -> None:
        self.path, self.settings = path, settings
        self.done, self.rows = 0, dict[str, Row]()
        if path.exists():
            held = json.loads(path.read_text())
            if held["settings"] == settings:
                self.done, self.rows = held["done"], held["rows"]

    def add(self, name: str, **figures: float) -> None:
        row = self.rows.setdefault(name, {})
        for key, value in figures.items():
            row[key] = row.get(key, 0) + value

    def save(self) -> None:
        self.done += 1
        found = {"settings": self.settings, "done": self.done, "rows": self.rows}
        self.path.write_text(json.dumps(found, indent=1) + "\n")


@contextmanager
def clocks() -> Iterator[Row]:
    """CPU seconds of this thread and wall seconds of the block."""
    row: Row = {}
    wall, cpu = time.perf_counter(), time.thread_time()
    yield row
    row["cpu"], row["wall"] = time.thread_time() - cpu, time.perf_counter() - wall


# -- along time -------------------------------------------------------------------------------------------------------
class NoisyHead(nn.Module):
    """A drafter's head whose logits are disturbed by one of 64 fixed noises, chosen by its own hidden state: a law that
    depends on the past alone, as a drafter's must.

    Attributes: inside, across: sizes of the noise within clusters of tokens, and of whole clusters.
    """

    def __init__(self, head: nn.Module, width: int, vocab: int, label: Tensor) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(7)
        self.head, self.inside, self.across = head, 0.0, 0.0
        self.probe = torch.randn(width, 64, generator=g)
        self.single = torch.randn(64, vocab, generator=g)
        self.cluster = torch.randn(64, int(label.max()) + 1, generator=g)[:, label]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("head"), name)

    def logits(self, hidden: Tensor, codes: Tensor) -> list[Tensor]:
        which = (hidden @ self.probe).argmax(-1)
        noise = self.inside * self.single[which] + self.across * self.cluster[which]
        return [self.head.logits(hidden, codes)[0] + noise]  # type: ignore[operator]


class Bench:
    """A packed target of random weights, its drafter, and their groups."""

    def __init__(self, layers: int, width: int, hidden: int, vocab: int = 1024, first: int = 1) -> None:
        torch.manual_seed(0)
        sizes = {"width": width, "layers": layers, "heads": width // 64, "hidden": hidden, "window": 256, "slack": 15}
        self.lm = lm = TokenLM(TokenLMConfig.model_validate({"vocab": vocab, "backbone": sizes})).eval()
        self.parameters = sum(x.numel() for x in lm.parameters())
        ids = lm.head.size(0)
        label = torch.arange(ids) % (vocab // 8)
        label[vocab:] = torch.arange(ids - vocab) + vocab // 8  # end and fill are alone
        for weight, scale in ((lm.head.table.weight, 0.35), (lm.head.levels[0].weight, 0.08)):  # type: ignore[union-attr,index]
            centre = torch.randn(int(label.max()) + 1, width)[label]
            weight[:ids] = scale * (centre + 0.5 * torch.randn(ids, width))  # type: ignore[operator,index]
        self.groups = {s: build_groups(code_embeddings(lm.head), s, control=2).channels[0] for s in (4.0, 8.0)}
        small = first_layers(lm, first).eval()
        self.noise = NoisyHead(small.head, width, ids, label)
        for part in (lm, small.backbone, small.head.levels):  # type: ignore[union-attr]
            pack_linears(part)  # type: ignore[arg-type]
        small.head = self.noise  # type: ignore[assignment]
        self.draft = LMDrafter(small)

    def calibrate(self, exact: float, coarse: float) -> None:
        """Sets the noise so that the two rules would keep these shares, behind a text, on states of random tokens."""
        g = torch.Generator().manual_seed(1)
        codes = torch.randint(0, self.lm.config.vocab, (1, 1, 64), generator=g)
        text = self.lm.read(torch.randint(1, 60, (1, 24), generator=g), torch.tensor([24]))
        x = torch.cat([text, self.lm.head.embed(codes) * self.lm.input_scale], 1)
        none = torch.zeros(64, 1, dtype=torch.long)
        q = sampling_law(self.lm.head.logits(self.lm.backbone(x)[0, 24:], none)[0], SAMPLING)
        hidden = self.draft.lm.backbone(x)[0, 24:]

        def kept(rule: Rule) -> float:
            p = sampling_law(self.noise.logits(hidden, none)[0], SAMPLING)
            return float(acceptance(p, rule(p, q)).mean())

        def at(ratio: float) -> float:
            def with_noise(size: float) -> float:
                self.noise.inside, self.noise.across = size, size * ratio
                return -kept(Exact())

            with_noise(bisect(with_noise, -exact, 0.0, 6.0, 12))
            return -kept(CoarseGrained(self.groups[8.0]))

        at(bisect(at, -coarse, 0.0, 4.0, 8))


def speak(generation: Generation, frames: int, seed: int, limit: float) -> Row:
    """One answer of `frames` tokens, or as many as `limit` seconds allow."""
    text = tuple(int(x) for x in torch.randint(1, 60, (24,), generator=torch.Generator().manual_seed(seed)))
    plan = generation.join(0, TokenRequest(text, sampling=SAMPLING, least=frames, most=frames, seed=seed))
    generation.tick()  # the text is read outside of the clock: it is the same for all
    before, end = len(plan.steps), time.perf_counter() + limit
    with clocks() as row:
        while not plan.done and time.perf_counter() < end:
            generation.tick()
    generation.leave(0)
    return {**row, "tokens": len(plan.steps) - before}


def walls(bench: Bench, tally: Tally, frames: int, row: float, seconds: float, texts: int) -> None:
    coarse = {size: CoarseGrained(channel) for size, channel in bench.groups.items()}
    rules: list[tuple[str, str, Rule, int]] = [
        (kind, name, rule, length)
        for kind, length in (("laws", 3), ("laws", 5), ("bundled", 3))
        for name, rule in (("exact", Exact()), ("pcg 8", coarse[8.0]))
    ]
    rules += [
        ("laws", "pcg 4", coarse[4.0], 3),
        ("laws", "budgeted 0.1", Budgeted(coarse[8.0], 0.1), 3),
        ("laws", "mixing 0.2", Mixing(0.2), 3),
        ("laws", "tolerance 0.3", Tolerance(0.3), 3),
    ]
    noises: dict[str, tuple[float, float]] = {}
    for kind, (exact, pcg) in CALIBRATIONS.items():
        bench.calibrate(exact, pcg)
        noises[kind] = bench.noise.inside, bench.noise.across
    end = time.perf_counter() + seconds
    plain = Generation(bench.lm)
    speak(plain, 4, 99, row)
    answers = len(rules) + 1
    while tally.done < texts * answers and time.perf_counter() < end:
        seed, which = divmod(tally.done, answers)
        if not which:
            tally.add("autoregressive", **speak(plain, frames, seed, row))
        else:
            kind, name, rule, length = rules[which - 1]
            bench.noise.inside, bench.noise.across = noises[kind]
            loop = SpeculativeGeneration(bench.lm, Speculation(bench.draft, rule, length))
            found, figures = speak(loop, frames, seed, row), loop.figures
            found |= {"calls": figures.calls, "judged": figures.judged, "kept": figures.kept}
            tally.add(f"{kind}: {name}, draft of {length}", **found)
        tally.save()


def walls_table(rows: dict[str, Row]) -> list[Row]:
    base = rows["autoregressive"]
    out = []
    for name, row in rows.items():
        line: Row = {"rule": name, "tokens": int(row["tokens"])}
        for clock in ("cpu", "wall"):
            line[f"{clock} ms a token"] = 1000 * row[clock] / row["tokens"]
            line[f"{clock} speed-up"] = (base[clock] / base["tokens"]) / (row[clock] / row["tokens"])
        if "calls" in row:
            line |= {"acceptance": row["kept"] / row["judged"], "tokens a call": 1 + row["kept"] / row["calls"]}
        out.append(line)
    return out


def rows(bench: Bench, tally: Tally, rounds: int) -> None:
    """What a forward of so many positions costs, and one of the drafter; interleaved."""
    lm, small = bench.lm, bench.draft.lm
    states = lm.backbone.init_state(1), small.backbone.init_state(1)  # type: ignore[operator,union-attr]
    none = torch.zeros(16, 1, dtype=torch.long)

    def step(model: TokenLM, state: Any, count: int) -> None:
        hidden = model.backbone(torch.randn(1, count, model.width), state)
        sampling_law(model.head.logits(hidden[0], none[:count])[0], SAMPLING)
        state.rewind(torch.tensor([count]))

    calls: dict[str, Callable[[], None]] = {
        str(n): lambda n=n: step(lm, states[0], n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 12)
    }
    calls["draft"] = lambda: step(small, states[1], 1)
    p, q = torch.rand(2, 1, 4, lm.head.size(0)).mul(8).softmax(-1)
    coarse = CoarseGrained(bench.groups[8.0])
    calls["rule: exact"] = lambda: (Exact()(p[:, :3], q[:, :3]), None)[1]
    calls["rule: pcg"] = lambda: (coarse(p[:, :3], q[:, :3]), None)[1]
    for call in calls.values():
        call()
    while tally.done < rounds:
        for name, call in calls.items():
            with clocks() as row:
                call()
            best = tally.rows.setdefault(name, {"cpu": float("inf")})
            best["cpu"] = min(best["cpu"], row["cpu"])
        tally.save()


# -- along depth ------------------------------------------------------------------------------------------------------
class Calibrated(ResidualDrafter):
    """Draft heads that are right as often as wanted: after their own forward, whose cost they keep, they say what the
    target's head says on average over lower codes, plus noise. The average is made before the clock runs."""

    noise = 0.0

    def __init__(self, head: DepthHead, width: int) -> None:
        super().__init__(width, head.codebooks, head.vocab, head.size(0))
        self._target, self._known = [head], dict[bytes, Tensor]()

    def forward(self, hidden: Tensor, first: Tensor) -> Tensor:
        cost = super().forward(hidden, first)
        key = hidden.numpy().tobytes() + first.numpy().tobytes()
        if key not in self._known:
            self._known[key] = self._average(hidden, first)
        mean, noise = self._known[key]
        return mean + self.noise * noise + 0 * cost

    def _average(self, hidden: Tensor, first: Tensor, draws: int = 8) -> Tensor:
        head = self._target[0]
        codes = torch.randint(0, self.vocab, (draws, head.codebooks))
        codes[:, 0] = first
        logits = torch.stack(head.logits(hidden.expand(draws, -1), codes)[1:], 1)
        mean = logits.softmax(-1).mean(0, keepdim=True).log()
        return torch.stack([mean, torch.randn(mean.shape)])


def depth(tally: Tally, frames: int, seconds: float, wanted: float = 0.75, gain: float = 1.0) -> None:
    torch.manual_seed(0)
    width, levels, vocab, sampling = 256, 16, 256, SamplingConfig(temperature=1.0, top_k=50)
    head = DepthHead(width, levels, vocab, TransformerConfig(width=384, layers=4, heads=6, hidden=1024)).eval()
    head.gain.fill_(gain)  # of random weights, a level would depend on the codes below more than a drafter can know
    groups: Groups = build_groups([0.3 * t for t in code_embeddings(head)], 8.0, control=2)
    pack_linears(head)
    base = Calibrated(head, width).eval()
    hidden, uniform = torch.randn(frames, 1, width), torch.rand(frames, 1, 2, levels)

    def accepted(noise: float) -> float:
        base.noise = noise
        trial = SpeculativeHead(head, base, Exact(), redraft=False)
        for h, u in zip(hidden[:8], uniform[:8], strict=True):
            trial.sample(h, u, sampling)
        return -trial.figures.acceptance

    base.noise = bisect(accepted, -wanted, 0.0, 3.0, 6)
    heads: dict[str, Any] = {"one by one": head}
    for name, rule, redraft in (("exact", "exact", False), ("exact, redrafted", "exact", True), ("pcg", "pcg", False)):
        heads[name] = SpeculativeHead(head, base, depth_rule(rule, groups), redraft)
    end = time.perf_counter() + seconds
    while tally.done < frames and time.perf_counter() < end:
        h, u = hidden[tally.done], uniform[tally.done]
        heads["exact"].sample(h, u, sampling)  # warm, and the average is known
        for name, target in heads.items():
            if isinstance(target, SpeculativeHead):
                target.figures = type(target.figures)()
            with clocks() as row:
                target.sample(h, u, sampling)
            if isinstance(target, SpeculativeHead):
                figures = target.figures
                row |= {"rounds": figures.rounds, "judged": figures.judged, "kept": figures.kept}
            tally.add(name, frames=1, **row)
        tally.save()


def depth_table(rows: dict[str, Row]) -> list[Row]:
    base = rows["one by one"]["cpu"]
    out = []
    for name, row in rows.items():
        line: Row = {"rule": name, "frames": row["frames"], "cpu ms a frame": 1000 * row["cpu"] / row["frames"]}
        line["speed-up"] = base / row["cpu"]
        if "rounds" in row:
            line |= {"acceptance": row["kept"] / row["judged"], "rounds": row["rounds"] / row["frames"]}
        out.append(line)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/speculation"))
    parser.add_argument("--sections", default="rows,walls,depth")
    parser.add_argument("--layers", type=int, default=30, help="of the target; the defaults are SmolLM2-135M's")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--frames", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--row", type=float, default=60.0, help="wall seconds that one answer may take")
    parser.add_argument("--seconds", type=float, default=600.0, help="wall seconds after which a section ends")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    wanted.out.mkdir(parents=True, exist_ok=True)
    sections = wanted.sections.split(",")
    settings: Row = {"layers": wanted.layers, "width": wanted.width, "hidden": wanted.hidden, "frames": wanted.frames}
    with torch.inference_mode():
        bench = Bench(wanted.layers, wanted.width, wanted.hidden) if {"rows", "walls"} & set(sections) else None
        for section in sections:
            tally = Tally(wanted.out / f"{section}.json", settings)
            if section == "depth":
                depth(tally, 24, wanted.seconds)
                found = depth_table(tally.rows)
            elif section == "walls":
                assert bench is not None
                walls(bench, tally, wanted.frames, wanted.row, wanted.seconds, wanted.texts)
                found = walls_table(tally.rows)
            else:
                assert bench is not None
                rows(bench, tally, 5)
                one = tally.rows["1"]["cpu"]
                found = [{"step": n, "ms": 1000 * r["cpu"], "over one": r["cpu"] / one} for n, r in tally.rows.items()]
                sys.stdout.write(f"target of {bench.parameters / 1e6:.0f} M parameters\n\n")
            sys.stdout.write(f"## {section}\n\n{table(found)}\n\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
