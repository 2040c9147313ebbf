"""How a conversation went: timing of two channels against what was scripted, after Full-Duplex-Bench (Lin et al. 2025;
github.com/DanielLin94144/Full-Duplex-Bench) and the turn-taking statistics of dGSLM (Nguyen et al. 2023).

No recogniser is needed: speech is where there is energy, and what should have happened is known from the script. Times
are seconds; a *talkspurt* (inter-pausal unit) is speech without a gap of `JOIN` or more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import BadInput

__all__ = [
    "DuplexScores",
    "Event",
    "EventKind",
    "Span",
    "activity",
    "answers",
    "by_topic",
    "collapses",
    "draw_timeline",
    "latencies",
    "longest_silence",
    "score",
    "table",
    "talkspurts",
    "topic_table",
]

Span = tuple[float, float]
EventKind = Literal["turn", "pause", "backchannel", "interrupt", "noise", "end"]

FRAME = 0.01
JOIN = 0.2
"""Gaps shorter than that lie within a talkspurt (the pauses between words)."""
SHORTEST = 0.05
TAKEOVER = 1.0
"""Speech shorter than that is no takeover but a backchannel (Full-Duplex-Bench: under 1 s)."""
QUIET = 0.2
"""The assistant has stopped when it is silent for that long."""
PATIENCE = 5.0
"""A turn that nobody answers within so many seconds was not answered."""
COLLAPSE = 10.0
"""Silence of the assistant for so many seconds after a turn, whatever the user says meanwhile, is a collapse."""


@dataclass(frozen=True)
class Event:
    """One thing that the script has the *user* do, from `start` to `end`.

    `turn`: says something that asks for an answer; `pause`: is silent within a turn; `backchannel`: "mhm" while the
    assistant speaks; `interrupt`: takes the floor while the assistant speaks; `noise`: something that is no speech;
    `end`: the conversation is over. `text`: what is said; `answer`: words that a right answer holds; `topic`: what kind
    of question it is.
    """

    kind: EventKind
    start: float
    end: float
    text: str = ""
    answer: str = ""
    topic: str = ""


def activity(samples: np.ndarray, sample_rate: int, threshold: float = 0.01) -> list[Span]:
    """Talkspurts of a channel by energy: frames of 10 ms whose level (RMS) exceeds `threshold`.

    Raises:
        BadInput: not one channel.
    """
    if samples.ndim != 1:
        raise BadInput(f"a channel is float32 [n], not {list(samples.shape)}; split the file into its channels")
    size = round(FRAME * sample_rate)
    whole = len(samples) // size * size
    level = np.sqrt((samples[:whole].reshape(-1, size).astype(np.float64) ** 2).mean(1))
    return talkspurts(_runs(level > threshold))


def _runs(active: np.ndarray) -> list[Span]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(np.int8), [0]])))
    return [(float(a * FRAME), float(b * FRAME)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def talkspurts(spans: Iterable[Span], join: float = JOIN, shortest: float = SHORTEST) -> list[Span]:
    """Spans with gaps under `join` closed, and what is then shorter than `shortest` left out."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start - merged[-1][1] < join - 1e-9:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return [s for s in merged if s[1] - s[0] >= shortest - 1e-9]


def _overlap(a: Span, b: Span) -> float:
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0]))


def _speaking(spans: Sequence[Span], at: float) -> Span | None:
    return next((s for s in spans if s[0] <= at < s[1]), None)


@dataclass(frozen=True)
class DuplexScores:
    """Of one conversation, or of many together (`+`): lists of what was measured, from which the rates follow.

    Attributes:
        offsets: floor-transfer offset of every answered turn, signed (negative = the assistant began too soon).
        turns, answered: scripted turns and interruptions, and those answered within `PATIENCE`.
        pauses, takeovers: pauses within turns, and those in which the assistant took the floor.
        stops: after each interruption, seconds until the assistant was silent (None: it went on).
        interruptions: those that began while the assistant spoke.
        disturbances, false_yields: backchannels and noises while the assistant spoke, and those at which it stopped.
        backchannels: of the assistant, while the user spoke. collapses: see the function of that name.
        seconds, user, own, overlap: of the conversation, of each one's speech, of both at once.
        right: answers found right and answers judged (by `answers`), as a recogniser heard them. written: the same of
            the model's own text (its inner monologue). misheard: word errors and words of what the model wrote down of
            the user's speech (`DuplexConfig.heard`).
        right_by_topic, written_by_topic: the same answers by what the question was about (`Event.topic`).
    """

    offsets: tuple[float, ...] = ()
    turns: int = 0
    answered: int = 0
    pauses: int = 0
    takeovers: int = 0
    stops: tuple[float | None, ...] = ()
    interruptions: int = 0
    disturbances: int = 0
    false_yields: int = 0
    backchannels: int = 0
    collapses: int = 0
    seconds: float = 0.0
    user: float = 0.0
    own: float = 0.0
    overlap: float = 0.0
    right: tuple[int, int] = (0, 0)
    written: tuple[int, int] = (0, 0)
    misheard: tuple[int, int] = (0, 0)
    right_by_topic: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    written_by_topic: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __add__(self, other: DuplexScores) -> DuplexScores:
        mine, its = vars(self), vars(other)
        pairs, topics = ("right", "written", "misheard"), ("right_by_topic", "written_by_topic")
        joined: dict[str, Any] = {name: mine[name] + its[name] for name in mine if name not in pairs + topics}
        counts: dict[str, Any] = {name: _both(mine[name], its[name]) for name in pairs}
        tables: dict[str, Any] = {
            name: {
                topic: _both(mine[name].get(topic, (0, 0)), its[name].get(topic, (0, 0)))
                for topic in sorted({*mine[name], *its[name]})
            }
            for name in topics
        }
        return DuplexScores(**joined, **counts, **tables)

    def figures(self) -> dict[str, float | None]:
        """Name -> figure; None where nothing could be measured. Shares are of 1, times in seconds."""
        latency = sorted(max(0.0, x) for x in self.offsets)  # Full-Duplex-Bench: negative ones count as 0
        stopped = sorted(x for x in self.stops if x is not None)
        return {
            "response rate": _share(self.answered, self.turns),
            "response latency p50": _quantile(latency, 0.5),
            "response latency p95": _quantile(latency, 0.95),
            "floor-transfer offset p50": _quantile(sorted(self.offsets), 0.5),
            "takeover on pauses": _share(self.takeovers, self.pauses),
            "stop latency p50": _quantile(stopped, 0.5),
            "yields within 0.6 s": _share(sum(x <= 0.6 for x in stopped), self.interruptions),
            "yields within 1 s": _share(sum(x <= 1.0 for x in stopped), self.interruptions),
            "false yields": _share(self.false_yields, self.disturbances),
            "backchannels per minute": 60 * self.backchannels / self.seconds if self.seconds else None,
            "talk share": _share(self.own, self.own + self.user),
            "overlap": _share(self.overlap, self.seconds),
            "silence collapses": float(self.collapses),
            "answers right": _share(*self.right),
            "answers right in writing": _share(*self.written),
            "user's words misheard": _share(*self.misheard),
        }


def _both(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _quantile(ordered: Sequence[float], q: float) -> float | None:
    return float(np.quantile(ordered, q)) if ordered else None


def latencies(assistant: Sequence[Span], end: float, until: float) -> float | None:
    """Floor-transfer offset at a turn's end: when the assistant's next talkspurt begins, counted from the end (one that
    is under way and reaches past the end counts from its beginning, negative). None: it begins none before `until`."""
    for start, stop in assistant:
        if stop > end and start < until:
            return start - end
    return None


def score(
    user: Sequence[Span], assistant: Sequence[Span], events: Sequence[Event], seconds: float, patience: float = PATIENCE
) -> DuplexScores:
    """Scores one conversation: talkspurts of both channels, what the user was to do, the length of it all."""
    offsets, stops = [], []
    answered = takeovers = yields = disturbances = turns = pauses = interruptions = 0
    for number, event in enumerate(events):
        if event.kind in ("turn", "interrupt"):
            before = event.kind == "interrupt" and _speaking(assistant, event.start)
            if before:
                interruptions += 1
                stops.append(_stop_latency(assistant, event.start, event.end))
            turns += 1
            following = next((e.start for e in events[number + 1 :] if e.kind in ("turn", "interrupt", "end")), seconds)
            until = max(event.end, min(event.end + patience, following))
            # What it was saying when it was interrupted is no answer to the interruption.
            own = [s for s in assistant if s[0] > (event.start if before or event.kind == "interrupt" else -1)]
            offset = latencies(own, event.end, until)
            if offset is not None:
                answered += 1
                offsets.append(offset)
        elif event.kind == "pause":
            pauses += 1
            begun = [s for s in assistant if event.start <= s[0] < event.end]
            takeovers += any(s[1] - s[0] >= TAKEOVER or s[1] > event.end + TAKEOVER / 2 for s in begun)
        elif event.kind in ("backchannel", "noise") and (spurt := _speaking(assistant, event.start)):
            if spurt[1] < event.end + 1.0 and _was_to_go_on(events, spurt, event):
                yields += 1
            disturbances += 1
    return DuplexScores(
        offsets=tuple(offsets),
        turns=turns,
        answered=answered,
        pauses=pauses,
        takeovers=takeovers,
        stops=tuple(stops),
        interruptions=interruptions,
        disturbances=disturbances,
        false_yields=yields,
        backchannels=_backchannels(user, assistant),
        collapses=collapses(assistant, events, seconds),
        seconds=seconds,
        user=sum(b - a for a, b in user),
        own=sum(b - a for a, b in assistant),
        overlap=sum(_overlap(a, b) for a in user for b in assistant),
    )


def collapses(assistant: Sequence[Span], events: Iterable[Event], seconds: float) -> int:
    """Silences of the assistant that go on for `COLLAPSE` s or more from the end of a turn (or interruption); a silence
    that outlasts several turns counts once."""
    turns = [e.end for e in events if e.kind in ("turn", "interrupt")]
    return sum(any(a <= t and b - t >= COLLAPSE for t in turns) for a, b in _silences(assistant, seconds))


def longest_silence(assistant: Sequence[Span], start: float, end: float) -> float:
    """Seconds of the longest silence of the assistant within a span of time."""
    inside = [(max(a, start) - start, min(b, end) - start) for a, b in assistant if a < end and b > start]
    return max((b - a for a, b in _silences(inside, end - start)), default=0.0)


def _silences(spans: Sequence[Span], seconds: float) -> list[Span]:
    ordered = sorted(spans)
    return list(zip([0.0, *(b for _, b in ordered)], [*(a for a, _ in ordered), seconds], strict=True))


def _stop_latency(assistant: Sequence[Span], start: float, end: float) -> float | None:
    """Seconds from an interruption's beginning until the assistant is silent for `QUIET`; None: not before its end, or
    a second from its beginning if that is later."""
    held = _speaking(talkspurts(assistant, QUIET, 0.0), start)
    if held is None:
        return 0.0
    return held[1] - start if held[1] <= max(end, start + 1.0) else None


def _was_to_go_on(events: Sequence[Event], spurt: Span, event: Event) -> bool:
    """Whether the assistant's stop may be blamed on the disturbance: no turn or interruption of the user began before
    it stopped."""
    return not any(e.kind in ("turn", "interrupt") and event.start <= e.start < spurt[1] for e in events)


def _backchannels(user: Sequence[Span], assistant: Sequence[Span]) -> int:
    """Talkspurts of the assistant under `TAKEOVER` that lie within the user's speech."""
    return sum(
        b - a < TAKEOVER and any(u[0] <= a and b <= u[1] + JOIN for u in talkspurts(user, 1.0, 0.0))
        for a, b in assistant
    )


def answers(pairs: Iterable[tuple[str, str]]) -> tuple[int, int]:
    """Right answers and all: (what a recogniser heard, words that a right answer holds in this order); the words are
    compared in lower case, with alternatives written as "seven|7"."""
    right = total = 0
    for heard, wanted in pairs:
        words = [w.strip(".,!?;:") for w in heard.lower().split()]
        total += 1
        at = 0
        for choice in wanted.lower().split():
            found = next((i for i in range(at, len(words)) if words[i] in choice.split("|")), None)
            if found is None:
                break
            at = found + 1
        else:
            right += 1
    return right, total


def by_topic(judged: Iterable[tuple[str, str, str]]) -> dict[str, tuple[int, int]]:
    """`answers` by topic, of (topic, what was heard, words of a right answer); answers without a topic are left out."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for topic, heard, wanted in judged:
        if topic:
            kinds.setdefault(topic, []).append((heard, wanted))
    return {topic: answers(pairs) for topic, pairs in kinds.items()}


def topic_table(scores: DuplexScores) -> str:
    """Markdown: the share of right answers to each kind of question; "" where no question has a kind."""
    topics = sorted({*scores.right_by_topic, *scores.written_by_topic})
    lines = ["| topic | answers right | right in writing | cases |", "|---|---|---|---|"] if topics else []
    for topic in topics:
        heard, written = scores.right_by_topic.get(topic, (0, 0)), scores.written_by_topic.get(topic, (0, 0))
        shares = ("–" if (share := _share(*pair)) is None else f"{share:.3f}" for pair in (heard, written))
        lines.append(f"| {topic} | {' | '.join(shares)} | {max(heard[1], written[1])} |")
    return "\n".join(lines)


def table(scores: DuplexScores) -> str:
    """Markdown: figure by figure, with how many cases it rests on."""
    cases = {
        "response rate": scores.turns,
        "response latency p50": scores.answered,
        "takeover on pauses": scores.pauses,
        "stop latency p50": sum(x is not None for x in scores.stops),
        "yields within 0.6 s": scores.interruptions,
        "yields within 1 s": scores.interruptions,
        "false yields": scores.disturbances,
        "answers right": scores.right[1],
        "answers right in writing": scores.written[1],
        "user's words misheard": scores.misheard[1],
    }
    lines = ["| figure | value | cases |", "|---|---|---|"]
    for name, value in scores.figures().items():
        shown = "–" if value is None else f"{value:.3f}"
        lines.append(f"| {name} | {shown} | {cases.get(name, '')} |")
    return "\n".join(lines)


_COLOURS = {"turn": "#4c78a8", "interrupt": "#e45756", "pause": "#bab0ac", "backchannel": "#72b7b2", "noise": "#eeca3b"}


def draw_timeline(
    path: Path, user: np.ndarray, assistant: np.ndarray, sample_rate: int, events: Sequence[Event] = ()
) -> None:
    """A PNG of both channels over time with the script's events. No global state of matplotlib is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    seconds = max(len(user), len(assistant)) / sample_rate
    figure = Figure(figsize=(min(40.0, max(8.0, 0.6 * seconds)), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axes, name, samples in ((top, "user", user), (bottom, "assistant", assistant)):
        _channel(axes, name, samples, sample_rate)
    for event in events:
        if event.kind in _COLOURS:
            top.axvspan(event.start, event.end, color=_COLOURS[event.kind], alpha=0.25, linewidth=0)
            label = event.text or event.kind
            top.text(event.start, 1.02, label[:40], fontsize=6, transform=top.get_xaxis_transform())
    bottom.set_xlabel("seconds", fontsize=8)
    bottom.set_xlim(0, seconds or 1)
    figure.savefig(path, format="png", dpi=110)


def _channel(axes: Any, name: str, samples: np.ndarray, sample_rate: int) -> None:
    size = max(1, sample_rate // 100)
    whole = len(samples) // size * size
    blocks = samples[:whole].reshape(-1, size)
    time = np.arange(len(blocks)) * size / sample_rate
    if len(blocks):
        axes.fill_between(time, blocks.min(1), blocks.max(1), color="#333333", linewidth=0)
    for start, end in activity(samples, sample_rate):
        axes.plot([start, end], [-1.05, -1.05], color="#54a24b", linewidth=3, solid_capstyle="butt")
    axes.set_ylim(-1.15, 1.15)
    axes.set_ylabel(name, fontsize=8)
    axes.tick_params(labelsize=6)
    axes.spines[["top", "right"]].set_visible(False)
