"""What each rule does to a trained voice: the second section of `benchmarks/speculation.py`.

The same texts and seeds under every rule, in turn (text by text, each time another rule first), so that all rules see
the same machine. The axis is the model's own: along time for a token language model with a drafter
(`recipes/draft-lm.yaml`), along depth for a voice with a depth or chain head (`recipes/draft-depth.yaml`).

Figures of a row: acceptance; tokens per call (time) or rounds per frame (depth); CPU and wall time, for a second of
speech, of what the rule can change (the language model along time, the whole voice along depth), and the speed-ups over
`off`; phone errors by the bundled recogniser with the paired bootstrap interval of their difference from `off`; with
`asr` word errors; DNSMOS; similarity to the other texts' plain answers (Resemblyzer).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import soxr

from quaver.codecs.loading import model_folder, read_config
from quaver.evaluation.judges import Judges, installed
from quaver.evaluation.words import compare, normalise
from quaver.tts.drafters import load_drafter
from quaver.tts.groups import Groups, build_groups, code_embeddings, weights_hash
from quaver.tts.speculative import Budgeted, CoarseGrained, Exact, Mixing, Rule, Tolerance
from quaver.tts.speculative_depth import DepthFigures, SpeculativeHead, depth_rule
from quaver.tts.speculative_plan import Figures, Speculation, SpeculativeGeneration
from quaver.tts.speculative_voice import load_depth_drafter
from quaver.tts.synthesizer import load_synthesizer
from quaver.tts.text import is_pause, strip_stress
from quaver.tts.token_synthesizer import TokenSynthesizer

Row = dict[str, Any]
SIZES = (4.0, 8.0, 16.0)
DELTAS = (0.1, 0.2)
RATE = 16_000
TEXTS = ("The birch canoe slid on the smooth planks.", "Four hours of steady work faced us.")


class Axis(Protocol):
    """A voice whose rule can be changed."""

    voice: Any

    def rule(self, groups: Groups, delta: float | None = None) -> Rule:
        """PCG over these groups; within `delta` a step, if given."""
        ...

    def use(self, rule: Rule | None) -> None:
        """From the next answer on; None: plain decoding."""
        ...

    def take(self) -> tuple[float, float, Any]:
        """CPU and wall seconds of the part that the rule can change since the last look, and figures (or None)."""
        ...


class AlongTime:
    """A token language model."""

    def __init__(self, name: str, draft: str, length: int) -> None:
        self.voice: Any = load_synthesizer(name)
        if not isinstance(self.voice, TokenSynthesizer):
            raise SystemExit(f"{name} is no token language model")
        self.drafter = load_drafter(draft, self.voice.lm, weights_hash(model_folder(name)))
        self.plain, self.length = self.voice.loop, length
        self.cpu = self.wall = 0.0
        self.figures: Figures | None = None

    def rule(self, groups: Groups, delta: float | None = None) -> Rule:
        coarse = CoarseGrained(groups.channels[0])
        return coarse if delta is None else Budgeted(coarse, delta)

    def use(self, rule: Rule | None) -> None:
        if rule is None:
            self.figures, self.voice.loop = None, self._timed(self.plain)
            return
        self.figures = Figures()
        speculation = Speculation(self.drafter, rule, self.length)
        loop = partial(SpeculativeGeneration, speculation=speculation, figures=self.figures)
        self.voice.loop = self._timed(loop)

    def _timed(self, loop: Callable[..., Any]) -> Callable[..., Any]:
        def make(*given: Any, **named: Any) -> Any:
            generation = loop(*given, **named)
            tick = generation.tick

            def timed(*arguments: Any) -> Any:
                cpu, wall = time.thread_time(), time.perf_counter()
                try:
                    return tick(*arguments)
                finally:
                    self.cpu += time.thread_time() - cpu
                    self.wall += time.perf_counter() - wall

            generation.tick = timed
            return generation

        return make

    def take(self) -> tuple[float, float, Any]:
        spent = self.cpu, self.wall, self.figures
        self.cpu = self.wall = 0.0
        return spent


class AlongDepth:
    """A pointer voice of several codebooks; the whole answer is timed."""

    def __init__(self, name: str, draft: str) -> None:
        self.voice: Any = load_synthesizer(name)
        self.lm, self.head = self.voice.lm, self.voice.lm.head
        self.drafter = load_depth_drafter(draft, self.head, weights_hash(model_folder(name)))
        self.since = time.thread_time(), time.perf_counter()

    def rule(self, groups: Groups, delta: float | None = None) -> Rule:
        return depth_rule("pcg", groups) if delta is None else depth_rule("budgeted", groups, delta)

    def use(self, rule: Rule | None) -> None:
        self.lm.head = self.head if rule is None else SpeculativeHead(self.head, self.drafter, rule)
        self.since = time.thread_time(), time.perf_counter()

    def take(self) -> tuple[float, float, Any]:
        now, before = (time.thread_time(), time.perf_counter()), self.since
        self.since = now
        return now[0] - before[0], now[1] - before[1], getattr(self.lm.head, "figures", None)


@dataclass
class Tally:
    """One rule's answers so far."""

    seconds: float = 0.0
    cpu: float = 0.0
    wall: float = 0.0
    phones: list[tuple[int, int]] = field(default_factory=list)  # errors, phones of each text
    words: list[tuple[int, int]] = field(default_factory=list)
    dnsmos: list[float] = field(default_factory=list)
    speakers: list[np.ndarray] = field(default_factory=list)
    figures: list[Any] = field(default_factory=list)

    def rate(self, counts: list[tuple[int, int]]) -> float:
        return 100 * sum(e for e, _ in counts) / max(1, sum(n for _, n in counts))


def rules_of(axis: Axis) -> dict[str, Rule | None]:
    """Every rule, by the name that the table gives it."""
    head = axis.voice.lm.head
    tables, control = code_embeddings(head), int(getattr(head, "stops", 0))

    def groups(size: float) -> Groups:
        return build_groups(tables, size, control=control)

    found: dict[str, Rule | None] = {"off": None, "exact": Exact()}
    found |= {f"pcg, groups of {size:g}": axis.rule(groups(size)) for size in SIZES}
    found |= {f"budgeted, delta {delta:g}": axis.rule(groups(8.0), delta) for delta in DELTAS}
    return found | {"mixing 0.2": Mixing(0.2), "tolerance 0.3": Tolerance(0.3)}


def judge(tally: Tally, samples: np.ndarray, rate: int, text: str, phones: list[str], judges: Judges) -> None:
    """Adds an answer to a rule's row."""
    heard = judges.transcribe_phones(samples, rate)
    tally.phones.append((compare(phones, heard).errors, len(phones)))
    audio = soxr.resample(samples, rate, RATE).clip(-1, 1).astype(np.float32)
    if judges.asr:
        said = normalise(text).split()
        tally.words.append((compare(said, normalise(judges.transcribe(audio)).split()).errors, len(said)))
    if installed("speechmos"):
        tally.dnsmos.append(judges.dnsmos(audio)["dnsmos"])
    if installed("resemblyzer"):
        tally.speakers.append(judges.embedding(audio))


def speak_all(axis: Axis, texts: Sequence[str], judges: Judges) -> dict[str, Tally]:
    """Every text under every rule."""
    rules = rules_of(axis)
    tallies = {name: Tally() for name in rules}
    names = list(rules)
    for seed, text in enumerate(texts):
        phones = [strip_stress(p) for u in axis.voice.frontend(text) for p in u.phones if not is_pause(p)]
        for name in names[seed % len(names) :] + names[: seed % len(names)]:
            axis.use(rules[name])
            chunks = list(axis.voice.stream(text, seed=seed))
            cpu, wall, figures = axis.take()
            samples, tally = np.concatenate([c.samples for c in chunks]), tallies[name]
            tally.seconds += len(samples) / axis.voice.sample_rate
            tally.cpu, tally.wall = tally.cpu + cpu, tally.wall + wall
            tally.figures.append(figures)
            judge(tally, samples, axis.voice.sample_rate, text, phones, judges)
    axis.use(None)
    return tallies


def similarity(tally: Tally, plain: Tally) -> float:
    """Mean cosine to the mean voice of the plain answers to the other texts."""
    if len(plain.speakers) < 2:
        return float("nan")
    total = np.sum(plain.speakers, 0)
    others = [total - own for own in plain.speakers]
    cosines = [float(v @ o / np.linalg.norm(o)) for v, o in zip(tally.speakers, others, strict=True)]
    return float(np.mean(cosines))


def paired(tally: Tally, plain: Tally, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval, over texts, of the difference of the phone error rates in points."""
    errors = np.array([[a[0], b[0], a[1]] for a, b in zip(tally.phones, plain.phones, strict=True)], float)
    picks = np.random.default_rng(0).integers(len(errors), size=(draws, len(errors)))
    sums = errors[picks].sum(1)
    low, high = np.percentile(100 * (sums[:, 0] - sums[:, 1]) / sums[:, 2], [2.5, 97.5])
    return float(low), float(high)


def row_of(name: str, tally: Tally, plain: Tally) -> Row:
    row: Row = {"rule": name, "texts": len(tally.phones)}
    used = [f for f in tally.figures if f is not None]
    if used:
        judged = sum(f.judged for f in used)
        row["acceptance"] = sum(f.kept for f in used) / max(1, judged)
        if isinstance(used[0], DepthFigures):
            row["rounds_per_frame"] = sum(f.rounds for f in used) / max(1, sum(f.passes for f in used))
        else:
            row["tokens_per_call"] = sum(f.tokens for f in used) / max(1, sum(f.calls for f in used))
    row |= {"cpu_per_second": tally.cpu / tally.seconds, "wall_per_second": tally.wall / tally.seconds}
    row["cpu_gain"] = plain.cpu / plain.seconds / row["cpu_per_second"]
    row["wall_gain"] = plain.wall / plain.seconds / row["wall_per_second"]
    row["phone_errors"] = tally.rate(tally.phones)
    row["difference"] = row["phone_errors"] - plain.rate(plain.phones)
    row["low"], row["high"] = paired(tally, plain)
    if tally.words:
        row["word_errors"] = tally.rate(tally.words)
    if tally.dnsmos:
        row["dnsmos"] = float(np.mean(tally.dnsmos))
    if tally.speakers:
        row["similarity"] = similarity(tally, plain)
    return row


def rows(name: str, draft: str, texts: Sequence[str], asr: str | None, length: int = 3) -> list[Row]:
    """The table of one voice: a model's name or folder, and its drafter's folder."""
    timed = read_config(model_folder(name)).get("kind") == "token_lm"
    axis: Axis = AlongTime(name, draft, length) if timed else AlongDepth(name, draft)
    tallies = speak_all(axis, texts, Judges(asr))
    return [row_of(rule, tally, tallies["off"]) for rule, tally in tallies.items()]
