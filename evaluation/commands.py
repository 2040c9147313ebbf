"""`quaver eval tts` and `quaver eval codec`, without the command line.

Both return the `Report` and, with `out`, write it as JSON, Markdown and PNG. Nothing here talks to a terminal but the
progress bar; the caller shows `report.markdown()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, MissingFile
from .coding import judge_codec, judge_pair, list_recordings
from .judges import Judges, PhoneRecognizer
from .metrics import METRICS, Metric, choose
from .report import Report, System, environment, mean_system
from .scoring import progress_bar, usable, using_threads
from .speech import judge_voice
from .voices import RecordedVoice, StreamingVoice, SynthesizerLike, Voice, teacher_voice

if TYPE_CHECKING:
    from ..codecs.base import Codec

__all__ = ["run_codec", "run_tts"]

# Pairs of files carry no timing, and no speech comes with reference recordings of the same words.
_TTS = [name for name, metric in METRICS.items() if not metric.needs_reference]
_CODEC = [name for name, metric in METRICS.items() if not metric.needs & {"stream", "speaker", "phones"}]
_PAIR = [name for name in _CODEC if "timing" not in METRICS[name].needs]


def run_tts(
    texts: Path,
    model: str | SynthesizerLike | None = "default",
    voices: Sequence[str] | None = None,
    out: Path | None = None,
    asr: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    threads: int = 1,
    metrics: Sequence[str] | None = None,
    audio_dir: Path | None = None,
    baseline: str | Sequence[str] | None = None,
    *,
    wav_dir: Path | Sequence[Path] | None = None,
    speaker_refs: Path | None = None,
    phones: PhoneRecognizer | str | None = "semantic-25hz",
    progress: bool = True,
) -> Report:
    """Judges every voice of a synthesizer on the sentences of a file: one row per voice and a mean row.

    Arguments:
        texts: one sentence a line; empty lines are left out.
        model: name or folder of a synthesizer, or one that is loaded; None or "none" judges only baselines.
        voices: of the model; None: all of them.
        out: folder of the report, or a file name ending in .json, .md or .png.
        asr: faster-whisper folder or hub name; without it no word error rate is given.
        limit: only the first so many sentences.
        seed: sentence i is spoken with seed + i.
        threads: of the model and of every judge.
        metrics: names from METRICS; None: all that can run. One that is named must run.
        audio_dir: keeps the recordings as `audio_dir/VOICE/000.wav`.
        baseline: teachers on the same sentences, `hibari` or `kokoro:am_michael`.
        wav_dir: folders of recordings named by the number of the sentence, as `audio_dir` has them.
        speaker_refs: folder with recordings of each speaker, `speaker_refs/VOICE/*`, for the speaker similarity.
        phones: phone recogniser for the phone error rate.
        progress: a bar on stderr if that is a terminal.

    Raises:
        BadInput: no sentences, an unknown voice, metric or teacher.
        MissingFile, MissingExtra: a model, recogniser or package that was named is not there.
    """
    sentences = _sentences(texts, limit)
    judges = Judges(asr, phones, threads=threads)
    chosen, notes = _prepare(metrics, _TTS, judges)
    if speaker_refs is None:
        notes |= _drop(chosen, "similarity", metrics, "no recordings of the speakers, give --speaker-refs FOLDER")
    with using_threads(threads):
        speakers = _speakers(model, voices, baseline, wav_dir)
        with progress_bar(len(sentences) * len(speakers), progress) as bar:
            systems = []
            for speaker in speakers:
                bar.update(bar.task_ids[0], description=f"{speaker.name} {speaker.voice}".strip())
                system = judge_voice(
                    speaker, sentences, chosen, judges, seed=seed, audio_dir=audio_dir, speaker_refs=speaker_refs,
                    tick=lambda: bar.advance(bar.task_ids[0]),
                )  # fmt: skip
                systems.append(system)
    own = [system for system, speaker in zip(systems, speakers) if isinstance(speaker, StreamingVoice)]
    if len(own) > 1:
        systems.insert(len(own), mean_system(own, chosen))
    settings = {
        "texts": str(texts), "sentences": len(sentences), "model": _name(model), "voices": [s.label for s in systems],
        "asr": asr, "seed": seed, "threads": threads, "metrics": list(chosen),
    }  # fmt: skip
    return _finish("tts", systems, settings, notes, judges, out)


def run_codec(
    reference: Path | None = None,
    decoded: Path | None = None,
    *,
    codec: str | Codec | None = None,
    files: Path | None = None,
    out: Path | None = None,
    asr: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    threads: int = 1,
    metrics: Sequence[str] | None = None,
    audio_dir: Path | None = None,
    sweep: Sequence[int] | None = None,
    text: str | None = None,
    progress: bool = True,
) -> Report:
    """Judges a codec, in one of two forms.

    `run_codec(reference, decoded)` compares two files. `run_codec(codec=..., files=...)` codes the recordings of a
    folder or manifest: the original and the codec each get a row, and the codec's codes are counted.

    Arguments:
        codec: name or folder of a codec, or one that is loaded.
        files: folder, or JSONL manifest with `path` and perhaps `text` and `voice`.
        out, asr, threads, metrics, progress: as in `run_tts`. Without texts, WER is against what the recogniser hears
            in the original.
        limit: draws so many recordings, the same ones for the same seed.
        audio_dir: keeps what was decoded.
        sweep: further rows with only the first n codebooks.
        text: what is said in `reference`.

    Raises:
        BadInput: neither or both forms, or an unknown metric.
        MissingFile, MissingExtra: a file, model, recogniser or package that was named is not there.
    """
    _check_form(reference, decoded, codec, files)
    judges = Judges(asr, None, threads=threads)
    pair = reference is not None
    chosen, notes = _prepare(metrics, _PAIR if pair else _CODEC, judges)
    settings: dict[str, Any] = {"asr": asr, "seed": seed, "threads": threads, "metrics": list(chosen)}
    with using_threads(threads):
        if reference is not None and decoded is not None:
            systems = judge_pair(reference, decoded, chosen, judges, text=text)
            settings |= {"reference": str(reference), "decoded": str(decoded)}
        else:
            systems = _run_files(codec, files, chosen, judges, limit, seed, sweep or (), audio_dir, progress)
            settings |= {
                "codec": _name(codec), "files": str(files), "limit": limit, "sweep": list(sweep or ()),
                "recordings": len(systems[0].rows),
            }  # fmt: skip
    return _finish("codec", systems, settings, notes, judges, out)


def _run_files(
    codec: str | Codec | None, files: Path | None, metrics: Mapping[str, Metric], judges: Judges, limit: int | None,
    seed: int, sweep: Sequence[int], audio_dir: Path | None, progress: bool,
) -> list[System]:  # fmt: skip
    from ..codecs.loading import DEFAULT_CODEC, load_codec

    if files is None:
        raise BadInput("name the recordings with --files FOLDER or --files MANIFEST")
    if limit is not None and limit < 1:
        raise BadInput("--limit must be at least 1")
    recordings = list_recordings(files, limit, seed)
    name = codec if isinstance(codec, str) else type(codec).__name__ if codec is not None else DEFAULT_CODEC
    loaded = load_codec(name) if codec is None or isinstance(codec, str) else codec
    with progress_bar(len(recordings) * (2 + len(set(sweep))), progress) as bar:
        return judge_codec(
            loaded, Path(name).name, recordings, metrics, judges, sweep=sweep, audio_dir=audio_dir,
            tick=lambda: bar.advance(bar.task_ids[0]),
        )  # fmt: skip


def _check_form(reference: Path | None, decoded: Path | None, codec: Any, files: Path | None) -> None:
    if (reference is None) != (decoded is None):
        raise BadInput("give two files, the original and the decoded one: quaver eval codec speech.wav decoded.wav")
    if reference is not None and (codec is not None or files is not None):
        raise BadInput("give either two files, or --codec and --files")
    if reference is None and files is None:
        raise BadInput("give two files (speech.wav decoded.wav), or --codec NAME --files FOLDER")


def _prepare(
    names: Sequence[str] | None, sensible: Sequence[str], judges: Judges
) -> tuple[dict[str, Metric], dict[str, str]]:
    """The metrics to run, and why others do not."""
    wanted = choose(sensible if names is None else names)
    if wrong := [name for name in wanted if name not in sensible]:
        raise BadInput(f"{', '.join(wrong)} cannot be measured here; choose from {', '.join(sensible)}")
    return usable(wanted, judges, asked=names is not None)


def _drop(chosen: dict[str, Metric], name: str, asked: Sequence[str] | None, reason: str) -> dict[str, str]:
    """Takes a metric out of `chosen`; the note that says why. BadInput if it was asked for by name."""
    if name not in chosen:
        return {}
    if asked is not None:
        raise BadInput(f"{METRICS[name].title}: {reason}")
    del chosen[name]
    return {name: reason}


def _sentences(path: Path, limit: int | None) -> list[str]:
    if not path.is_file():
        raise MissingFile(f"there is no file {path} with sentences; check --texts")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise BadInput(f"{path} is no UTF-8 text") from None
    sentences = [line.strip() for line in lines if line.strip()]
    if limit is not None:
        if limit < 1:
            raise BadInput("--limit must be at least 1")
        sentences = sentences[:limit]
    if not sentences:
        raise BadInput(f"{path} holds no sentences; write one a line")
    return sentences


def _speakers(
    model: str | SynthesizerLike | None, voices: Sequence[str] | None, baseline: str | Sequence[str] | None,
    wav_dir: Path | Sequence[Path] | None,
) -> list[Voice]:  # fmt: skip
    speakers: list[Voice] = []
    if model is not None and model != "none":
        synthesizer = _synthesizer(model)
        known = tuple(synthesizer.voices)
        if unknown := [voice for voice in voices or () if voice not in known]:
            raise BadInput(f"there is no voice {', '.join(unknown)}; choose from {', '.join(known)}")
        speakers += [StreamingVoice(synthesizer, _name(model) or "", voice) for voice in voices or known]
    folders = [wav_dir] if isinstance(wav_dir, Path) else wav_dir or ()
    speakers += [RecordedVoice(folder) for folder in folders]
    specs = [baseline] if isinstance(baseline, str) else baseline or ()
    speakers += [teacher_voice(spec) for spec in specs]
    if not speakers:
        raise BadInput("there is nothing to judge: give a model, --baseline or --wav-dir")
    return speakers


def _synthesizer(model: str | SynthesizerLike) -> SynthesizerLike:
    if not isinstance(model, str):
        return model
    from ..tts.synthesizer import load_synthesizer

    return load_synthesizer(model)


def _name(model: Any) -> str | None:
    if model is None or isinstance(model, str):
        return Path(model).name if model else model
    return type(model).__name__


def _finish(
    kind: str, systems: list[System], settings: Mapping[str, Any], notes: Mapping[str, str], judges: Judges,
    out: Path | None,
) -> Report:  # fmt: skip
    seconds = {name: round(value, 3) for name, value in judges.seconds.items()}
    report = Report(kind, systems, settings, notes, environment(), seconds)
    if out is not None:
        report.write(out)
    return report
