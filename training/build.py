"""Corpora made by teachers, or imported: parallel, resumable, checked, with a lhotse manifest.

A corpus folder holds

    <voice>/<id>.flac      24 kHz mono, 16 bit, peak 0.7
    journal/<voice>.jsonl  what became of each task: a row of the simple manifest format, or why it was left out
    manifest.jsonl.gz      lhotse cuts of all voices (paths relative to the folder)
    report.json            hours, counts and reasons per voice

Which sentence a voice reads at which speed follows from (seed, voice, index) alone, so that a run that was killed goes
on with the same command, any number of processes makes the same corpus, and a voice can be added later.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput, ConfigError, CorruptFile, MissingExtra, MissingFile, QuaverError
from ..tts.phones import is_pause, phones_from_misaki, unknown_symbols
from .corpus import beside, write_manifest
from .teachers import SAMPLE_RATE, Teacher, TeacherSpec, load_teacher

__all__ = ["LIMITS", "Limits", "VoiceReport", "build_corpus", "import_corpus", "read_texts"]

PEAK = 0.7
CHUNK = 4  # tasks that one process takes at a time
Tick = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Limits:
    """What an utterance must keep to. Lengths in seconds, rates in phones a second (pauses not counted)."""

    shortest: float = 0.5
    longest: float = 15.0
    slowest: float = 3.0
    fastest: float = 30.0
    clipped: int = 4  # samples in a row at full scale


LIMITS = Limits()


@dataclass(frozen=True)
class Task:
    """One utterance to make: read by a teacher, or (if `source` is set) taken from a file."""

    id: str
    label: str
    text: str
    speed: float = 1.0
    seed: int = 0
    teacher: str = ""
    voice: str = ""
    source: str = ""
    phonemes: str = ""


@dataclass
class VoiceReport:
    """What a build has for one voice; `rejected` counts reasons, `examples` names one id each."""

    hours: float = 0.0
    utterances: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    complete: bool = True


def read_texts(path: Path, exclude: Iterable[Path] = ()) -> list[str]:
    """The distinct sentences of a file (one a line) without those of other files, compared by their letters only."""
    banned = {_letters(line) for other in exclude for line in _lines(other)}
    sentences: dict[str, str] = {}
    for line in _lines(path):
        letters = _letters(line)
        if letters and letters not in banned:
            sentences.setdefault(letters, line.strip())
    if not sentences:
        raise BadInput(f"{path} holds no sentences (one a line is expected) or all of them are excluded")
    return list(sentences.values())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise MissingFile(f"there is no text file {path}; check the name") from None
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{path} is not UTF-8 text ({error.reason}); convert it first") from error


def _letters(line: str) -> str:
    return "".join(c for c in line.lower() if c.isalnum())


def build_corpus(
    out: Path,
    specs: list[TeacherSpec],
    texts: list[str],
    *,
    seed: int = 0,
    speeds: tuple[float, float] = (0.9, 1.15),
    jobs: int = 1,
    kokoro: str | None = None,
    tick: Tick | None = None,
) -> dict[str, VoiceReport]:
    """Lets each teacher read until its hours are full, then writes the manifest and the report.

    `tick(voice, seconds so far, seconds wanted)` is called as utterances arrive. Raises ConfigError if the folder was
    begun with other settings, MissingExtra or MissingFile for a teacher that is not there (before anything is made).
    """
    if not 0.25 <= speeds[0] <= speeds[1] <= 4:
        raise BadInput(f"the speeds {speeds[0]} to {speeds[1]} are no range between 0.25 and 4")
    if len({spec.label for spec in specs}) != len(specs):
        raise BadInput("a teacher voice is named twice; name each once")
    for spec in specs:
        _check_voice(spec, _teacher(spec.name, kokoro))
    _check_settings(out, {"seed": seed, "speeds": list(speeds), "texts": _digest(texts)})
    reports = {}
    for spec in specs:
        tasks = _reading_tasks(spec, texts, seed, speeds)
        reports[spec.label] = _run(out, spec.label, tasks, spec.hours * 3600, jobs, kokoro, tick)
    _finish(out, reports)
    return reports


def import_corpus(
    out: Path,
    manifest: Path,
    *,
    voice: str = "",
    jobs: int = 1,
    tick: Tick | None = None,
) -> dict[str, VoiceReport]:
    """Takes over existing speech: JSON lines with `path` (from the manifest's folder), `text`, and perhaps `voice`,
    `phonemes`. Audio of any format and rate becomes 24 kHz FLAC; missing phonemes are made from the text."""
    by_voice: dict[str, list[Task]] = {}
    for number, line in enumerate(_lines(manifest), 1):
        if line.strip():
            task = _import_task(line, manifest, number, voice)
            by_voice.setdefault(task.label, []).append(task)
    if not by_voice:
        raise BadInput(f"{manifest} has no rows; JSON lines with path and text are expected")
    _check_settings(out, {"imported": _digest([voice, *_lines(manifest)])})
    reports = {label: _run(out, label, iter(tasks), None, jobs, None, tick) for label, tasks in by_voice.items()}
    _finish(out, reports)
    return reports


def _import_task(line: str, manifest: Path, number: int, voice: str) -> Task:
    try:
        row = json.loads(line)
        label = _safe(voice or str(row.get("voice") or manifest.parent.name))
        source = manifest.parent / row["path"]
        return Task(
            id=f"{label}-{number:06d}",
            label=label,
            text=str(row["text"]),
            source=str(source),
            phonemes=str(row.get("phonemes") or ""),
            speed=float(row.get("speed", 1.0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFile(f"{manifest}, line {number}: a JSON object with path and text was expected") from error


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name) or "voice"


def _check_voice(spec: TeacherSpec, teacher: Teacher) -> None:
    if spec.voice and spec.voice not in teacher.voices:
        raise BadInput(f"teacher {spec.name} has no voice {spec.voice!r}; it has {', '.join(teacher.voices)}")


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """The folder's settings, written by its first run; any later run must have the same."""
    path = out / "journal" / "settings.json"
    if path.exists():
        try:
            same = json.loads(path.read_text()) == settings
        except ValueError:
            same = False
        if not same:
            raise ConfigError(
                f"{out} was begun with other texts, seed or speeds; repeat those, or choose another --out"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as part:
        part.write_text(json.dumps(settings))


def _reading_tasks(spec: TeacherSpec, texts: list[str], seed: int, speeds: tuple[float, float]) -> Iterator[Task]:
    order = list(range(len(texts)))
    random.Random(f"{seed} {spec.label}").shuffle(order)
    for index, sentence in enumerate(order):
        dice = random.Random(f"{seed} {spec.label} {index}")
        speed = round(dice.uniform(*speeds), 3)
        yield Task(
            id=f"{spec.label}-{index:06d}",
            label=spec.label,
            text=texts[sentence],
            speed=speed,
            seed=dice.randrange(2**31),
            teacher=spec.name,
            voice=spec.voice,
        )


def _run(
    out: Path, label: str, tasks: Iterator[Task], goal: float | None, jobs: int, kokoro: str | None, tick: Tick | None
) -> VoiceReport:
    """Does the tasks in order until `goal` seconds are there, skipping those that the journal has."""
    (out / label).mkdir(parents=True, exist_ok=True)
    journal = out / "journal" / f"{label}.jsonl"
    done = _read_journal(journal, out)
    if goal is None:
        waiting = list(tasks)
        tasks, total = iter(waiting), float(len(waiting))
    else:
        total = goal
    report = VoiceReport()
    seconds = 0.0
    with open(journal, "a", encoding="utf-8") as log, _results(tasks, done, out, jobs, kokoro) as results:
        for number, row in enumerate(results, 1):
            if row["id"] not in done:
                log.write(json.dumps(row, ensure_ascii=False) + "\n")
                log.flush()
            _count(report, row)
            seconds += row.get("seconds", 0.0) if "rejected" not in row else 0.0
            if tick:
                tick(label, float(number) if goal is None else seconds, total)
            if goal is not None and seconds >= goal:
                break
    _sweep(out, label)
    report.hours = round(seconds / 3600, 4)
    report.complete = goal is None or seconds >= goal
    return report


def _sweep(out: Path, label: str) -> None:
    """Removes what no journal row names: files made ahead of the goal, and parts that a kill left."""
    known = _read_journal(out / "journal" / f"{label}.jsonl", out)
    for path in (out / label).iterdir():
        ours = path.name.startswith(f"{label}-") or ".part." in path.name
        if ours and path.stem not in known:
            path.unlink()


def _count(report: VoiceReport, row: dict[str, Any]) -> None:
    if "rejected" in row:
        report.rejected[row["rejected"]] = report.rejected.get(row["rejected"], 0) + 1
        report.examples.setdefault(row["rejected"], f"{row['id']}: {row['text'][:60]}")
    else:
        report.utterances += 1


def _read_journal(path: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Finished rows by id. A line cut off by a kill is taken off the file; a row whose audio is gone is done again."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with beside(path) as part:
            part.write_bytes(whole)
    try:
        rows = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
    except ValueError as error:
        raise CorruptFile(f"{path} is damaged ({error}); delete it to make that voice again") from error
    return {row["id"]: row for row in rows if "rejected" in row or (out / row["path"]).is_file()}


@contextmanager
def _results(
    tasks: Iterator[Task], done: dict[str, dict[str, Any]], out: Path, jobs: int, kokoro: str | None
) -> Iterator[Iterator[dict[str, Any]]]:
    """Rows in the order of the tasks; made in this process (jobs 1) or by others, a bounded number ahead."""
    if jobs <= 1:
        yield (done.get(task.id) or make_utterance(task, str(out), kokoro) for task in tasks)
        return
    # spawn: a forked copy of a process with running torch threads can hang
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_die_with_parent)
    try:
        yield _ahead(pool, tasks, done, out, 2 * jobs, kokoro)
    except BrokenProcessPool:
        raise QuaverError("a process of the build was killed (out of memory?); the same command goes on") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ahead(
    pool: ProcessPoolExecutor,
    tasks: Iterator[Task],
    done: dict[str, dict[str, Any]],
    out: Path,
    depth: int,
    kokoro: str | None,
) -> Iterator[dict[str, Any]]:
    queue: deque[tuple[list[Task], Future[list[dict[str, Any]]] | None]] = deque()

    def fill() -> None:
        while len(queue) < depth and (chunk := list(islice(tasks, CHUNK))):
            todo = [task for task in chunk if task.id not in done]
            queue.append((chunk, pool.submit(make_utterances, todo, str(out), kokoro) if todo else None))

    fill()
    while queue:
        chunk, future = queue.popleft()
        new = {row["id"]: row for row in (future.result() if future else [])}
        fill()
        for task in chunk:
            yield new.get(task.id) or done[task.id]


def make_utterances(tasks: list[Task], out: str, kokoro: str | None) -> list[dict[str, Any]]:
    """`make_utterance` for several tasks (one message between processes)."""
    return [make_utterance(task, out, kokoro) for task in tasks]


def make_utterance(task: Task, out: str, kokoro: str | None = None) -> dict[str, Any]:
    """Makes, checks and writes one utterance: its row of the journal, with `rejected` = why if it is left out."""
    row: dict[str, Any] = {"id": task.id, "text": task.text, "voice": task.label, "speed": task.speed}
    try:
        audio, phonemes = _speech(task, kokoro)
    except (MissingExtra, MissingFile):
        raise
    except Exception as error:  # one sentence that a teacher chokes on must not end a night's work
        return row | {"rejected": f"failed: {type(error).__name__}"}
    if reason := problem(audio, phonemes):
        return row | {"rejected": reason}
    path = Path(out) / task.label / f"{task.id}.flac"
    _write(path, audio * (PEAK / float(np.abs(audio).max())))
    seconds = round(len(audio) / SAMPLE_RATE, 4)
    return row | {"path": f"{task.label}/{task.id}.flac", "seconds": seconds, "phonemes": phonemes}


def _speech(task: Task, kokoro: str | None) -> tuple[np.ndarray, str]:
    if task.source:
        audio, phonemes = _read(Path(task.source)), task.phonemes
    else:
        teacher = _teacher(task.teacher, kokoro)
        dice = np.random.default_rng(task.seed)
        audio, phonemes = teacher.say(task.text, task.voice or teacher.voices[0], task.speed, dice)
    return audio, phonemes or _g2p(task.text)


def problem(audio: np.ndarray, phonemes: str, limits: Limits = LIMITS) -> str:
    """Why an utterance cannot be used; "" if it can. Audio is float32 `[samples]` at 24 kHz before normalisation."""
    spoken = sum(not is_pause(phone) for phone in phones_from_misaki(phonemes)[0])
    if unknown := unknown_symbols(phonemes):
        return f"phonemes outside the alphabet: {unknown[:5]}"
    if not spoken:
        return "no phonemes"
    if not np.isfinite(audio).all():
        return "not finite"
    seconds = len(audio) / SAMPLE_RATE
    if seconds < limits.shortest:
        return "too short"
    if seconds > limits.longest:
        return "too long"
    if np.abs(audio).max() < 1e-3:
        return "silent"
    if _longest_run(np.abs(audio) >= 0.9999) >= limits.clipped:
        return "clipped"
    if not limits.slowest <= spoken / seconds <= limits.fastest:
        return "too slow" if spoken / seconds < limits.slowest else "too fast"
    return ""


def _longest_run(flags: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0


@lru_cache(maxsize=4)
def _teacher(name: str, kokoro: str | None) -> Teacher:
    return load_teacher(name, kokoro if name == "kokoro" else None)


@lru_cache(maxsize=1)
def _reader() -> Any:
    from hibari.g2p import G2P

    return G2P()


def _g2p(text: str) -> str:
    return str(_reader()(text))


def _read(path: Path) -> np.ndarray:
    """float32 `[samples]`, mono, 24 kHz."""
    import soundfile
    import soxr

    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = audio.mean(1)
    return mono if rate == SAMPLE_RATE else np.asarray(soxr.resample(mono, rate, SAMPLE_RATE), np.float32)


def _write(path: Path, audio: np.ndarray) -> None:
    import soundfile

    with beside(path) as part:
        soundfile.write(part, audio, SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def _finish(out: Path, reports: dict[str, VoiceReport]) -> None:
    path = out / "report.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known |= {label: asdict(report) for label, report in reports.items()}
    with beside(path) as part:
        part.write_text(json.dumps(known, indent=1, ensure_ascii=False))
    rows = []
    for label in sorted(known):
        done = _read_journal(out / "journal" / f"{label}.jsonl", out)
        rows += _within([row for row in done.values() if "rejected" not in row], known[label]["utterances"])
    if not rows:
        reasons: Counter[str] = Counter()
        for report in known.values():
            reasons.update(report["rejected"])
        raise QuaverError(f"nothing usable was made: {dict(reasons.most_common(3))}; see {path}")
    write_manifest(out / "manifest.jsonl.gz", rows)


def _within(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first utterances by id, as many as the report counts: a smaller goal than an earlier run's stays exact."""
    return sorted(rows, key=lambda row: row["id"])[:count]
