"""Everything that can be measured, by name: `METRICS`.

A metric turns one `Sample` into columns of its row (`measure`), and the rows of a system into one figure (`summarise`).
It says what it needs, so that a report can state why a column is empty instead of failing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from ..errors import BadInput
from . import signals
from .estimate import Estimate, mean_of, ratio_of, total_of
from .judges import Judges, installed
from .words import ErrorCounts, compare, normalise

__all__ = ["METRICS", "Metric", "Sample", "choose"]

Need = Literal["text", "phones", "reference", "speaker", "timing", "stream", "asr"]
Columns = Mapping[str, Any]
_HEARABLE = 0.1  # seconds: judges of quality crash or guess on less


@dataclass
class Sample:
    """One recording to judge.

    Attributes:
        audio: float32 [sample], mono, in [-1, 1].
        text: what should have been said.
        phones: the same as phones without stress and pauses.
        reference: float32 [sample] at the same rate: the signal that this one should equal.
        speaker: unit vector of the speaker whom it should sound like.
        wall, cpu: seconds that making it took; first: wall seconds until its first audio (None: not streamed).
    """

    audio: np.ndarray
    sample_rate: int
    text: str | None = None
    phones: Sequence[str] | None = None
    reference: np.ndarray | None = None
    speaker: np.ndarray | None = None
    wall: float | None = None
    cpu: float | None = None
    first: float | None = None
    _heard: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.sample_rate

    @cached_property
    def at16(self) -> np.ndarray:
        """The audio at 16 kHz."""
        return signals.resample(self.audio, self.sample_rate)

    @cached_property
    def pair16(self) -> tuple[np.ndarray, np.ndarray]:
        """Reference and audio at 16 kHz."""
        if self.reference is None:
            raise BadInput("there is no reference recording to compare with")
        return signals.resample(self.reference, self.sample_rate), self.at16

    def audible(self) -> np.ndarray:
        """`at16`, or BadInput if there is too little of it to judge."""
        if self.seconds < _HEARABLE:
            raise BadInput(f"{self.seconds:.3f} s of audio are too short to judge")
        return self.at16

    def transcript(self, judges: Judges) -> str:
        """What the recogniser hears, asked once; "" in audio too short to hold a word."""
        if "text" not in self._heard:
            self._heard["text"] = judges.transcribe(self.at16) if self.seconds >= _HEARABLE else ""
        return self._heard["text"]

    def word_errors(self, judges: Judges) -> ErrorCounts:
        if "words" not in self._heard:
            reference = normalise(self.text or "").split()
            self._heard["words"] = compare(reference, normalise(self.transcript(judges)).split())
        return self._heard["words"]

    def dnsmos(self, judges: Judges) -> dict[str, float]:
        if "dnsmos" not in self._heard:
            self._heard["dnsmos"] = judges.dnsmos(self.audible())
        return self._heard["dnsmos"]


def wer(sample: Sample, judges: Judges) -> Columns:
    """Words that the recogniser heard against those that were to be said."""
    counts = sample.word_errors(judges)
    return {
        "wer": 100 * counts.rate, "word_errors": counts.errors, "words": counts.length,
        "hypothesis": sample.transcript(judges),
    }  # fmt: skip


def failures(sample: Sample, judges: Judges) -> Columns:
    """1 for a sentence that was cut, skipped over or looped, by the recogniser's hypothesis."""
    found = sample.word_errors(judges).failures
    return {"failures": int(bool(found)), "failed": found}


def per(sample: Sample, judges: Judges) -> Columns:
    """Phones that our CTC network heard against those that were to be said."""
    sample.audible()
    heard = judges.transcribe_phones(sample.audio, sample.sample_rate)
    counts = compare(list(sample.phones or ()), heard)
    return {"per": 100 * counts.rate, "phone_errors": counts.errors, "phones": counts.length}


def similarity(sample: Sample, judges: Judges) -> Columns:
    """Cosine between the voice heard and the voice wanted."""
    if sample.speaker is None:
        raise BadInput("there is no recording of the speaker to compare with")
    return {"similarity": float(judges.embedding(sample.audible()) @ sample.speaker)}


def dnsmos(sample: Sample, judges: Judges) -> Columns:
    return {"dnsmos": sample.dnsmos(judges)["dnsmos"]}


def p808(sample: Sample, judges: Judges) -> Columns:
    return {"p808": sample.dnsmos(judges)["p808"]}


def distillmos(sample: Sample, judges: Judges) -> Columns:
    return {"distillmos": judges.distillmos(sample.audible())}


def pesq(sample: Sample, judges: Judges) -> Columns:
    with judges.timed("pesq"):
        return {"pesq": signals.pesq_wb(*sample.pair16)}


def stoi(sample: Sample, judges: Judges) -> Columns:
    with judges.timed("stoi"):
        return {"stoi": signals.stoi(*sample.pair16)}


def mel_distance(sample: Sample, judges: Judges) -> Columns:
    if sample.reference is None:
        raise BadInput("there is no reference recording to compare with")
    with judges.timed("mel_distance"):
        return {"mel_distance": signals.mel_distance(sample.reference, sample.audio, sample.sample_rate)}


def f0_error(sample: Sample, judges: Judges) -> Columns:
    with judges.timed("f0_error"):
        return {"f0_error": signals.f0_error(*sample.pair16)}


def audio_seconds(sample: Sample, judges: Judges) -> Columns:
    return {"audio_seconds": sample.seconds}


def rtf(sample: Sample, judges: Judges) -> Columns:
    """Wall time of making the audio, over its length. A busy neighbour makes it worse: see `cpu_rtf`."""
    return _timing(sample, "rtf", sample.wall)


def cpu_rtf(sample: Sample, judges: Judges) -> Columns:
    """CPU time of this process, over the length of the audio; hardly depends on what else the machine does."""
    return _timing(sample, "cpu_rtf", sample.cpu)


def _timing(sample: Sample, name: str, cost: float | None) -> Columns:
    if cost is None or not sample.seconds:
        return {}
    return {name: cost / sample.seconds, f"{name}_cost": cost, f"{name}_seconds": sample.seconds}


def first_audio(sample: Sample, judges: Judges) -> Columns:
    """Milliseconds from the call to the first samples."""
    return {} if sample.first is None else {"first_audio": 1000 * sample.first}


def first_share(sample: Sample, judges: Judges) -> Columns:
    """The same as a share of what the whole sentence takes."""
    return {} if sample.first is None or not sample.wall else {"first_share": 100 * sample.first / sample.wall}


@dataclass(frozen=True)
class Metric:
    """How one quantity is measured and reported.

    Attributes:
        title: column heading.
        measure: one sample -> columns of its row; raises BadInput where this sample cannot be judged.
        higher_is_better: None for plain facts.
        needs: what a sample must carry.
        package, extra: the module behind it and the extra that installs it.
        summarise: rows of a system -> its figure; None if no row has it.
    """

    name: str
    title: str
    measure: Callable[[Sample, Judges], Columns]
    unit: str = ""
    digits: int = 2
    higher_is_better: bool | None = None
    needs: frozenset[Need] = frozenset()
    package: str | None = None
    extra: str = "eval"
    summarise: Callable[[Sequence[Columns]], Estimate | None] = lambda rows: None

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with a reference recording of the same words."""
        return "reference" in self.needs

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if self.package and not installed(self.package):
            return f"not installed: pip install 'quaver[{self.extra}]'"
        return None


def _metric(
    name: str, title: str, measure: Callable[[Sample, Judges], Columns], better: str, *,
    unit: str = "", digits: int = 2, needs: Collection[Need] = (), package: str | None = None, extra: str = "eval",
    summarise: Callable[[Sequence[Columns]], Estimate | None] | None = None,
) -> Metric:  # fmt: skip
    direction = {"up": True, "down": False, "": None}[better]
    return Metric(
        name, title, measure, unit, digits, direction, frozenset(needs), package, extra,
        summarise or partial(mean_of, column=name),
    )  # fmt: skip


_WER = partial(ratio_of, top="word_errors", bottom="words", scale=100.0)
_PER = partial(ratio_of, top="phone_errors", bottom="phones", scale=100.0)
_RTF = partial(ratio_of, top="rtf_cost", bottom="rtf_seconds")
_CPU_RTF = partial(ratio_of, top="cpu_rtf_cost", bottom="cpu_rtf_seconds")

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _metric("wer", "WER", wer, "down", unit="%", digits=1, needs=("text", "asr"), package="jiwer", summarise=_WER),
        _metric("failures", "cut or looped", failures, "down", digits=0, needs=("text", "asr"), package="jiwer",
                summarise=partial(total_of, column="failures")),
        _metric("per", "PER", per, "down", unit="%", digits=1, needs=("phones",), package="jiwer", summarise=_PER),
        _metric("similarity", "speaker similarity", similarity, "up", needs=("speaker",), package="resemblyzer"),
        _metric("dnsmos", "DNSMOS", dnsmos, "up", package="speechmos"),
        _metric("p808", "P.808", p808, "up", package="speechmos"),
        _metric("distillmos", "DistillMOS", distillmos, "up", package="distillmos"),
        _metric("pesq", "PESQ-wb", pesq, "up", needs=("reference",), package="pesq"),
        _metric("stoi", "STOI", stoi, "up", digits=3, needs=("reference",), package="pystoi"),
        _metric("mel_distance", "mel distance", mel_distance, "down", unit="dB", needs=("reference",)),
        _metric("f0_error", "F0 error", f0_error, "down", unit="cent", digits=0, needs=("reference",),
                package="pyworld", extra="train"),
        _metric("audio_seconds", "audio", audio_seconds, "", unit="s", digits=0,
                summarise=partial(total_of, column="audio_seconds")),
        _metric("rtf", "RTF", rtf, "down", digits=3, needs=("timing",), summarise=_RTF),
        _metric("cpu_rtf", "RTF (CPU time)", cpu_rtf, "down", digits=3, needs=("timing",), summarise=_CPU_RTF),
        _metric("first_audio", "first audio", first_audio, "down", unit="ms", digits=0, needs=("stream",)),
        _metric("first_share", "first audio, share", first_share, "down", unit="%", digits=0, needs=("stream",)),
    )
}  # fmt: skip


def choose(names: Sequence[str] | None) -> dict[str, Metric]:
    """The metrics of these names, in table order; all of them for None.

    Raises:
        BadInput: an unknown name.
    """
    if names is None:
        return dict(METRICS)
    unknown = sorted(set(names) - METRICS.keys())
    if unknown:
        raise BadInput(f"there is no metric {', '.join(unknown)}; choose from {', '.join(METRICS)}")
    return {name: metric for name, metric in METRICS.items() if name in names}
