"""One table of several speaking models: what each is, and its figures on the same sentences (`quaver eval table`);
and how many words each loses on sentences made for that (`quaver eval words`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..codecs.loading import model_folder
from .commands import _sentences, run_tts
from .judges import Judges
from .metrics import METRICS
from .report import Report
from .scoring import using_threads
from .tts_stress import STRESS, WordCount, count_words
from .voices import StreamingVoice, teacher_voice

__all__ = ["COLUMNS", "Table", "compare_models", "describe_model", "sentences_of", "stress_table", "table_of"]

sentences_of = _sentences
COLUMNS = ("wer", "failures", "per", "dnsmos", "distillmos", "similarity", "cpu_rtf", "first_audio")


@dataclass(frozen=True)
class Table:
    """Rows of one heading, and remarks below."""

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.heading) + " |", "|---" * 1 + "|" + "---:|" * (len(self.heading) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n" + "".join(f"\n- {note}" for note in self.notes)


def describe_model(synthesizer: Any, name: str) -> dict[str, str]:
    """`layout`, `head` and `parameters` (of the language model) of a synthesizer of either kind, and its folder or
    bundled name."""
    config = synthesizer.lm.config
    layout = getattr(config, "layout", "pointer")
    if layout == "interleave":
        layout += " " + ":".join(map(str, config.ratio))
    head = str(config.head)
    if (pattern := str(getattr(config, "pattern", "parallel"))) != "parallel":
        head += f", {pattern}"
    return {"layout": layout, "head": head, "parameters": f"{_parameters(name) / 1e6:.1f} M"}


def _parameters(name: str) -> int:
    """Counted in the file: weights that are packed for a CPU are no parameters any more."""
    path = model_folder("quaver-en" if name == "default" else name) / "model.safetensors"
    with safe_open(str(path), "np") as file:
        return sum(prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118


def compare_models(
    models: Sequence[str], texts: Path, *, voice: str | None = None, baseline: Sequence[str] = (), **options: Any
) -> tuple[Table, list[Report]]:
    """Judges one voice of each model (its default one, or `voice`) on the same sentences.

    Args:
        baseline: teachers, as of `run_tts`. options: the other arguments of `run_tts`.

    Raises:
        As `run_tts`.
    """
    from ..tts.synthesizer import load_synthesizer

    reports, about = [], []
    for name in models:
        synthesizer = load_synthesizer(name)
        settings: Any = synthesizer.settings
        usual = getattr(settings, "default", None) or getattr(settings, "voice", None)
        spoken = voice or usual or synthesizer.voices[0]
        reports.append(run_tts(texts, synthesizer, [spoken], **options))
        about.append({"model": f"{Path(name).name} / {spoken}", **describe_model(synthesizer, name)})
    for name in baseline:
        reports.append(run_tts(texts, None, baseline=name, **options))
        about.append({"model": name, "layout": "", "head": "", "parameters": ""})
    return table_of(about, reports), reports


def table_of(about: Sequence[Mapping[str, str]], reports: Sequence[Report]) -> Table:
    """The table: what each model is, then the columns that some report has."""
    found = [report.systems[0].summary for report in reports]
    columns = [METRICS[name] for name in COLUMNS if any(name in summary for summary in found)]
    units = [f"{m.title}{f' ({m.unit})' if m.unit else ''}" for m in columns]
    rows = []
    for one, summary in zip(about, found, strict=True):
        cells = [f"{summary[m.name].value:.{m.digits}f}" if m.name in summary else "" for m in columns]
        rows.append([one["model"], one["layout"], one["head"], one["parameters"], *cells])
    notes = sorted({f"{METRICS[name].title}: {note}" for report in reports for name, note in report.notes.items()
                    if name in COLUMNS})  # fmt: skip
    return Table(["model", "layout", "head", "parameters", *units], rows, notes)


def stress_table(
    models: Sequence[str], *, asr: str, voice: str | None = None, baseline: Sequence[str] = (),
    texts: Sequence[str] = STRESS, seed: int = 0, threads: int = 1, tick: Any = None,
) -> tuple[Table, dict[str, list[dict[str, Any]]]]:  # fmt: skip
    """Words that were skipped, repeated and misheard on the stress list; the teacher's row shows what the judge itself
    gets wrong (a recogniser with a language model tends to write "the the the" once).

    Returns:
        The table, and what was heard of each sentence, by model.

    Raises:
        MissingFile, MissingExtra: of the recogniser or a model.
    """
    from ..tts.synthesizer import load_synthesizer

    judges = Judges(asr, None, threads=threads)
    judges.load_asr()
    rows, heard = [], {}
    with using_threads(threads):
        speakers: list[Any] = []
        for name in models:
            synthesizer = load_synthesizer(name)
            speakers.append(StreamingVoice(synthesizer, Path(name).name, voice or ""))
        speakers += [teacher_voice(spec) for spec in baseline]
        for speaker in speakers:
            found, said = [], []
            for i, text in enumerate(texts):
                spoken = speaker.say(i, text, seed + i)
                words = judges.transcribe(_at16(spoken)) if len(spoken.samples) else ""
                found.append(count_words(text, words))
                said.append({"text": text, "heard": words, **vars(found[-1])})
                if tick:
                    tick()
            total = WordCount.total(found)
            failed = sum(bool(c.skipped or c.repeated) for c in found)
            rows.append([speaker.name, *map(str, (total.words, total.skipped, total.repeated, total.wrong, failed))])
            heard[speaker.name] = said
    heading = ["model", "words", "skipped", "repeated", "misheard", f"sentences of {len(texts)} with a lost word"]
    note = "words by the recogniser, which itself drops repeats: compare with a teacher's row"
    return Table(heading, rows, (note,)), heard


def _at16(spoken: Any) -> Any:
    from .signals import resample

    return resample(spoken.samples, spoken.sample_rate)
